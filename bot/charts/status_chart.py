"""The picture of /status: how far it is to the next run, and how long people wait for the first word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bot.charts.axes import amount, round_top
from bot.charts.canvas import (
    BLUE,
    EDGE,
    GROUND,
    INK,
    ORANGE,
    RULE,
    SOFT,
    WIDTH,
    Area,
    Canvas,
    shorten_to_width,
    text_width,
)
from bot.charts.picture import Picture
from bot.language.durations import short_time
from bot.language.texts import number, tr
from storage.chat.latency import Speed

_EDGE = 18
_ROW = 25
# Between a bar and its numbers: room for the check mark.
_TICK = 30
_IN_MINUTES_MS = 120_000
# Shorter than this is 0.0 s where it is written.
_LEAST_SHOWN_MS = 50


@dataclass(frozen=True, slots=True)
class Need:
    """Something that a run needs: how much of it there is, and how much there must be."""

    name: str
    have: int
    least: int

    @property
    def met(self) -> bool:
        """Whether there is enough."""
        return self.have >= self.least


@dataclass(frozen=True, slots=True)
class LoopFigures:
    """What /status shows: `next_run` and `traffic` are phrases; `running` is a run's progress, 0 to 1."""

    needs: Sequence[Need]
    next_run: str
    speed: Speed
    traffic: str
    running: Need | None = None


def draw(figures: LoopFigures) -> Picture:
    """Draw the card."""
    rows = [*figures.needs, *([figures.running] if figures.running else [])]
    split = 44 + _ROW * len(rows) + 10
    canvas = Canvas(split + 178)
    canvas.heading(Area(_EDGE, 30, WIDTH - 2 * _EDGE, 0), tr("Next run"), figures.next_run, whole=False)
    name_width = min(max(text_width(need.name) for need in rows), 190.0)
    left = _EDGE + name_width + 14
    amounts_width = max(text_width(_amount(need), bold=True) for need in rows)
    for position, need in enumerate(rows):
        row = Area(left, 44 + _ROW * position, WIDTH - _EDGE - _TICK - amounts_width - left, _ROW)
        _draw_need(canvas, need, row, name_width, percent=need is figures.running)
    canvas.line((_EDGE, split), (WIDTH - _EDGE, split), RULE)
    _draw_speed(canvas, figures, split)
    return Picture("strop-status", canvas.png(), alt_text(figures))


def alt_text(figures: LoopFigures) -> str:
    """Say what the picture shows."""
    words = [f"{tr('Next run')}: {figures.next_run}."]
    words += [f"{need.name}: {_amount(need)}." for need in figures.needs]
    words += [speed_text(figures.speed), f"{figures.traffic}."]
    return " ".join(words)


def speed_text(speed: Speed) -> str:
    """Say how long people waited in one sentence."""
    hours = len(speed.hours)
    if speed.whole is None:
        return tr("Nobody asked anything in the last {hours} hours.", hours=hours)
    if speed.whole.replies == 1:
        return tr(
            "The only reply in {hours} hours had its first word within {median} and was done within {done}.",
            hours=hours,
            median=short_time(speed.whole.median_ms),
            done=short_time(speed.done_ms or 0),
        )
    queued_ms = speed.queued_ms or 0
    queue = tr("Half of them waited up to {queued} for their turn.", queued=short_time(queued_ms))
    said = tr(
        "Half of {count} replies in {hours} hours had their first word within {median} and were done within "
        "{done}; 95 % had their first word within {slow}.",
        count=speed.whole.replies,
        hours=hours,
        median=short_time(speed.whole.median_ms),
        done=short_time(speed.done_ms or 0),
        slow=short_time(speed.whole.slow_ms),
    )
    return f"{said} {queue}" if queued_ms >= _LEAST_SHOWN_MS else said


def _amount(need: Need) -> str:
    return tr("{have}, needed: {least}", have=amount(need.have), least=amount(need.least))


