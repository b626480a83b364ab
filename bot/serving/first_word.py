"""How a run on the same machine gives way while somebody waits for a reply's first word (torch-free).

The server says in a file until when that is so, and says it again at every step; a training looks at it
between the layers of a forward or backward pass, and stands still. The file is mapped by both, so that
neither waits for the other. A word that isn't renewed expires: a server that is killed stops nobody.

A run stands still for at most as long as it has worked, and CREDIT_S more: it takes at most twice its time.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

FILE = "first-word"
# The longest step on a busy machine, in which nothing is renewed, is shorter.
LEASE_S = 5.0
# As long as the longest prompt takes: what a run may stand still before it has worked, and at any one time.
CREDIT_S = 60.0
POLL_S = 0.01
# Seconds of CLOCK_MONOTONIC, which all processes of a machine share; 0 is nobody. Aligned, so written whole.
_FORMAT = struct.Struct("=d")


class FirstWordSign:
    """The server's side: whether somebody waits. Where the file can't be written, no run gives way."""

    def __init__(self, run_dir: Path) -> None:
        self._map: mmap.mmap | None = None
        self._shown = False
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            self._map = _mapped(run_dir / FILE, os.O_RDWR | os.O_CREAT, mmap.PROT_READ | mmap.PROT_WRITE)
            self._write(0.0)
        except (OSError, ValueError) as error:
            log.warning("a run can't give way to those who wait for a first word", error=str(error))

    def show(self, waiting: bool) -> None:
        """Say that somebody waits, at every step as long as that is so, and once that nobody does."""
        if waiting or self._shown:
            self._write(time.monotonic() + LEASE_S if waiting else 0.0)
        self._shown = waiting

    def _write(self, until: float) -> None:
        if self._map is not None:
            _FORMAT.pack_into(self._map, 0, until)


class GiveWay:
    """A run's side: called often, by any thread, it returns at once, or once nobody waits any more.

    ``paused_s`` is how long it has stood still in all.
    """

    def __init__(
        self,
        run_dir: Path,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.paused_s = 0.0
        self._path = run_dir / FILE
        self._clock = clock
        self._sleep = sleep
        self._map: mmap.mmap | None = None
        self._credit_s = CREDIT_S
        self._working_since = clock()
        self._turn = threading.Lock()

    def __call__(self) -> None:
        """Stand still while somebody waits for a first word, as long as there is credit for it."""
        # One thread waits for all of them: time that several stood still together counts once.
        with self._turn:
            self._stand_still()

    def _stand_still(self) -> None:
        began = self._clock()
        self._credit_s = min(CREDIT_S, self._credit_s + began - self._working_since)
        now = began
        while now - began < self._credit_s and self._somebody_waits(now):
            self._sleep(POLL_S)
            now = self._clock()
        self._credit_s -= now - began
        self.paused_s += now - began
        self._working_since = now

    def working_clock(self) -> float:
        """Return a clock in seconds that stands still with the run."""
        return self._clock() - self.paused_s

    def _somebody_waits(self, now: float) -> bool:
        if self._map is None:
            with contextlib.suppress(OSError, ValueError):
                self._map = _mapped(self._path, os.O_RDONLY, mmap.PROT_READ)
            if self._map is None:
                return False
        until: float = _FORMAT.unpack_from(self._map, 0)[0]
        # It may have been written after `now`; a time far away, before the machine was started anew.
        return now < until < now + 2 * LEASE_S


def _mapped(path: Path, flags: int, protection: int) -> mmap.mmap:
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        if flags & os.O_CREAT:
            os.ftruncate(descriptor, _FORMAT.size)
        return mmap.mmap(descriptor, _FORMAT.size, prot=protection)
    finally:
        os.close(descriptor)
