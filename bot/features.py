"""What features plug into the client: listeners, background jobs, and jobs at the stages of its life."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeVar

import structlog

from storage.errors import DatabaseError

_log = structlog.get_logger(__name__)
Feature = TypeVar("Feature")
Job = Callable[[], Awaitable[object]]
Handler = Callable[..., Coroutine[Any, Any, object]]


class BackgroundJob(Protocol):
    """What works beside the events, from the first session until the shutdown."""

    def start(self) -> None:
        """Begin, unless it is on already."""

    async def stop(self) -> None:
        """End, and leave nothing behind."""


class FeatureRegistry:
    """Keeps what was plugged in, and owns the tasks that it runs in.

    ``job_again_s`` is how long a job of a session waits for a database that is full or held by others.
    """

    job_again_s = 20.0

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._features: dict[type[Any], object] = {}
        self._listening: defaultdict[str, list[Handler]] = defaultdict(list)
        self._apologies: dict[str, Handler] = {}
        self._background: list[BackgroundJob] = []
        self._at_setup: list[Job] = []
        self._at_session: list[Job] = []
        self._at_shutdown: list[Job] = []
        self._tasks: set[asyncio.Task[None]] = set()

    # ------------------------------------------------------------------ what features add

    def add_feature(self, feature: Feature) -> Feature:
        """Keep the one object of its type, for `feature`; returns it."""
        self._features[type(feature)] = feature
        return feature

    def feature(self, kind: type[Feature]) -> Feature:
        """Return the feature of this type; raises LookupError where none was added."""
        found = self._features.get(kind)
        if not isinstance(found, kind):
            raise LookupError(f"no {kind.__name__} was added")
        return found

    def listen(self, event: str, handler: Handler, *, apology: Handler | None = None) -> None:
        """Have every event of this name ("message") handled.

        ``apology`` is called with the error's id and what the event brings, where a handler fails.
        """
        self._listening[event].append(handler)
        if apology is not None:
            self._apologies[f"on_{event}"] = apology

    def run_beside(self, job: BackgroundJob) -> None:
        """Start a background job with the first session, and stop it at the shutdown."""
        self._background.append(job)

    def at_setup(self, job: Job) -> None:
        """Do something once, after signing in and before the gateway."""
        self._at_setup.append(job)

    def at_session(self, job: Job, *, first: bool = False) -> None:
        """Do something after every new session, in the order of adding: nobody listened before it."""
        self._at_session.insert(0 if first else len(self._at_session), job)

    def at_shutdown(self, job: Job) -> None:
        """Do something after the background jobs have stopped and before the connection is closed."""
        self._at_shutdown.append(job)

    # ------------------------------------------------------------------ what the client calls

    def listeners(self, event: str) -> list[Handler]:
        """Return who listens to an event, in the order of adding."""
        return self._listening.get(event, [])

    def apology_for(self, event_method: str) -> Handler | None:
        """Return what is called where a handler of this event ("on_message") fails."""
        return self._apologies.get(event_method)

    async def run_setup_jobs(self) -> None:
        """Do what is due before the gateway."""
        for job in self._at_setup:
            await job()

    def start_background_jobs(self) -> None:
        """Start what works beside the events."""
        for job in self._background:
            job.start()

    def start_session_jobs(self) -> None:
        """Do what is due after a new session, in a task whose failure is logged; `stop_jobs` ends it."""
        task = asyncio.create_task(self._run_session_jobs())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop_jobs(self) -> None:
        """Stop what works beside the events, do what is due at the shutdown, and cancel what is still on."""
        for background in self._background:
            await background.stop()
        for job in self._at_shutdown:
            await job()
        for task in list(self._tasks):
            task.cancel()

    async def _run_session_jobs(self) -> None:
        """Do each of them, whatever becomes of the others; what the database can't take is tried again."""
        due = list(self._at_session)
        while due:
            due = [job for job in due if await self._has_to_wait(job)]
            if due:
                await asyncio.sleep(self.job_again_s)

    async def _has_to_wait(self, job: Job) -> bool:
        """Do a job; return whether it needs a database that can't be used at the moment."""
        try:
            await job()
        except DatabaseError as error:
            _log.warning("job.waits", error=type(error).__name__, again_s=self.job_again_s)
            return True
        except Exception:  # A job's boundary: it must not end unseen.
            _log.exception("job.failed")
        return False