# ----------------------------------------------------------------------------------------------- the next run
def _draw_need(canvas: Canvas, need: Need, row: Area, name_width: float, *, percent: bool) -> None:
    """One row: its name, a bar that is full at what is needed (then with a check mark), the numbers.

    `row` is where the bar stands.
    """
    middle = row.top + row.height / 2
    canvas.text((_EDGE, middle + 4.5), shorten_to_width(need.name, name_width), color=INK)
    numbers = number(need.have / need.least, ".0%") if percent else _amount(need)
    right = row.left + row.width
    track = Area(row.left, middle - 5, row.width, 10)
    canvas.box(track, fill=GROUND, outline=EDGE, width=1, radius=5)
    share = min(need.have / need.least, 1.0) if need.least else 1.0
    if share:
        # A little is never nothing: the bar's round ends need their own width.
        canvas.box(Area(track.left, track.top, max(track.width * share, 10), 10), fill=BLUE, radius=5)
    if need.met and not percent:
        canvas.tick((right + 14, middle), BLUE)
    canvas.text((WIDTH - _EDGE, middle + 4.5), numbers, color=INK, bold=need.met, align="right")


# -------------------------------------------------------------------------------------------------- the speed
def _draw_speed(canvas: Canvas, figures: LoopFigures, top: float) -> None:
    speed = figures.speed
    hours = len(speed.hours)
    key_left = _speed_key(canvas, figures, top + 26)
    more = tr("the last {count} hours", count=hours)
    canvas.heading(Area(_EDGE, top + 26, key_left - _EDGE, 0), tr("Time to the first word"), more)
    canvas.text((_EDGE, top + 46), shorten_to_width(figures.traffic, WIDTH - 2 * _EDGE, 12), size=12)
    slowest = max((wait.slow_ms for wait in speed.hours if wait), default=0)
    unit_ms, unit = (60_000, "min") if slowest >= _IN_MINUTES_MS else (1_000, "s")
    end = round_top(slowest / unit_ms)
    inset = max(text_width(f"{number(end / 2)} {unit}", 11), text_width(f"{number(end)} {unit}", 11)) + 8
    plot = Area(_EDGE + inset, top + 62, WIDTH - 2 * _EDGE - inset, 86)
    for share in (0.0, 0.5, 1.0) if slowest else (0.0,):
        y = plot.bottom - plot.height * share
        canvas.line((plot.left, y), (plot.right, y), SOFT if share == 0 else RULE, 1.25 if share == 0 else 1)
        if slowest:
            canvas.text((plot.left - 8, y + 4), f"{number(end * share)} {unit}", size=11, align="right")
    step = plot.width / hours
    for position, wait in enumerate(speed.hours):
        if wait is None:
            continue
        x = plot.left + step * (position + 0.5)
        slow, median = (
            plot.bottom - plot.height * ms / unit_ms / end for ms in (wait.slow_ms, wait.median_ms)
        )
        canvas.line((x, median), (x, slow), ORANGE, 2)
        canvas.line((x - 4, slow), (x + 4, slow), ORANGE, 2)
        canvas.disc((x, median), 4, BLUE)
    if speed.whole is None:
        words = tr("Nobody asked anything in the last {hours} hours.", hours=hours)
        canvas.text((plot.left + plot.width / 2, plot.top + plot.height / 2 + 4), words, align="middle")
    _name_hours(canvas, hours, plot)


def _speed_key(canvas: Canvas, figures: LoopFigures, baseline: float) -> float:
    """Name the two marks with the figures of all hours, at the right; return where that begins."""
    whole = figures.speed.whole
    if whole is None:
        return WIDTH - _EDGE
    slow = tr("95 % within {time}", time=short_time(whole.slow_ms))
    median = tr("median {time}", time=short_time(whole.median_ms))
    right: float = WIDTH - _EDGE
    canvas.text((right, baseline), slow, size=12, color=INK, align="right")
    right -= text_width(slow, 12) + 12
    canvas.line((right + 2, baseline - 9), (right + 2, baseline + 1), ORANGE, 2)
    canvas.line((right - 2, baseline - 9), (right + 6, baseline - 9), ORANGE, 2)
    right -= 14
    canvas.text((right, baseline), median, size=12, color=INK, align="right")
    left = right - text_width(median, 12) - 9
    canvas.disc((left, baseline - 4.5), 4, BLUE)
    return left - 4


def _name_hours(canvas: Canvas, hours: int, plot: Area) -> None:
    for share in (0.0, 0.5, 1.0):
        ago = round(hours * (1 - share))
        words = tr("{count} h ago", count=ago) if ago else tr("now")
        at = (plot.left + plot.width * share, plot.bottom + 17)
        canvas.text(at, words, size=11, align="left" if share == 0 else "right" if share == 1 else "middle")
