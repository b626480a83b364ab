"""The running requests of one priority: those whose prompt is still being read, and those that decode."""

from __future__ import annotations

from bot.serving.jobs import Job


class Lane:
    """The running jobs of one priority, in the order of their arrival."""

    def __init__(self) -> None:
        self.reading: list[Job] = []
        self.decoding: list[Job] = []

    @property
    def jobs(self) -> list[Job]:
        """All running jobs of the lane."""
        return [*self.decoding, *self.reading]

    def join(self, job: Job) -> None:
        """Take in a job whose prompt is to be read."""
        self.reading.append(job)

    def begin_decoding(self, job: Job) -> None:
        """Count the job whose prompt has just been read among the decoding ones."""
        self.reading.remove(job)
        self.decoding.append(job)

    def leave(self, job: Job) -> None:
        """Forget a job."""
        (self.decoding if job in self.decoding else self.reading).remove(job)
