"""Utility by round as a small SVG, readable on light and dark pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 48, 96, 32, 36
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#57606a}.grid{stroke:#8884}.line{fill:none;stroke-width:2}"
    "@media(prefers-color-scheme:dark){text{fill:#c9d1d9}}"
)
REFERENCES = (("optimum", "#2da44e"), ("oracle", "#bf8700"), ("base", "#8c959f"))
COLOR = "#5865f2"
ROW = 26
NAMES = 150


@dataclass(frozen=True)
class Point:
    """The champion's utility after a round (0: the base before any), beside what it is compared with."""

    round: int
    utility: float
    low: float
    high: float
    base: float
    oracle: float
    optimum: float


def plotted(title: str, points: Sequence[Point]) -> str:
    """Return the plot as one SVG document."""
    last = max((point.round for point in points), default=0) or 1

    def x(number: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * number / last

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - min(1.0, max(0.0, value)))

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<style>{STYLE}</style><title>{escape(title)}: utility by round</title>",
        f'<text x="{LEFT}" y="18">{escape(title)}: utility of the champion by round, 95 % interval</text>',
    ]
    for tenth in range(0, 11, 2):
        at = y(tenth / 10)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{tenth / 10:.1f}</text>')
    parts += [
        f'<text x="{x(point.round):.1f}" y="{HEIGHT - 12}" text-anchor="middle">{point.round}</text>'
        for point in points
    ]
    if points:
        parts += _references(points, x, y) + _champion(points, x, y)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _references(
    points: Sequence[Point], x: Callable[[float], float], y: Callable[[float], float]
) -> list[str]:
    parts = []
    for name, color in REFERENCES:
        path = " ".join(f"{x(point.round):.1f},{y(getattr(point, name)):.1f}" for point in points)
        end = y(getattr(points[-1], name))
        parts.append(f'<polyline class="line" stroke="{color}" stroke-dasharray="4 4" points="{path}"/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 8}" y="{end + 4:.1f}">{_LABELS[name]}</text>')
    return parts


def _champion(points: Sequence[Point], x: Callable[[float], float], y: Callable[[float], float]) -> list[str]:
    path = " ".join(f"{x(point.round):.1f},{y(point.utility):.1f}" for point in points)
    parts = [f'<polyline class="line" stroke="{COLOR}" points="{path}"/>']
    for point in points:
        at = f"{x(point.round):.1f}"
        parts.append(
            f'<line x1="{at}" x2="{at}" y1="{y(point.low):.1f}" y2="{y(point.high):.1f}" stroke="{COLOR}"/>'
        )
        parts.append(f'<circle cx="{at}" cy="{y(point.utility):.1f}" r="4" fill="{COLOR}"/>')
    return parts


def compared(title: str, rows: Sequence[tuple[str, Point]]) -> str:
    """Return one line a history: its base, best of four and optimum, and its champion with its interval."""
    height = TOP + ROW * len(rows) + BOTTOM

    def x(value: float) -> float:
        return NAMES + (WIDTH - NAMES - 24) * min(1.0, max(0.0, value))

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<style>{STYLE}</style><title>{escape(title)}: utility by history</title>",
        f'<text x="8" y="18">{escape(title)}: utility of the champion, 95 % interval;</text>',
        *_legend(),
    ]
    for tenth in range(0, 11, 2):
        at = f"{x(tenth / 10):.1f}"
        parts.append(f'<line class="grid" x1="{at}" x2="{at}" y1="{TOP}" y2="{height - BOTTOM}"/>')
        parts.append(f'<text x="{at}" y="{height - 12}" text-anchor="middle">{tenth / 10:.1f}</text>')
    for number, (name, point) in enumerate(rows):
        y = f"{TOP + ROW * (number + 0.5):.1f}"
        parts.append(f'<text x="{NAMES - 12}" y="{float(y) + 4:.1f}" text-anchor="end">{escape(name)}</text>')
        parts += [
            f'<circle cx="{x(getattr(point, key)):.1f}" cy="{y}" r="4" fill="{color}"/>'
            for key, color in REFERENCES
        ]
        parts.append(
            f'<line x1="{x(point.low):.1f}" x2="{x(point.high):.1f}" y1="{y}" y2="{y}" stroke="{COLOR}"/>'
        )
        parts.append(f'<circle cx="{x(point.utility):.1f}" cy="{y}" r="5" fill="{COLOR}"/>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _legend() -> list[str]:
    return [
        f'<text x="{360 + 90 * number}" y="18" style="fill:{color}">{_LABELS[name]}</text>'
        for number, (name, color) in enumerate(REFERENCES)
    ]


_LABELS = {"optimum": "optimum", "oracle": "best of 4", "base": "base"}
