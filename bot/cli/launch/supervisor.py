"""Starts Strop's processes as children, restarts a dead one, and stops them in order.

The supervisor knows nothing about what its children do: it gets a list of `ChildSpec` and tells an
`Announcer` what happens. What a child prints goes to `<log_dir>/<name>.log` line by line.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import logging.handlers
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from storage.process.locks import die_with_parent

PERMANENT_EXITS = frozenset({2, 3})
"""Exit codes that a restart can't cure: 2 for bad configuration or a port in use, 3 for a refused token."""

LOG_BYTES = 5_000_000
LOG_BACKUPS = 3
# A line longer than this is cut in the logs; asyncio's reader needs a bound.
LINE_BYTES = 256 * 1024
KILL_WAIT_S = 5.0
POLL_S = 0.05
# What each later child keeps of the drain time, so that one stubborn child doesn't cost the others theirs.
STAGE_RESERVE_S = 1.0


@dataclass(frozen=True)
class ChildSpec:
    """One process to keep alive.

    `stdin` is written and closed at each start: the place for secrets, never `argv`.
    """

    name: str
    argv: tuple[str, ...]
    stdin: bytes | None = None
    env: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Backoff:
    """How long to wait before a restart: doubles from `first_s` to `limit_s`, anew after `stable_s` alive."""

    first_s: float = 1.0
    limit_s: float = 60.0
    stable_s: float = 60.0

    def delay_s(self, failures: int) -> float:
        """Seconds to wait after the `failures`-th death in a row (1 for the first)."""
        return float(min(self.limit_s, self.first_s * 2.0 ** min(failures - 1, 32)))


class Announcer(Protocol):
    """Where the supervisor tells what happens: a terminal, or JSON lines."""

    def say(self, process: str, sentence: str, *, level: str = "info", **fields: object) -> None:
        """Tell one event in one sentence."""

    def output(self, process: str, line: str) -> None:
        """Take one line that a child printed."""


@dataclass
class _Child:
    spec: ChildSpec
    log: logging.Logger
    process: asyncio.subprocess.Process | None = None
    last_error: str = ""
    failures: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def signal(self, number: signal.Signals) -> None:
        """Signal the child and everything it started (it leads a process group of its own)."""
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)


