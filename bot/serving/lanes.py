"""Which job sits in which row of the cache.

People's jobs fill the rows from the bottom, background jobs from the top, and within a lane those that decode
come before those whose prompt is still being read. So the decoding rows of a lane are always contiguous and
one forward pass takes them as a view.
"""

from __future__ import annotations

from collections.abc import Callable

from bot.serving.jobs import Job

MoveRow = Callable[[int, int, int], None]


class Lane:
    """The running jobs of one priority: the first ``decoding`` of ``jobs`` decode, the others prefill."""

    def __init__(self, rows: int, *, from_top: bool, move_row: MoveRow) -> None:
        self.jobs: list[Job] = []
        self.decoding = 0
        self._rows = rows
        self._from_top = from_top
        self._move_row = move_row

    def row(self, index: int) -> int:
        """Return the cache row of the job at ``index``."""
        return self._rows - 1 - index if self._from_top else index

    def first_decoding_row(self) -> int:
        """Return the lowest row of the decoding jobs."""
        return self._rows - self.decoding if self._from_top else 0

    def decoding_jobs(self) -> list[Job]:
        """Return the decoding jobs in the order of their rows."""
        jobs = self.jobs[: self.decoding]
        return jobs[::-1] if self._from_top else jobs

    def prefilling_job(self) -> Job | None:
        """Return the job whose prompt is read next."""
        return self.jobs[self.decoding] if self.decoding < len(self.jobs) else None

    def join(self, job: Job) -> None:
        """Give a job the lane's next row; its prompt is read from the start."""
        job.cached = 0
        self.jobs.append(job)

    def begin_decoding(self) -> None:
        """Count the job whose prompt has just been read among the decoding ones."""
        self.decoding += 1

    def leave(self, job: Job) -> None:
        """Free a job's row; the last jobs of the decoding and of the prefilling part close the gap."""
        index = self.jobs.index(job)
        if index < self.decoding:
            self.decoding -= 1
            self._fill(index, self.decoding)
            index = self.decoding
        self._fill(index, len(self.jobs) - 1)
        self.jobs.pop()

    def _fill(self, hole: int, index: int) -> None:
        if hole == index:
            return
        job = self.jobs[index]
        if job.cached:
            self._move_row(self.row(index), self.row(hole), job.cached)
        self.jobs[hole] = job
