"""vLLM as a child of the model server's process: prepared, started, watched, restarted, stopped.

Our own process loads no model then. It prepares the base (4 bits for the trainer, bfloat16 for vLLM), says in
``run/server.json`` where vLLM listens and which base that is, and keeps it alive. Clients talk to vLLM.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import structlog

from bot.serving.errors import ServerStartError
from bot.serving.vllm.flags import Launch

log = structlog.get_logger(__name__)

PYTHON_VARIABLE = "STROP_VLLM_PYTHON"
# Loading takes a minute on a GPU, and several on a slow CPU.
START_LIMIT_S = 900.0
POLL_S = 0.5
# Above DRAIN_S: the GPU has to be given back as well.
STOP_LIMIT_S = 15.0
FIRST_RESTART_S, LAST_RESTART_S = 1.0, 60.0
# Dying so often before it ever answered means that it never will.
FAILED_STARTS = 2
_PR_SET_PDEATHSIG = 1


def find_python(environment: Mapping[str, str]) -> Path | None:
    """Return the interpreter of the environment that has vLLM: the one named, or `.venv-vllm` beside ours."""
    named = environment.get(PYTHON_VARIABLE)
    python = Path(named) if named else Path(sys.prefix).parent / ".venv-vllm" / "bin" / "python"
    return python if python.is_file() else None


def has_4_bit_plugin(python: Path) -> bool:
    """Whether an environment has the plugin by which vLLM reads bitsandbytes' 4-bit weights."""
    libraries = python.parent.parent / "lib"
    return any(libraries.glob("python3*/site-packages/vllm_bnb_plugin/__init__.py"))


class VllmChild:
    """Keeps one vLLM process alive until :meth:`stop`.

    Use :meth:`run` in a task; it ends after ``stop``.
    """

    def __init__(self, launch: Launch, *, base_url: str, log_file: Path) -> None:
        self._launch = launch
        self._base_url = base_url
        self._log_file = log_file
        self._stopping = asyncio.Event()
        self._awake = asyncio.Event()
        self._awake.set()
        # Set where the process has to end: for good, or while it sleeps.
        self._leaving = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None

    def stop(self) -> None:
        """Ask the process to end; what it writes may be finished."""
        self._stopping.set()
        self._leaving.set()

    @property
    def is_running(self) -> bool:
        """Whether the process holds what it holds of a GPU."""
        return self._process is not None and self._process.returncode is None

    def sleep(self) -> None:
        """End the process until :meth:`wake`: it gives up all that it holds."""
        self._awake.clear()
        self._leaving.set()

    def wake(self) -> None:
        """Start the process again."""
        if not self._stopping.is_set():
            self._leaving.clear()
        self._awake.set()

    async def run(self) -> None:
        """Start vLLM again whenever it dies.

        Raises:
            ServerStartError: it died before it ever answered, twice in a row.
        """
        failures, wait_s = 0, FIRST_RESTART_S
        while not self._stopping.is_set():
            await first_of(self._awake.wait(), self._stopping.wait())
            if self._stopping.is_set():
                return
            answered = await self._live_once()
            if self._stopping.is_set():
                return
            if self._leaving.is_set():
                failures = 0
                continue
            failures = 0 if answered else failures + 1
            wait_s = FIRST_RESTART_S if answered else min(2 * wait_s, LAST_RESTART_S)
            if failures >= FAILED_STARTS:
                raise ServerStartError(f"vLLM does not start: {self._last_words()} See {self._log_file}.")
            log.warning("vLLM ended; it is started again", wait_s=wait_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._leaving.wait(), wait_s)

    async def _live_once(self) -> bool:
        """Run the process from its start to its end; return whether it ever answered."""
        self._log_file.parent.mkdir(parents=True, exist_ok=True)
        with self._log_file.open("ab") as output:
            process = self._process = await asyncio.create_subprocess_exec(
                *self._launch.argv,
                env=dict(self._launch.env),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # its own workers end with it
                preexec_fn=_end_with_parent,
            )
        ended = asyncio.create_task(process.wait())
        stopping = asyncio.create_task(self._leaving.wait())
        try:
            answered = await self._wait_until_answering(ended, stopping)
            await asyncio.wait((ended, stopping), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            await self._end(process)
        return answered

    async def _wait_until_answering(self, ended: asyncio.Task[int], stopping: asyncio.Task[bool]) -> bool:
        limit = time.monotonic() + START_LIMIT_S
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
            while not ended.done() and not stopping.done() and time.monotonic() < limit:
                with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                    async with session.get(f"{self._base_url}/health") as response:
                        if response.status == 200:
                            log.info("vLLM answers", announce=True, base_url=self._base_url)
                            return True
                await asyncio.wait((ended, stopping), timeout=POLL_S, return_when=asyncio.FIRST_COMPLETED)
        return False

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        """End the process with all that it has started: TERM first, KILL what is left.

        Its workers end when it tells them to: one that was told by us would take the replies along that it
        lets end.
        """
        if process.returncode is None:
            process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), STOP_LIMIT_S)
        _signal_group(process.pid, signal.SIGKILL)
        await process.wait()

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = self._log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-200:]
            errors = [line for line in lines if "Error" in line]
            return (errors or lines or [""])[-1].strip()[:300]
        return ""


async def first_of(*waits: Coroutine[Any, Any, Any]) -> None:
    """Wait until one of several things has happened, and drop the others."""
    tasks = [asyncio.create_task(each) for each in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def _end_with_parent() -> None:
    """Have the kernel end vLLM where our own process is killed: its session is its own (Linux alone)."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
