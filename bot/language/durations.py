"""Times in words: the only place where seconds, minutes and hours are written for people."""

from __future__ import annotations

from bot.language.texts import number, tr


def duration(seconds: float) -> str:
    """Return a length of time as people say it: `12 s`, `40 min`, `2.5 h`."""
    if seconds < 90:
        return tr("{count} s", count=max(1, round(seconds)))
    if seconds < 5400:
        return tr("{count} min", count=round(seconds / 60))
    return tr("{count} h", count=number(seconds / 3600, ".1f"))


def time_to_come(minutes: float) -> str:
    """Return a time to come in words, as precise as its length deserves."""
    if minutes < 90:
        return tr("{count} min", count=max(round(minutes), 1))
    hours = minutes / 60
    return tr("{count} h", count=round(hours)) if hours < 48 else tr("{count} days", count=round(hours / 24))


def short_time(ms: float) -> str:
    """Return a short time as people say it: `0.8 s`, `12 s`, `3 min`."""
    if ms < 9_950:
        return f"{number(ms / 1000, '.1f')} s"
    return f"{ms / 1000:.0f} s" if ms < 90_000 else f"{ms / 60_000:.0f} min"


def exact_time(ms: int) -> str:
    """Return how long something took: with a tenth of a second below a minute and a half."""
    return tr("{count} s", count=number(ms / 1000, ".1f")) if ms < 90_000 else duration(ms / 1000)


def pace(seconds: float) -> str:
    """Say how far apart prompts are, in the units that every language writes alike."""
    return f"{number(seconds)} s" if seconds < 120 else f"{number(seconds / 60)} min"
