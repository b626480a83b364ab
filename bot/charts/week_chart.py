"""The picture of /stats over weeks: the like rate with its interval, and when the adapter changed."""

from __future__ import annotations

from bot.charts.axes import amount, round_top, short_names
from bot.charts.canvas import BLUE, INK, RULE, SOFT, WIDTH, Area, Canvas, text_width
from bot.charts.picture import Picture
from bot.charts.week_text import WeekFigures, drift_line, monday
from bot.language.texts import number, tr

_EDGE = 18
_RATES_HEIGHT = 190
_COUNTS_HEIGHT = 56
_INSET = 44


def draw(figures: WeekFigures) -> Picture:
    """Draw the card: rates above, how many ratings below."""
    canvas = Canvas(62 + _RATES_HEIGHT + 34 + _COUNTS_HEIGHT + 34)
    more = tr("the last {count} weeks, 95 % intervals", count=len(figures.weeks))
    canvas.heading(Area(_EDGE, 30, WIDTH - 2 * _EDGE, 0), tr("Share of ratings that like"), more)
    width = WIDTH - 2 * _EDGE - _INSET
    rates = Area(_EDGE + _INSET, 62, width, _RATES_HEIGHT)
    counts = Area(_EDGE + _INSET, rates.bottom + 34, width, _COUNTS_HEIGHT)
    _draw_rates(canvas, figures, rates)
    _mark_changes(canvas, figures, rates, counts)
    _draw_counts(canvas, figures, counts)
    _name_weeks(canvas, figures, counts)
    return Picture("strop-weeks", canvas.png(), alt_text(figures))


def alt_text(figures: WeekFigures) -> str:
    """Say what the picture shows."""
    rated = [week for week in figures.weeks if week.rate is not None]
    words = [tr("Share of ratings that like, by week, with 95 % intervals:")]
    for week in rated[-26:]:
        assert week.rate is not None
        words.append(f"{monday(week)} {_percent(week.rate.share)}.")
    words.append(drift_line(figures.drift))
    return " ".join(words)


def _percent(share: float) -> str:
    return number(share, ".0%")


def _centre(plot: Area, figures: WeekFigures, position: float) -> float:
    return plot.left + plot.width / len(figures.weeks) * (position + 0.5)


def _draw_rates(canvas: Canvas, figures: WeekFigures, plot: Area) -> None:
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = plot.bottom - plot.height * share
        canvas.line((plot.left, y), (plot.right, y), RULE, 1, dash=None if share in (0, 1) else 3)
        if share in (0.0, 0.5, 1.0):
            canvas.text((plot.left - 8, y + 4), _percent(share), size=11, align="right")
    before: tuple[float, float] | None = None
    step = plot.width / len(figures.weeks)
    for position, week in enumerate(figures.weeks):
        if week.rate is None:
            before = None  # No line goes over weeks in which nobody rated.
            continue
        x = _centre(plot, figures, position)
        low, high = (plot.bottom - plot.height * end for end in week.rate.interval)
        canvas.line((x, low), (x, high), SOFT, min(3, step / 3))
        here = (x, plot.bottom - plot.height * week.rate.share)
        if before is not None:
            canvas.line(before, here, BLUE, 2)
        canvas.disc(here, min(4.5, step / 2.5), INK, BLUE)
        before = here


def _mark_changes(canvas: Canvas, figures: WeekFigures, rates: Area, counts: Area) -> None:
    """Mark the days on which another adapter began to answer; names that would overlap are left out."""
    names = short_names(each for each in figures.changes.values() if each)
    first = figures.weeks[0].first_day
    free_from = rates.left
    for day, adapter in sorted(figures.changes.items()):
        x = rates.left + rates.width * (day - first) / (7 * len(figures.weeks))
        if not rates.left <= x <= rates.right:
            continue
        canvas.line((x, rates.top - 14), (x, counts.bottom), SOFT, 1, dash=3)
        words = tr("base model") if adapter is None else names[adapter]
        width = text_width(words, 11)
        left = x + 5 if x + 5 + width <= rates.right else x - 5 - width
        if left >= free_from:
            canvas.text((left, rates.top - 5), words, size=11)
            free_from = left + width + 8


def _draw_counts(canvas: Canvas, figures: WeekFigures, plot: Area) -> None:
    canvas.text((plot.left, plot.top - 8), tr("Ratings a week"), size=11)
    top = round_top(max(1, *(week.rate.ratings if week.rate else 0 for week in figures.weeks), 0), whole=True)
    step = plot.width / len(figures.weeks)
    canvas.line((plot.left, plot.bottom), (plot.right, plot.bottom), SOFT, 1.25)
    canvas.text((plot.left - 8, plot.top + 4), amount(round(top)), size=11, align="right")
    for position, week in enumerate(figures.weeks):
        if week.rate is None:
            continue
        height = plot.height * week.rate.ratings / top
        width = min(step * 0.58, 26)
        x = _centre(plot, figures, position)
        canvas.box(Area(x - width / 2, plot.bottom - height, width, height), fill=BLUE)


def _name_weeks(canvas: Canvas, figures: WeekFigures, plot: Area) -> None:
    """Name as many weeks as there is room for, the latest first."""
    free_to = plot.right + 1
    for position in range(len(figures.weeks) - 1, -1, -1):
        words = monday(figures.weeks[position])
        half = text_width(words, 11) / 2
        at = min(max(_centre(plot, figures, position), plot.left + half), plot.right - half)
        if at + half <= free_to:
            canvas.text((at, plot.bottom + 17), words, size=11, align="middle")
            free_to = at - half - 14
