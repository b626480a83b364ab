"""The picture of /stats: ratings by day, and how each adapter's replies were rated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from bot.charts.axes import amount, round_top, short_names
from bot.charts.canvas import BLUE, INK, ORANGE, RULE, SOFT, WIDTH, Area, Canvas, shorten_to_width, text_width
from bot.charts.picture import Picture
from bot.language.texts import number, tr
from storage.feedback.rating_statistics import AdapterShare, Day, Votes

# More would make the picture so high that Discord shows it small: six rows, three of those with votes.
_ROWS_HEIGHT = 134
_EDGE = 18
_DAYS_HEIGHT = 124
_ROW = 22
_VOTES_ROW = 15


@dataclass(frozen=True, slots=True)
class RatingFigures:
    """What /stats shows. `changes` says from which day on which adapter answers (None: the base model)."""

    days: Sequence[Day]
    shares: Sequence[AdapterShare]
    share_days: int
    champion_id: str | None = None
    changes: Mapping[int, str | None] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """Whether nobody has rated anything."""
        return not self.shares and not any(day.liked or day.disliked for day in self.days)


def draw(figures: RatingFigures) -> Picture:
    """Draw the card; its height follows the number of adapters."""
    shown = _shown(figures.shares)
    below = 64 + sum(_row_height(each) for each in shown) if shown else 0
    canvas = Canvas(58 + _DAYS_HEIGHT + 26 + below)
    names = short_names(
        [each.adapter_id for each in figures.shares if each.adapter_id]
        + [each for each in figures.changes.values() if each]
    )
    _draw_days(canvas, figures, names)
    if shown:
        _draw_shares(canvas, figures, shown, names, top=58 + _DAYS_HEIGHT + 26)
    return Picture("strop-stats", canvas.png(), alt_text(figures))


def alt_text(figures: RatingFigures) -> str:
    """Say what the picture shows."""
    days = figures.days
    words = [
        tr(
            "Ratings of the last {days} days: {liked} liked, {disliked} disliked.",
            days=len(days),
            liked=sum(day.liked for day in days),
            disliked=sum(day.disliked for day in days),
        )
    ]
    if figures.shares:
        words.append(tr("Share of ratings that like, by adapter, with 95 % intervals:"))
        shown = _shown(figures.shares)
        words += [
            f"{display_name(each.adapter_id)} {_percent(each.share)} {_interval(each)}." for each in shown
        ]
        words += [
            f"{display_name(each.adapter_id)}: {votes_text(each.votes)}." for each in shown if each.votes
        ]
    return " ".join(words)


def share_line(each: AdapterShare) -> str:
    """Return an adapter's share as a line of text whose numbers stand below each other."""
    width = len(_percent(1))
    share, low, high = (_percent(end).rjust(width) for end in (each.share, *each.interval))
    interval = tr("{low} to {high}", low=low, high=high)
    count = tr("of {count}", count=each.ratings)
    votes = f" · {votes_text(each.votes)}" if each.votes else ""
    return f"`{share} ({interval})` {count} · {display_name(each.adapter_id)}{votes}"


def votes_text(votes: Votes) -> str:
    """Say how many votes an adapter won against others, with the interval."""
    low, high = map(_percent, votes.interval)
    return tr(
        "{won} of {count} votes won ({low} to {high})", won=votes.won, count=votes.count, low=low, high=high
    )


def display_name(adapter_id: str | None, names: Mapping[str, str] | None = None) -> str:
    """Return an adapter's name, or that of the base model."""
    if adapter_id is None:
        return tr("base model")
    return adapter_id if names is None else names[adapter_id]


def _percent(share: float) -> str:
    return number(share, ".0%")


