"""When to train: a cron line or an interval, and enough new ratings. The queue itself is in the database.

APScheduler's job store is in memory on purpose: what must survive a restart is in our own tables.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import sqlite_utils
import structlog
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.interval import IntervalTrigger

from storage.config_sections import TrainerConfig
from storage.db import key_values
from storage.db.clock import now_ms
from storage.db.database import Database
from storage.learning import run_times, runs
from storage.learning.runs import Trigger

log = structlog.get_logger()

RATINGS_CHECK_S = 30
FIRST_RUN_DELAY_S = 60
SCHEDULED_JOBS = ("cron", "interval")


def scopes(db: sqlite_utils.Database, settings: TrainerConfig) -> list[str]:
    """The scopes that have ratings to learn from; direct messages never train a guild's adapter."""
    rated = [str(row["scope"]) for row in db.query("select scope from scope_counts order by scope")]
    if settings.scope == "deployment":
        return [scope for scope in rated if scope == "deployment"]
    return [scope for scope in rated if scope.startswith("guild:")]


def enqueue_due(database: Database, settings: TrainerConfig, trigger: Trigger, at_least: int) -> list[str]:
    """Queue a run for every scope with at least so many new ratings since its last run; return the runs' ids.

    A scope whose run is queued or running already is left alone.
    """

    def work(db: sqlite_utils.Database) -> list[str]:
        due = [
            scope
            for scope in scopes(db, settings)
            if runs.active(db, scope) is None and runs.new_ratings(db, scope) >= at_least
        ]
        return [runs.enqueue(db, scope=scope, trigger=trigger, requested_by="scheduler").id for scope in due]

    # Most of the time nothing is due: look with a reader first, and take the write lock only then.
    if not database.read(lambda db: _anything_due(db, settings, at_least)):
        return []
    queued = database.write(work)
    for run_id in queued:
        log.info("run.queued", run_id=run_id, trigger=trigger)
    return queued


def _anything_due(db: sqlite_utils.Database, settings: TrainerConfig, at_least: int) -> bool:
    return any(
        runs.active(db, scope) is None and runs.new_ratings(db, scope) >= at_least
        for scope in scopes(db, settings)
    )


class CronTrigger(BaseTrigger):  # type: ignore[misc]
    """Fires when the cron line of the configuration is due, by the reckoning that checked it."""

    def __init__(self, settings: TrainerConfig) -> None:
        self._settings = settings

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime | None:
        """Return the next time; after a sleep the first that was missed."""
        return run_times.next_by_cron(self._settings, previous_fire_time or now)


class Schedule:
    """The trainer's clock. `start` it, `every` adds a chore, `shutdown` waits for what is running."""

    def __init__(self, database: Database, settings: TrainerConfig) -> None:
        self._database = database
        self._settings = settings
        self._scheduler = BackgroundScheduler(
            jobstores={"default": MemoryJobStore()},
            executors={"default": ThreadPoolExecutor(4)},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
            timezone=UTC,
        )

    def start(self) -> None:
        """Begin to enqueue runs by the clock and by new ratings. Raises CronError for a bad cron line."""
        settings = self._settings
        if settings.cron:
            self._scheduler.add_job(
                self._by_cron, CronTrigger(settings), id="cron", next_run_time=self._first_cron()
            )
        if settings.cron and settings.interval_in_force:
            log.warning(
                "Two schedules start runs, trainer.cron and trainer.interval_hours: set one to 0 or empty.",
                cron=settings.cron,
                interval_hours=settings.interval_in_force,
            )
        if settings.interval_in_force:
            self._scheduler.add_job(
                self._by_interval,
                IntervalTrigger(hours=settings.interval_in_force, timezone=UTC),
                id="interval",
                next_run_time=self._first_interval(),
            )
        if settings.min_new_ratings:
            self.every(RATINGS_CHECK_S, self._by_ratings, "ratings")
        self._scheduler.start()
        self.every(RATINGS_CHECK_S, self._publish_next, "publish")
        self._publish_next()

    def every(self, seconds: float, chore: Callable[[], object], name: str) -> None:
        """Do a chore regularly, never twice at once; what it raises is logged and it is tried again."""
        self._scheduler.add_job(chore, IntervalTrigger(seconds=seconds, timezone=UTC), id=name, name=name)

    def shutdown(self) -> None:
        """Stop; waits for chores that are under way."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=True)
        self._database.write(lambda db: key_values.put(db, key_values.NEXT_RUN, ""))

    def next_run_ms(self) -> int | None:
        """When the clock starts the next run, in milliseconds since the epoch; None if it never does."""
        jobs = (self._scheduler.get_job(name) for name in SCHEDULED_JOBS)
        times = [job.next_run_time for job in jobs if job is not None and job.next_run_time is not None]
        return round(min(times).timestamp() * 1000) if times else None

    def _by_clock(self) -> None:
        # Without a single new rating a run would repeat the last one.
        enqueue_due(self._database, self._settings, "schedule", 1)

    def _by_cron(self) -> None:
        self._database.write(lambda db: run_times.note_cron(db, self._settings, now_ms()))
        self._by_clock()

    def _by_interval(self) -> None:
        self._database.write(lambda db: key_values.put(db, key_values.LAST_INTERVAL, str(now_ms())))
        self._by_clock()

    def _by_ratings(self) -> None:
        enqueue_due(self._database, self._settings, "ratings", self._settings.min_new_ratings)

    def _publish_next(self) -> None:
        due = self.next_run_ms()
        value = "" if due is None else str(due)
        if self._database.read(lambda db: key_values.get(db, key_values.NEXT_RUN)) != value:
            self._database.write(lambda db: key_values.put(db, key_values.NEXT_RUN, value))

    def _first_cron(self) -> datetime:
        """A time that passed while nothing ran is made up for; of a new line, the past doesn't count."""
        last = self._database.read(lambda db: run_times.last_cron_ms(db, self._settings))
        if last is None:
            self._database.write(lambda db: run_times.note_cron(db, self._settings, now_ms()))
        now = datetime.now(UTC)
        due = run_times.first_by_cron(self._settings, last, now) or now
        return due if due > now else now + timedelta(seconds=FIRST_RUN_DELAY_S)

    def _first_interval(self) -> datetime:
        """An interval goes on across restarts: a machine that restarts every day must still train."""
        last = self._database.read(lambda db: key_values.get(db, key_values.LAST_INTERVAL))
        now = datetime.now(UTC)
        if not last:
            self._database.write(lambda db: key_values.put(db, key_values.LAST_INTERVAL, str(now_ms())))
        # A clock that was ahead left a time that is still to come: then the interval begins now.
        due = run_times.next_by_interval(self._settings, min(int(last), now_ms()) if last else None, now)
        return max(due or now, now + timedelta(seconds=FIRST_RUN_DELAY_S))
