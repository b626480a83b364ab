"""Cron lines as POSIX and every crontab mean them, in any time zone.

Five fields: minute, hour, day of the month, month, day of the week (0 and 7 are Sunday). Lists, ranges, steps
and English names work, and so do the nicknames from `@hourly` to `@yearly`. Where both kinds of day are
given, either is enough. https://pubs.opengroup.org/onlinepubs/9799919799/utilities/crontab.html
"""

from __future__ import annotations

import difflib
import re
import zoneinfo
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Final

from storage.errors import CronError

EXAMPLE_LINE: Final = "0 4 * * *"
_NICKNAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_MONTH_NAMES = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_MONTHS = {name[:3].lower(): number for number, name in enumerate(_MONTH_NAMES, 1)}
_WEEKDAYS = {"sun": 0, "mon": 1, "tue": 2, "wed": 3, "thu": 4, "fri": 5, "sat": 6}
_LONGEST_MONTHS = {2: 29, 4: 30, 6: 30, 9: 30, 11: 30}
# The weekdays of 29 February come round in 28 years, or in 40 across a century without a leap day.
_YEARS_AHEAD = 41


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    first: int
    last: int
    names: dict[str, int]

    def parse(self, text: str) -> frozenset[int]:
        return frozenset(value for item in text.split(",") for value in self._item(item, text))

    def _item(self, item: str, whole: str) -> range:
        found = re.fullmatch(r"(\*|\w+(?:-\w+)?)(?:/(\d+))?", item)
        if found is None:
            raise CronError(f"{whole!r} is no {self.name}")
        span, step = found[1], int(found[2] or 1)
        if step == 0:
            raise CronError(f"a step of 0 in {whole!r} never comes to an end")
        if span == "*":
            return range(self.first, self.last + 1, step)
        start_text, dash, end_text = span.partition("-")
        start = self._value(start_text)
        # "5/10" is read as from 5 on, as most crons do.
        end = self._value(end_text, behind=start) if dash else (self.last if found[2] else start)
        if end < start:
            raise CronError(
                f"{span!r} runs backwards: write {start_text}-{self.last},{self.first}-{end_text}"
            )
        return range(start, end + 1, step)

    def _value(self, text: str, behind: int | None = None) -> int:
        value = self.names.get(text.lower(), int(text) if text.isascii() and text.isdecimal() else -1)
        if value == 0 and behind and self.names is _WEEKDAYS:
            return 7  # "sat-sun"
        if not self.first <= value <= self._most():
            raise CronError(f"{text!r} is no {self.name} (it goes from {self.first} to {self._most()})")
        return value

    def _most(self) -> int:
        return 7 if self.names is _WEEKDAYS else self.last


_FIELDS = (
    _Field("minute", 0, 59, {}),
    _Field("hour", 0, 23, {}),
    _Field("day of the month", 1, 31, {}),
    _Field("month", 1, 12, _MONTHS),
    _Field("day of the week", 0, 6, _WEEKDAYS),
)


@dataclass(frozen=True, slots=True)
class CronLine:
    """A cron line that was understood; `after` says when it is due."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either_day: bool
    every_hour: bool

    @classmethod
    def parse(cls, text: str) -> CronLine:
        """Read a line. Raises CronError, whose text says what is wrong, also for a line that is never due."""
        fields = _NICKNAMES.get(text.strip().lower(), text).split()
        if len(fields) != len(_FIELDS):
            raise CronError(f'it must have five fields, for example "{EXAMPLE_LINE}" (every day at 4:00)')
        minutes, hours, days, months, weekdays = (
            field.parse(given) for field, given in zip(_FIELDS, fields, strict=True)
        )
        # As in every cron since Vixie's: a field that begins with a star restricts beside the other.
        either = not fields[2].startswith("*") and not fields[4].startswith("*")
        weekdays = frozenset(day % 7 for day in weekdays)
        line = cls(minutes, hours, days, months, weekdays, either, fields[1] == "*")
        if not either and all(min(days) > _LONGEST_MONTHS.get(month, 31) for month in months):
            raise CronError(f"it is never due: {_month_names(months)} never has {min(days)} days")
        return line

    def next_after(self, moment: datetime, zone: zoneinfo.ZoneInfo) -> datetime:
        """Return the first time after an aware `moment` at which the line is due, in UTC.

        A time that the change to summer time leaves out comes as much later as the clock jumps; one that the
        change back repeats counts once, or twice where the hour is a star.

        Raises CronError for a line that is never due.
        """
        day = moment.astimezone(zone).date() - timedelta(days=1)
        last = date(min(day.year + _YEARS_AHEAD, date.max.year), 12, 31)
        while day < last:
            if day.month not in self.months:
                day = date(day.year + day.month // 12, day.month % 12 + 1, 1)
                continue
            if self._matches(day):
                for due in sorted(self._times(day, zone)):
                    if due > moment:
                        return due
            day += timedelta(days=1)
        raise CronError(f"it isn't due before {last.year}")

    def _matches(self, day: date) -> bool:
        by_month, by_week = day.day in self.days, (day.weekday() + 1) % 7 in self.weekdays
        return (by_month or by_week) if self.either_day else (by_month and by_week)

    def _times(self, day: date, zone: zoneinfo.ZoneInfo) -> Iterator[datetime]:
        for hour in self.hours:
            for minute in self.minutes:
                for fold in (0, 1) if self.every_hour else (0,):
                    local = datetime.combine(day, time(hour, minute, fold=fold), zone)
                    yield local.astimezone(UTC)


def time_zone(name: str) -> zoneinfo.ZoneInfo:
    """Return the time zone of an IANA name. Raises CronError, whose text says what to write."""
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        known = sorted(zoneinfo.available_timezones())
        cities = {each.rpartition("/")[2].lower(): each for each in known}
        lower = {each.lower(): each for each in known}
        wanted = name.strip().lower().replace(" ", "_")
        close = difflib.get_close_matches(wanted, [*lower, *cities], n=1)
        found = {**cities, **lower}.get(close[0]) if close else None
        hint = f"did you mean {found!r}?" if found else 'write for example "Europe/Berlin" or "UTC"'
        raise CronError(hint) from None


def _month_names(months: frozenset[int]) -> str:
    return " or ".join(_MONTH_NAMES[month - 1] for month in sorted(months))
