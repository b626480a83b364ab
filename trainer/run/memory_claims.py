"""What the trainings on one machine may still take of its memory, so that another begins only beside that.

A training takes its memory bit by bit: what is free when the next one begins says little about what will be.
So each writes down what it needs, in a file that it locks as long as it lives.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TypeVar

import structlog

from bot.serving.errors import BaseRefusedError
from storage.process.locks import is_locked
from trainer.errors import MemoryShortError

T = TypeVar("T")

log = structlog.get_logger()

FOLDER = "training-memory"
TURN = "turn"
POLL_S = 1.0


class MemoryClaims:
    """The claims of all trainings, seen by one of them on its device; `on_wait` may raise to end the wait."""

    def __init__(self, run_dir: Path, name: str, on_wait: Callable[[], None]) -> None:
        self._folder = run_dir / FOLDER
        self._path = self._folder / f"{name}.json"
        self._on_wait = on_wait
        self._file: IO[str] | None = None

    def claim(self, device: str, choose: Callable[[int], tuple[T, int]]) -> T:
        """Choose while no other training does, and write down how many bytes the choice needs from now on.

        `choose` takes the bytes that others may still take on this device, and returns what it chose and its
        need; where it finds no room beside others, this waits until they have ended.

        Raises:
            MemoryShortError, BaseRefusedError: by `choose`, where no other claims anything.
        """
        waited = False
        while True:
            with self._turn():
                taken = self._taken_by_others(device)
                try:
                    choice, needed = choose(sum(taken))
                except (MemoryShortError, BaseRefusedError):
                    if not taken:
                        raise
                else:
                    self._write(device, needed)
                    return choice
            if not waited:
                log.info("training.waits_for_memory", others=len(taken), taken=sum(taken))
                waited = True
            self._on_wait()
            time.sleep(POLL_S)

    def release(self) -> None:
        """Let the claim go: what is still held can be seen."""
        if self._file is not None:
            self._path.unlink(missing_ok=True)
            self._file.close()
            self._file = None

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / TURN).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _write(self, device: str, needed: int) -> None:
        if self._file is None:
            self._file = self._path.open("w", encoding="ascii")
            fcntl.flock(self._file, fcntl.LOCK_EX)
        self._file.seek(0)
        self._file.truncate()
        json.dump(
            {"pid": os.getpid(), "device": device, "needed": needed, "had": _held(os.getpid())}, self._file
        )
        self._file.flush()

    def _taken_by_others(self, device: str) -> list[int]:
        """Return what each other training on the device may still take; the claims of dead ones go."""
        found = []
        for path in self._folder.glob("*.json"):
            if path == self._path:
                continue
            if not is_locked(path):
                path.unlink(missing_ok=True)
                continue
            with contextlib.suppress(FileNotFoundError, ValueError):
                claim = json.loads(path.read_text(encoding="ascii"))
                if claim["device"] == device:
                    found.append(_outstanding(claim["needed"], claim["had"], claim["pid"], device))
        return found


def _outstanding(needed: int, had: int | None, pid: int, device: str) -> int:
    """Return what of a claim is not yet taken; on a GPU, where nobody can see it, all of it."""
    now = None if device.startswith("cuda") else _held(pid)
    return needed if now is None or had is None else max(needed - max(now - had, 0), 0)


def _held(pid: int) -> int | None:
    """Return the bytes that a process alone holds in main memory (proc(5), RssAnon); None if unknown."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return None
