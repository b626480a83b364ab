"""The report's charts as inline SVG: a loss curve, and intervals around zero."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT, EDGE = 640, 140, 36


def curve(losses: Sequence[float]) -> str:
    """Return the loss by step."""
    if len(losses) < 2:
        return ""
    low, high = min(losses), max(losses)
    span = (high - low) or 1.0
    points = " ".join(
        f"{EDGE + (WIDTH - 2 * EDGE) * at / (len(losses) - 1):.1f},"
        f"{EDGE / 2 + (HEIGHT - EDGE) * (1 - (loss - low) / span):.1f}"
        for at, loss in enumerate(losses)
    )
    bottom = HEIGHT - EDGE / 2
    label = f"loss by step, {losses[0]:.2f} to {losses[-1]:.2f}"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
        f'<line class="axis" x1="{EDGE}" x2="{WIDTH - EDGE}" y1="{bottom}" y2="{bottom}"/>'
        f'<text x="{EDGE - 4}" y="{EDGE / 2 + 4}" text-anchor="end">{high:.2f}</text>'
        f'<text x="{EDGE - 4}" y="{bottom}" text-anchor="end">{low:.2f}</text>'
        f'<text x="{WIDTH - EDGE}" y="{HEIGHT - 4}" text-anchor="end">step {len(losses)}</text>'
        f'<polyline class="curve" points="{points}"/></svg>'
    )


def intervals(found: Sequence[tuple[str, float, float, float]]) -> str:
    """Return (name, value, low, high) as dots with their intervals on one axis with a line at zero."""
    low = min(0.0, *(each[2] for each in found))
    high = max(0.0, *(each[3] for each in found))
    span = (high - low) or 1.0

    def x(value: float) -> float:
        return EDGE + (WIDTH - 2 * EDGE) * (value - low) / span

    height = 44 * len(found) + 28
    parts = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="scores with their intervals">']
    parts.append(f'<line class="zero" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="4" y2="{height - 20}"/>')
    parts.append(f'<text x="{x(0):.1f}" y="{height - 6}" text-anchor="middle">0</text>')
    for number, (name, value, left, right) in enumerate(found):
        y = 44 * number + 32
        parts += [
            f'<text x="{EDGE}" y="{y - 14}">{escape(name)}</text>',
            f'<line class="span" x1="{x(left):.1f}" x2="{x(right):.1f}" y1="{y}" y2="{y}"/>',
            f'<circle class="dot" cx="{x(value):.1f}" cy="{y}" r="5"/>',
        ]
    return "".join([*parts, "</svg>"])
