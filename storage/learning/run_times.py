"""When the clock starts training runs: one reckoning for the trainer and for those who tell people."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice

import sqlite_utils

from storage.config_sections import TrainerConfig
from storage.cron import CronLine, time_zone
from storage.db import key_values

PREVIEWED = 3
"""How many of the next runs are shown to people."""


def next_by_cron(settings: TrainerConfig, after: datetime) -> datetime | None:
    """Return the next time of the cron line, in UTC; None without a line. Raises CronError."""
    if not settings.cron:
        return None
    return CronLine.parse(settings.cron).next_after(after, time_zone(settings.time_zone))


def first_by_cron(settings: TrainerConfig, last_ms: int | None, now: datetime) -> datetime | None:
    """Return when the cron line is due that was last seen at ``last_ms`` (None: now); at once if that passed.

    A machine that is off at the line's hour trains once it is on again, as by anacron.
    """
    seen = now if last_ms is None else min(datetime.fromtimestamp(last_ms / 1000, UTC), now)
    due = next_by_cron(settings, seen)
    return None if due is None else max(due, now)


def last_cron_ms(db: sqlite_utils.Database, settings: TrainerConfig) -> int | None:
    """Return when the trainer last saw this cron line in this time zone; None if it never did."""
    began, _, line = (key_values.get(db, key_values.LAST_CRON) or "").partition(" ")
    return int(began) if line == _line(settings) else None


def note_cron(db: sqlite_utils.Database, settings: TrainerConfig, now_ms: int) -> None:
    """Reckon the cron line from now on."""
    key_values.put(db, key_values.LAST_CRON, f"{now_ms} {_line(settings)}")


def next_by_interval(settings: TrainerConfig, last_ms: int | None, now: datetime) -> datetime | None:
    """Return when the interval is over that began at ``last_ms`` (None: now); None without an interval."""
    if not settings.interval_in_force:
        return None
    began = now if last_ms is None else datetime.fromtimestamp(last_ms / 1000, UTC)
    return max(now, began + timedelta(hours=settings.interval_in_force))


def upcoming(
    settings: TrainerConfig,
    last_interval_ms: int | None,
    now: datetime,
    count: int = PREVIEWED,
    last_cron_ms: int | None = None,
) -> list[datetime]:
    """Return the next times at which the clock starts runs where there are new ratings, in UTC."""
    by_line = _cron_times(settings, first_by_cron(settings, last_cron_ms, now))
    by_hours = _interval_times(settings, next_by_interval(settings, last_interval_ms, now))
    return list(islice(heapq.merge(by_line, by_hours), count))


def list_upcoming(
    db: sqlite_utils.Database, settings: TrainerConfig, now: datetime, count: int = PREVIEWED
) -> list[datetime]:
    """Return the next times, reckoned from what the trainer did last."""
    last = key_values.get(db, key_values.LAST_INTERVAL)
    return upcoming(settings, int(last) if last else None, now, count, last_cron_ms(db, settings))


def format_time(moment: datetime, settings: TrainerConfig) -> str:
    """Return a time as the operator's clock shows it, for example "Sun 2026-12-06 04:00 CET"."""
    return moment.astimezone(time_zone(settings.time_zone)).strftime("%a %Y-%m-%d %H:%M %Z")


def _line(settings: TrainerConfig) -> str:
    return f"{settings.time_zone} {settings.cron}"


def _cron_times(settings: TrainerConfig, due: datetime | None) -> Iterator[datetime]:
    while due is not None:
        yield due
        due = next_by_cron(settings, due)


def _interval_times(settings: TrainerConfig, due: datetime | None) -> Iterator[datetime]:
    while due is not None:
        yield due
        due += timedelta(hours=settings.interval_in_force)
