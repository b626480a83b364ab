"""The report's charts: intervals around zero, and a loss curve. Their text is the page's, at its own size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from trainer.report.parts import number, small


@dataclass(frozen=True)
class Span:
    """A difference with its interval; `note` says what it was measured on."""

    name: str
    value: float
    low: float
    high: float
    note: str = ""

    @property
    def reach(self) -> float:
        """Return how far it comes from zero."""
        return max(abs(self.low), abs(self.high))

    @property
    def sure(self) -> str:
        """Return what it shows: "good" all above zero, "bad" all below, else nothing."""
        return "good" if self.low > 0 else "bad" if self.high < 0 else ""


def intervals(spans: Sequence[Span], *, one_scale: bool) -> str:
    """Return differences under each other, zero in the middle of all; each on its own scale if not on one."""
    widest = max((span.reach for span in spans), default=0.0)
    rows = [_row(span, widest if one_scale else span.reach) for span in spans]
    ends = '<div class="span ends"><p></p><div class="track">'
    ends += "<span>worse</span><span>0</span><span>better</span></div><p></p></div>"
    return f'<div class="spans">{"".join(rows)}{ends}</div>'


def _row(span: Span, scale: float) -> str:
    def at(value: float) -> float:
        # A little room at both ends, so that no interval touches an edge.
        return 50 + 47 * value / (scale or 1.0)

    value, interval = number(span.value, "+.3f"), f"{number(span.low, '.3f')} to {number(span.high, '.3f')}"
    return (
        f'<div class="span {span.sure}"><p>{escape(span.name)}{small(span.note)}</p>'
        f'<div class="track" role="img" aria-label="{value}, {interval}">'
        f'<i class="reach" style="left:{at(span.low):.1f}%;right:{100 - at(span.high):.1f}%"></i>'
        f'<i class="dot" style="left:{at(span.value):.1f}%"></i></div>'
        f'<p class="figures"><b>{value}</b> <span class="soft">{interval}</span></p></div>'
    )


def curve(title: str, note: str, losses: Sequence[float]) -> str:
    """Return the loss by step under what was trained; only the words where there is no line to draw."""
    head = f"<figcaption>{escape(title)}<small>{escape(note)}</small></figcaption>"
    if len(losses) < 2:
        return f"<figure>{head}</figure>"
    low, high = min(losses), max(losses)
    span = (high - low) or 1.0
    points = " ".join(
        f"{100 * step / (len(losses) - 1):.1f},{100 * (high - loss) / span:.1f}"
        for step, loss in enumerate(losses)
    )
    label = f"loss by step, {losses[0]:.2f} to {losses[-1]:.2f}"
    return (
        f'<figure>{head}<div class="plot"><p><span>{high:.2f}</span><span>{low:.2f}</span></p>'
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="{label}">'
        f'<polyline points="{points}"/></svg>'
        f"<p></p><p><span>step 1</span><span>{len(losses)}</span></p></div></figure>"
    )
