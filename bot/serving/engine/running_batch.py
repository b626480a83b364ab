"""The running requests of one priority: those whose prompt is still being read, and those that decode.

Reading is what slows the others most: on a CPU a chunk of a prompt takes as long as several steps of
decoding. So a user of whom further requests wait pauses after each step that reads one of their prompts, as
long as the step took, once for each of the others who are served. Reading for that user then takes no more
than an equal share of the time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

# A request's tokens are torch's; the order of requests needs none of it.
if TYPE_CHECKING:
    from bot.serving.engine.request import Job


class RunningBatch:
    """The running requests of one priority, in the order of arrival.

    ``crowding`` names the users of whom further requests wait; whoever admits requests keeps it true.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.reading: list[Job] = []
        self.decoding: list[Job] = []
        self.crowding: Collection[str] = ()
        self._clock = clock
        self._reads_again: dict[str, float] = {}

    @property
    def jobs(self) -> list[Job]:
        """All running requests of the batch."""
        return [*self.decoding, *self.reading]

    def join(self, job: Job) -> None:
        """Take in a job whose prompt is to be read."""
        self.reading.append(job)

    def next_to_read(self, passed_over: Collection[Job] = ()) -> Job | None:
        """Return the first whose user need not pause, or the very first where nothing else is to be done."""
        ready = (job for job in self.reading if job not in passed_over and not self._must_pause(job.user))
        return next(ready, self.reading[0] if self.reading and not self.decoding else None)

    def count_reading(self, users: Collection[str], step_s: float) -> None:
        """Note whose prompts were read in a step, and how long it took."""
        now = self._clock()
        self._reads_again = {user: end for user, end in self._reads_again.items() if end > now}
        for user in users:
            self._reads_again[user] = now + step_s * len(self._others(user))

    def begin_decoding(self, job: Job) -> None:
        """Count the job whose prompt has just been read among the decoding ones."""
        self.reading.remove(job)
        self.decoding.append(job)

    def leave(self, job: Job) -> None:
        """Forget a job."""
        (self.decoding if job in self.decoding else self.reading).remove(job)

    def _must_pause(self, user: str) -> bool:
        paused = user in self.crowding and self._clock() < self._reads_again.get(user, 0.0)
        return paused and bool(self._others(user))

    def _others(self, user: str) -> set[str]:
        return {job.user for job in self.jobs} - {user}