# ---------------------------------------------------------------------------------------------- ratings a day
def _draw_days(canvas: Canvas, figures: RatingFigures, names: Mapping[str, str]) -> None:
    days = figures.days
    liked, disliked = sum(day.liked for day in days), sum(day.disliked for day in days)
    key_left = _key(canvas, 30, liked, disliked)
    more = tr("the last {count} days", count=len(days))
    canvas.heading(Area(_EDGE, 30, key_left - _EDGE, 0), tr("Ratings a day"), more)
    top = round_top(max(1, *(max(day.liked, day.disliked) for day in days)), whole=True)
    inset = max(text_width(amount(round(top)), 11) + 8, 30)
    plot = Area(_EDGE + inset, 62, WIDTH - 2 * _EDGE - inset, _DAYS_HEIGHT - 8)
    middle = plot.top + plot.height / 2
    unit = plot.height / 2 / top
    for count in (top, top / 2, 0, -top / 2, -top):
        y = middle - count * unit
        canvas.line((plot.left, y), (plot.right, y), SOFT if count == 0 else RULE, 1.25 if count == 0 else 1)
        if count in (top, 0, -top):
            canvas.text((plot.left - 8, y + 4), amount(round(abs(count))), size=11, align="right")
    step = plot.width / len(days)
    for position, day in enumerate(days):
        centre = plot.left + step * (position + 0.5)
        width = min(step * 0.58, 26)
        if day.liked:
            canvas.box(
                Area(centre - width / 2, middle - day.liked * unit, width, day.liked * unit), fill=BLUE
            )
        if day.disliked:
            canvas.hatch(Area(centre - width / 2, middle, width, day.disliked * unit), ORANGE)
    _mark_changes(canvas, figures, names, plot)
    _name_days(canvas, days, plot)


def _key(canvas: Canvas, baseline: float, liked: int, disliked: int) -> float:
    """Name the two kinds of bars with their totals, at the right; return where that begins."""
    right: float = WIDTH - _EDGE
    down, up = tr("{count} disliked", count=amount(disliked)), tr("{count} liked", count=amount(liked))
    canvas.text((right, baseline), down, color=INK, align="right")
    right -= text_width(down) + 17
    canvas.hatch(Area(right, baseline - 10, 11, 11), ORANGE)
    right -= 14
    canvas.text((right, baseline), up, color=INK, align="right")
    left = right - text_width(up) - 17
    canvas.box(Area(left, baseline - 10, 11, 11), fill=BLUE)
    return left


def _mark_changes(canvas: Canvas, figures: RatingFigures, names: Mapping[str, str], plot: Area) -> None:
    """Mark the days on which another adapter began to answer; names that would overlap are left out."""
    step = plot.width / len(figures.days)
    free_from = plot.left
    for position, day in enumerate(figures.days):
        if day.number not in figures.changes:
            continue
        x = plot.left + step * position
        canvas.line((x, plot.top - 15), (x, plot.bottom), SOFT, 1, dash=3)
        words = display_name(figures.changes[day.number], names)
        width = text_width(words, 11)
        left = x + 5 if x + 5 + width <= plot.right else x - 5 - width
        if left >= free_from:
            canvas.text((left, plot.top - 6), words, size=11)
            free_from = left + width + 8


def _name_days(canvas: Canvas, days: Sequence[Day], plot: Area) -> None:
    step = plot.width / len(days)
    baseline = plot.bottom + 17
    for position in range(len(days)):
        ago = len(days) - 1 - position
        if position and ago % 7:
            continue
        words = tr("{count} days ago", count=ago) if ago else tr("today")
        centre = plot.left + step * (position + 0.5)
        half = text_width(words, 11) / 2
        at = min(max(centre, plot.left + half), plot.right - half)
        canvas.text((at, baseline), words, size=11, align="middle")