class Supervisor:
    """Keeps the children alive until asked to stop; see `run`."""

    def __init__(
        self,
        children: Sequence[ChildSpec],
        *,
        announcer: Announcer,
        log_dir: Path,
        backoff: Backoff | None = None,
        drain_s: float = 10.0,
    ) -> None:
        log_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._announcer = announcer
        self._backoff = backoff or Backoff()
        self._drain_s = drain_s
        self._children = [_Child(spec, _rotating_log(log_dir / f"{spec.name}.log")) for spec in children]
        self._stopping = asyncio.Event()
        self._impatient = asyncio.Event()
        self._exit_code = 0

    async def run(self) -> int:
        """Start every child and return the exit code once all have ended.

        0 after a signal or `stop`; a child's permanent exit code (`PERMANENT_EXITS`) stops everything.
        SIGINT, SIGTERM and SIGHUP drain; a second one kills at once.
        """
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        for number in numbers:
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            async with asyncio.TaskGroup() as tasks:
                for child in self._children:
                    tasks.create_task(self._keep(child), name=f"keep {child.spec.name}")
                await self._stopping.wait()
                await self._drain()
        finally:
            # Reached with children alive only when something above failed or was cancelled.
            for child in self._children:
                child.signal(signal.SIGKILL)
                _close_log(child.log)
            for number in numbers:
                loop.remove_signal_handler(number)
        return self._exit_code

    @property
    def stopping(self) -> bool:
        """Whether it was told to stop, or a child ended it."""
        return self._stopping.is_set()

    def stop(self, exit_code: int = 0) -> None:
        """Begin to drain; the first caller's exit code counts."""
        if not self._stopping.is_set():
            self._exit_code = exit_code
            self._stopping.set()

    def _on_signal(self, number: signal.Signals) -> None:
        if self._stopping.is_set():
            self._announcer.say("strop", "Killing what is left.", level="warning")
            self._impatient.set()
            return
        again = " Press Ctrl-C again to kill at once." if number == signal.SIGINT else ""
        self._announcer.say("strop", f"Stopping: replies in flight may finish.{again}")
        self.stop()

    async def _keep(self, child: _Child) -> None:
        """Start the child again and again until it's time to stop or a restart can't help."""
        try:
            while not self._stopping.is_set():
                started = time.monotonic()
                code = await self._run_once(child)
                if self._stopping.is_set():
                    return
                if code in PERMANENT_EXITS:
                    self._give_up(child, code)
                    return
                alive_s = time.monotonic() - started
                child.failures = 1 if alive_s >= self._backoff.stable_s else child.failures + 1
                await self._pause(child, code)
        finally:
            child.ended.set()

    async def _run_once(self, child: _Child) -> int:
        spec = child.spec
        child.last_error = ""
        try:
            process = await asyncio.create_subprocess_exec(
                *die_with_parent(spec.argv),
                stdin=asyncio.subprocess.DEVNULL if spec.stdin is None else asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=None if spec.env is None else dict(spec.env),
                # Ctrl-C reaches the whole foreground group: in groups of their own they drain in our order.
                process_group=0,
                limit=LINE_BYTES,
            )
        except OSError as error:
            child.last_error = f"{spec.argv[0]} could not be started: {error.strerror or error}."
            return 1
        child.process = process
        if self._stopping.is_set():
            child.signal(signal.SIGTERM)
        async with asyncio.TaskGroup() as pumps:
            pumps.create_task(self._feed(process, spec.stdin))
            pumps.create_task(self._pump(child, process.stdout, is_error=False))
            pumps.create_task(self._pump(child, process.stderr, is_error=True))
            code = await _exit_code(process)
            # A grandchild that outlived the child would hold its pipes and its port: end it too.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        return code

    async def _feed(self, process: asyncio.subprocess.Process, data: bytes | None) -> None:
        if process.stdin is None or data is None:
            return
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            process.stdin.write(data)
            await process.stdin.drain()
        process.stdin.close()

    async def _pump(self, child: _Child, stream: asyncio.StreamReader | None, *, is_error: bool) -> None:
        if stream is None:
            return
        async for line in _lines(stream):
            child.log.info(line)
            # A child's structured log may share stderr; the sentence for people is the last plain line.
            if is_error and line.strip() and not line.startswith("{"):
                child.last_error = line.strip()
            self._announcer.output(child.spec.name, line)

    def _give_up(self, child: _Child, code: int) -> None:
        sentence = child.last_error or f"{child.spec.name} ended with code {code} and gave no reason."
        self._announcer.say(child.spec.name, _sentence_of(sentence), level="error", exit_code=code)
        self.stop(code)

    async def _pause(self, child: _Child, code: int) -> None:
        delay_s = self._backoff.delay_s(child.failures)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        self._announcer.say(
            child.spec.name,
            f"{child.spec.name} {how}; starting it again in {delay_s:g} s. See logs/{child.spec.name}.log.",
            level="warning",
            exit_code=code,
            restart_s=delay_s,
            last_error=_sentence_of(child.last_error),
        )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                await self._stopping.wait()

    async def _drain(self) -> None:
        """TERM the children one after the other in their order, then KILL what outlived the drain time."""
        deadline = time.monotonic() + self._drain_s
        for position, child in enumerate(self._children):
            later = len(self._children) - position - 1
            child.signal(signal.SIGTERM)
            await self._ended(child, max(0.0, deadline - time.monotonic() - later * STAGE_RESERVE_S))
        for child in self._children:
            await self._ended(child, max(0.0, deadline - time.monotonic()))
            if not child.ended.is_set():
                child.signal(signal.SIGKILL)
        for child in self._children:
            await self._ended(child, KILL_WAIT_S, hurry=False)

    async def _ended(self, child: _Child, within_s: float, *, hurry: bool = True) -> None:
        """Wait until the child has ended, the time is up, or (with `hurry`) a second signal asks to kill."""
        waits = [asyncio.ensure_future(child.ended.wait())]
        if hurry:
            waits.append(asyncio.ensure_future(self._impatient.wait()))
        await asyncio.wait(waits, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


async def _exit_code(process: asyncio.subprocess.Process) -> int:
    # `Process.wait` also waits until the pipes are closed, which a surviving grandchild would prevent.
    while process.returncode is None:  # noqa: ASYNC110 - a foreign attribute: nothing to wait for
        await asyncio.sleep(POLL_S)
    return process.returncode


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """Yield decoded lines; one beyond `LINE_BYTES` is dropped with a remark instead of ending the pump."""
    while True:
        try:
            raw = await stream.readline()
        except ValueError:
            yield "(a line too long for the log was left out)"
            continue
        if not raw:
            return
        yield raw.decode("utf-8", "replace").rstrip("\r\n")


def _rotating_log(path: Path) -> logging.Logger:
    """A logger of its own, outside the logging tree, that writes bare lines to a rotating file."""
    logger = logging.Logger(f"strop.{path.stem}")
    handler = logging.handlers.RotatingFileHandler(
        path, maxBytes=LOG_BYTES, backupCount=LOG_BACKUPS, encoding="utf-8", delay=True
    )
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    return logger


def _close_log(logger: logging.Logger) -> None:
    for handler in logger.handlers:
        handler.close()


def _sentence_of(line: str) -> str:
    """A child's last words without the name of its program in front."""
    return re.sub(r"^(strop \w+|Error): ", "", line.strip())[:500]


def python(module: str, *arguments: str) -> tuple[str, ...]:
    """The command line of `python -m module` with this very interpreter."""
    return (sys.executable, "-m", module, *arguments)
