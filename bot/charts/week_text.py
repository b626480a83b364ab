"""The like rate over weeks in words: weeks, channels, and whether the last week is another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime

from bot.language.texts import number, tr
from storage.db.clock import DAY_MS
from storage.feedback.like_rate import Drift, LikeRate, Week


@dataclass(frozen=True, slots=True)
class WeekFigures:
    """What is shown of weeks: the oldest first, the channels of all of them, and the change of the last one.

    `changes` says from which day (since the epoch) on which adapter answers; None is the base model.
    """

    weeks: Sequence[Week]
    channels: Sequence[tuple[int, LikeRate]] = ()
    drift: Drift | None = None
    changes: Mapping[int, str | None] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """Whether nothing was rated in all these weeks."""
        return not any(week.rate for week in self.weeks)

    def began_in(self, week: Week) -> list[str | None]:
        """Return the adapters that began to answer in a week, in order."""
        days = range(week.first_day, week.first_day + 7)
        return [adapter for day, adapter in sorted(self.changes.items()) if day in days]


def week_lines(figures: WeekFigures, most: int) -> list[str]:
    """Return a line for each of the latest weeks, at most so many, with the adapters that began in it."""
    lines = []
    for week in figures.weeks[-most:]:
        began = ", ".join(tr("base model") if each is None else each for each in figures.began_in(week))
        mark = f" · ▲ {began}" if began else ""
        said = tr("nothing rated") if week.rate is None else _rate(week.rate)
        lines.append(f"`{monday(week)}` {said}{mark}")
    return lines


def channel_lines(figures: WeekFigures, named: Callable[[int], str]) -> list[str]:
    """Return a line for each channel; `named` turns its id into what is shown."""
    return [f"{_rate(rate)} · {named(channel_id)}" for channel_id, rate in figures.channels]


def drift_line(drift: Drift | None) -> str:
    """Say whether the last week differs from those before by more than chance explains."""
    if drift is None:
        return tr("Too few members have rated to compare the last week with the four before.")
    values = {
        "recent": _percent(drift.recent.share),
        "before": _percent(drift.before.share),
        "low": _signed(drift.low),
        "high": _signed(drift.high),
    }
    if drift.fell:
        return tr(
            "⚠️ Liked less than before: {recent} in the last 7 days, {before} in the 28 days before. "
            "This is unlikely to be chance (change {low} to {high}, 99.5 % interval).",
            **values,
        )
    if drift.rose:
        return tr(
            "Liked more than before: {recent} in the last 7 days, {before} in the 28 days before. "
            "This is unlikely to be chance (change {low} to {high}, 99.5 % interval).",
            **values,
        )
    return tr(
        "No change beyond chance: {recent} in the last 7 days, {before} in the 28 days before "
        "(change {low} to {high}, 99.5 % interval).",
        **values,
    )


def monday(week: Week) -> str:
    """Return the date on which a week begins."""
    return first_day(week).isoformat()


def first_day(week: Week) -> date:
    """Return the day on which a week begins."""
    return datetime.fromtimestamp(week.first_day * DAY_MS / 1000, UTC).date()


def _rate(rate: LikeRate) -> str:
    width = len(_percent(1))
    share, low, high = (_percent(end).rjust(width) for end in (rate.share, *rate.interval))
    count = tr("of {count}", count=rate.ratings)
    return f"`{share} ({tr('{low} to {high}', low=low, high=high)})` {count}"


def _percent(share: float) -> str:
    return number(share, ".0%")


def _signed(share: float) -> str:
    return number(share, "+.0%")
