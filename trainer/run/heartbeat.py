"""Shows where a run is and keeps its lease, from a thread of its own: a training step may take seconds."""

from __future__ import annotations

import threading
import time

import structlog

from storage.db.database import Database
from storage.errors import DatabaseError
from storage.learning import runs
from storage.learning.runs import Phase
from storage.sentences import NOTHING, Sentence
from trainer.errors import RunCancelledError

log = structlog.get_logger()

BEAT_S = 1.0
# The time left may grow by this share before it is said why, which is said for so long.
GROWS_AT_MOST = 0.1
SLACK_S = 10.0
SAID_FOR_S = 60.0
SLOWER = Sentence("longer than estimated, because it has slowed down")


class Forecast:
    """Notices when a run takes longer than was said."""

    def __init__(self) -> None:
        self._ends_at: float | None = None
        self._said_until = 0.0

    def slower(self, eta_s: float | None, now_s: float) -> bool:
        """Take the seconds left as of `now_s`; return whether it is to be said that they have grown."""
        if eta_s is not None:
            left = None if self._ends_at is None else max(self._ends_at - now_s, 0.0)
            grown = left is not None and eta_s > left * (1 + GROWS_AT_MOST) + SLACK_S
            if grown:
                self._said_until = now_s + SAID_FOR_S
            # Small steps up are measured from the same word, so that they add up.
            if left is None or grown or eta_s < left:
                self._ends_at = now_s + eta_s
        return now_s < self._said_until


class Heartbeat:
    """Use in `with`. `show` says where the run is; `check` raises once the run is no longer wanted."""

    def __init__(self, database: Database, run_id: str, owner: str, *, beat_s: float = BEAT_S) -> None:
        self._database = database
        self._run_id = run_id
        self._owner = owner
        self._beat_s = beat_s
        self._stop = threading.Event()
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._phase: Phase | None = None
        self._progress = 0.0
        self._note = NOTHING
        self._later_s = 0.0
        self._forecast = Forecast()
        self._part: tuple[int, int, str] | None = None
        self._since = self._progress_at = time.monotonic()
        self._thread = threading.Thread(target=self._loop, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._beat()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def enter(self, phase: Phase, note: Sentence = NOTHING, *, later_s: float = 0.0) -> None:
        """Begin a phase; `later_s` is a guess of how long the phases after it take.

        Within a part of a phase (`within`) it is only said.
        """
        if self._part is not None:
            self.show(0.0, note)
            return
        self.check()
        with self._lock:
            self._phase, self._progress, self._note = phase, 0.0, note
            self._later_s = later_s
            self._since = self._progress_at = time.monotonic()
        # At once: some phases are shorter than a beat, and people watch them go by.
        self._beat()
        self.check()

    def set_part(self, part: tuple[int, int, str] | None) -> None:
        """Count what follows as a part of the phase (number from 0, of how many, its name); None: as all."""
        self._part = part

    def show(self, progress: float, note: Sentence | None = None) -> None:
        """Set the progress of the phase, 0 to 1. Raises RunCancelledError like `check`."""
        self.check()
        number, count, _ = self._part or (0, 1, "")
        with self._lock:
            self._progress = (number + min(max(progress, 0.0), 1.0)) / count
            self._progress_at = time.monotonic()
            if note is not None:
                self._note = self._of_part(note)

    def say(self, note: Sentence) -> None:
        """Say what is done now; the progress stays. Raises RunCancelledError like `check`."""
        self.check()
        with self._lock:
            self._note = self._of_part(note)

    def _of_part(self, note: Sentence) -> Sentence:
        if self._part is None or not note:
            return note
        number, count, name = self._part
        return Sentence(
            "setting {number} of {count} ({name}): {note}",
            number=number + 1,
            count=count,
            name=name,
            note=note,
        )

    def check(self) -> None:
        """Stop here if the run was cancelled.

        Raises:
            RunCancelledError: it was, or another trainer took it.
        """
        if self._cancelled.is_set():
            raise RunCancelledError(runs.CANCELLED)

    def eta_s(self) -> float | None:
        """Return the seconds left, None as long as there is nothing to go by.

        While the progress stands still, as when a model writes replies to learn from, what was left runs
        down: measured against the clock it would grow by the minute.
        """
        with self._lock:
            if self._progress < 0.03:
                return None
            elapsed = self._progress_at - self._since
            left = elapsed * (1 - self._progress) / self._progress
            return max(left - (time.monotonic() - self._progress_at), 0.0) + self._later_s

    def _loop(self) -> None:
        while not self._stop.wait(self._beat_s) and not self._cancelled.is_set():
            self._beat()

    def _beat(self) -> None:
        eta_s = self.eta_s()
        with self._lock:
            phase, progress, note = self._phase, self._progress, self._note
        if self._forecast.slower(eta_s, time.monotonic()):
            note = Sentence("{note}; {more}", note=note, more=SLOWER) if note else SLOWER
        try:
            wanted = self._database.write(
                lambda db: runs.heartbeat(db, self._run_id, self._owner, phase, progress, eta_s, note)
            )
        except DatabaseError as error:
            # A full or busy disk is no reason to lose the training; the lease is much longer than a beat.
            log.warning("the heartbeat could not be written", run_id=self._run_id, error=str(error))
            return
        if not wanted:
            self._cancelled.set()
