"""Another server in a process and an environment of its own, as one side of the comparison."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.serving.errors import PeerFailedError, PeerMissingError
from tests.bench.serving.timing import Timing, timing_from_json

# A first answer may quantize, compile or load for minutes.
START_S = 600.0
TURN_S = 900.0
INSTALL = "make bench-peers"
PEERS_MODULE = "tests.bench.serving.peers"
_ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True, slots=True)
class PeerKind:
    """A peer: the name of its environment's folder, its module, and its label in tables."""

    key: str
    module: str
    label: str


LLAMA_CPP = PeerKind("llama-cpp", "llama_cpp_server", "llama.cpp, Q4_0")
VLLM = PeerKind("vllm", "vllm_server", "vLLM (CPU)")


class PeerSide:
    """A peer's process; its answers come one a request, in order."""

    def __init__(self, name: str, command: list[str], log: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=dict(environment),
                text=True,
            )
        self.versions: dict[str, str] = {}
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, name=f"peer {name}", daemon=True).start()

    @classmethod
    def start(cls, kind: PeerKind, peers_dir: Path, **setup: Any) -> PeerSide:
        """Start a peer from ``peers_dir`` and let it load what ``setup`` names.

        Raises:
            PeerMissingError: its environment is not installed.
            PeerFailedError: it cannot load.
        """
        python = peers_dir / kind.key / "bin" / "python"
        if not python.exists():
            raise PeerMissingError(f"not installed: {INSTALL}")
        environment = {**os.environ, "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"}
        command = [str(python), "-m", f"{PEERS_MODULE}.{kind.module}"]
        side = cls(kind.label, command, peers_dir / f"{kind.key}.log", environment)
        try:
            loaded = side.ask("load", START_S, **setup)
        except PeerFailedError:
            side.close()
            raise
        side.versions = loaded["versions"]
        side.name = loaded.get("label", kind.label)
        return side

    def ask(self, request: str, timeout_s: float, **arguments: Any) -> dict[str, Any]:
        """Send a request and return its answer.

        Raises:
            PeerFailedError: the peer refuses, ends, or does not answer in time.
        """
        if (requests := self._process.stdin) is None:
            raise PeerFailedError(f"{self.name} has no input")
        try:
            requests.write(json.dumps({"do": request, **arguments}) + "\n")
            requests.flush()
            line = self._lines.get(timeout=timeout_s)
        except BrokenPipeError:
            line = ""
        except queue.Empty as error:
            raise PeerFailedError(f"no answer to {request!r} within {timeout_s:.0f} s") from error
        if not line:
            # An ended process stays ended, for the next request as well.
            self._lines.put("")
            raise PeerFailedError(f"the process ended: {self._last_word()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerFailedError(str(answer["error"]))
        return answer

    def run(self, prompts: list[list[int]], tokens: int) -> Timing:
        """Write ``tokens`` tokens after every prompt, all streams together."""
        return timing_from_json(self.ask("run", TURN_S, prompts=prompts, tokens=tokens)["timing"])

    def close(self, grace_s: float = 10.0) -> None:
        """End the process, by force if it does not end by itself within ``grace_s`` seconds."""
        if self._process.stdin is not None:
            # Closing flushes first, and a peer that has ended takes nothing any more.
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(timeout=grace_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _read(self) -> None:
        if self._process.stdout is None:
            return
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def _last_word(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else "it said nothing"
