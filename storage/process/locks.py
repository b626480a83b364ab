"""What every Strop process needs to know about the others: one at a time, and never without a parent."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Self

from storage.config import Config
from storage.errors import HomeError, StorageError
from storage.process import home

BOT_LOCK = "bot.lock"
"""The file in the run folder that a bot locks as long as it lives; of several processes, the first."""

TRAINER_LOCK = "trainer.lock"
"""The file in the run folder that a trainer locks as long as it lives."""

# Runs before the program: asks the kernel to kill this process when its parent dies, makes sure that it has
# not died already, and then becomes the program. A shim instead of `preexec_fn`, which may deadlock in a
# process that has threads. 1 is PR_SET_PDEATHSIG, see prctl(2).
_SHIM = (
    "import ctypes, os, signal, sys\n"
    "if sys.platform == 'linux':\n"
    "    ctypes.CDLL(None, use_errno=True).prctl(1, int(signal.SIGKILL), 0, 0, 0)\n"
    "if os.getppid() != int(sys.argv[1]):\n"
    "    os._exit(1)\n"
    "os.execv(sys.argv[2], sys.argv[2:])\n"
)


class AlreadyRunningError(StorageError):
    """Another process holds the lock; the message is a sentence for the operator."""


def die_with_parent(argv: Sequence[str]) -> list[str]:
    """Wrap an absolute command line so that the kernel kills it when its parent dies, even by `kill -9`.

    Linux ties this to the *thread* that starts the process: it must live as long as the process should.
    On other systems the command runs unprotected.
    """
    return [sys.executable, "-I", "-S", "-c", _SHIM, str(os.getpid()), *argv]


def end(process: subprocess.Popen[bytes], grace_s: float) -> None:
    """Ask a child process to end, and kill it where it has not within `grace_s` seconds."""
    process.terminate()
    try:
        process.wait(grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def bot_lock(process: int) -> str:
    """Return the file that a bot's process with this number locks."""
    return f"bot-{process}.lock" if process else BOT_LOCK


class ProcessLock:
    """An advisory lock on a file, held until the process ends; the kernel drops it even after a `kill -9`.

    The file carries the holder's process id for people to read; only the lock itself counts.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None

    def acquire(self, sentence: str) -> Self:
        """Take the lock, or raise AlreadyRunningError with `sentence` (`{pid}` becomes the holder's id).

        Raises HomeError where nothing can be written.
        """
        file = self._opened()
        # Who only looks (`is_locked`) holds the lock for a moment: that must not turn a starter away.
        for pause_s in (0.02, 0.05, 0.1, None):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if pause_s is not None:
                    time.sleep(pause_s)
                    continue
                file.seek(0)
                pid = file.read(20).strip() or "unknown"
                file.close()
                raise AlreadyRunningError(sentence.format(pid=pid)) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        self._file = file
        return self

    def _opened(self) -> IO[str]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return self.path.open("a+", encoding="ascii")
        except OSError as error:
            # The lock is the first thing that a process writes into its home.
            raise HomeError(home.fault(self.path.parent)) from error

    def release(self) -> None:
        """Let the lock go. The file stays: removing it would race with the next holder."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def trainer_is_running(config: Config) -> bool:
    """Whether a trainer works on this data right now."""
    return is_locked(config.run / TRAINER_LOCK)


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock at `path`, for example `run/trainer.lock`."""
    with contextlib.suppress(FileNotFoundError), path.open("r", encoding="ascii") as file:
        try:
            # Shared, so that two processes that merely look never take each other for the holder.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