# ------------------------------------------------------------------------------------- the share by adapter
def _draw_shares(
    canvas: Canvas,
    figures: RatingFigures,
    shown: Sequence[AdapterShare],
    names: Mapping[str, str],
    top: float,
) -> None:
    canvas.line((_EDGE, top - 1), (WIDTH - _EDGE, top - 1), RULE)
    key_left = _votes_key(canvas, top + 24) if any(each.votes for each in shown) else WIDTH - _EDGE
    scope = tr("the last {count} days, 95 % intervals", count=figures.share_days)
    canvas.heading(Area(_EDGE, top + 24, key_left - _EDGE, 0), tr("Share of ratings that like"), scope)
    plot = Area(170, top + 34, 232, sum(_row_height(each) for each in shown))
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = plot.left + plot.width * share
        canvas.line((x, plot.top), (x, plot.bottom), RULE, 1, dash=None if share in (0, 1) else 3)
        if share in (0.0, 0.5, 1.0):
            canvas.text((x, plot.bottom + 14), _percent(share), size=11, align="middle")
    row_top = plot.top
    for each in shown:
        row = Area(plot.left, row_top, plot.width, _row_height(each))
        name = display_name(each.adapter_id, names)
        _draw_share(canvas, each, name, row, answers=each.adapter_id == figures.champion_id)
        row_top = row.bottom


def _shown(shares: Sequence[AdapterShare]) -> list[AdapterShare]:
    """Return the adapters, latest rated first, that there is room for."""
    heights = accumulate(_row_height(each) for each in shares)
    return [each for each, height in zip(shares, heights, strict=True) if height <= _ROWS_HEIGHT]


def _row_height(each: AdapterShare) -> float:
    return _ROW + _VOTES_ROW if each.votes else _ROW


def _votes_key(canvas: Canvas, baseline: float) -> float:
    """Name the second mark, at the right; return where that begins."""
    words = tr("votes won")
    canvas.text((WIDTH - _EDGE, baseline), words, size=12, color=INK, align="right")
    left = WIDTH - _EDGE - text_width(words, 12) - 10
    canvas.diamond((left, baseline - 4.5), 5, ORANGE)
    return left - 5


def _draw_share(canvas: Canvas, each: AdapterShare, name: str, row: Area, *, answers: bool) -> None:
    """One row: intervals as lines, share as a disc, votes as a diamond; an arrow before who answers now."""
    middle = row.top + _ROW / 2
    if answers:
        canvas.shape([(_EDGE, middle - 5), (_EDGE + 8, middle), (_EDGE, middle + 5)], BLUE)
    words = shorten_to_width(name, row.left - _EDGE - 24, bold=answers)
    canvas.text((_EDGE + 14, middle + 4.5), words, color=INK if answers else SOFT, bold=answers)
    _draw_interval(canvas, row, middle, each.interval, BLUE)
    canvas.disc((row.left + row.width * each.share, middle), 4.5, INK, BLUE)
    canvas.text((row.right + 50, middle + 4.5), _percent(each.share), color=INK, bold=True, align="right")
    of = tr("of {count}", count=amount(each.ratings))
    canvas.text((WIDTH - _EDGE, middle + 4.5), of, align="right")
    if each.votes is None:
        return
    middle += _ROW / 2 + _VOTES_ROW / 2 - 3
    _draw_interval(canvas, row, middle, each.votes.interval, ORANGE)
    canvas.diamond((row.left + row.width * each.votes.share, middle), 5, ORANGE)
    canvas.text((row.right + 50, middle + 4), _percent(each.votes.share), size=11.5, align="right")
    of = tr("of {count}", count=amount(each.votes.count))
    canvas.text((WIDTH - _EDGE, middle + 4), of, size=11.5, align="right")


def _draw_interval(
    canvas: Canvas, row: Area, middle: float, interval: tuple[float, float], color: str
) -> None:
    low, high = (row.left + row.width * end for end in interval)
    canvas.line((low, middle), (high, middle), color, 3 if color == BLUE else 2)
    for end in (low, high):
        canvas.line((end, middle - 4), (end, middle + 4), color, 1.5)


def _interval(each: AdapterShare) -> str:
    low, high = each.interval
    return tr(
        "({low} to {high}, {count} ratings)",
        low=_percent(low),
        high=_percent(high),
        count=each.ratings,
    )
