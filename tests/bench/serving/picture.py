"""A run as a picture: how many times as fast as each other server, on a logarithmic scale, in plain SVG.

Readable on light and on dark pages; Okabe and Ito's colours (https://jfly.uni-koeln.de/color/), and every bar
carries its server's name, so that nothing depends on telling colours apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from tests.bench.serving.results import Results, Row, Section

WIDTH, LEFT, RIGHT = 760, 110, 190
TOP, LINE, GAP = 56, 24, 14
TICKS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
_SECTIONS: tuple[tuple[Section, str, str], ...] = (
    ("generate", "#E69F00", "transformers + PEFT"),
    ("llama.cpp", "#56B4E9", "llama.cpp"),
    ("vllm", "#009E73", "vLLM (CPU)"),
)
_STYLE = """<style>
text { font: 13px system-ui, sans-serif; fill: #24292f }
.title { font-size: 15px; font-weight: 600 }
.faint { fill: #57606a; font-size: 12px }
.grid { stroke: #8c959f; stroke-opacity: .35 }
.even { stroke: #24292f; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .faint { fill: #9da7b3 } .even { stroke: #e6edf3 }
}
</style>"""


def draw(results: Results) -> str:
    """Return the picture: a bar for each server and number of streams, from "as fast" to its ratio."""
    groups = [(colour, name, _fastest(results.section(section))) for section, colour, name in _SECTIONS]
    measured = [row.ratio for *_, rows in groups for row in rows if row.ratio]
    scale = _Scale(min([*measured, 0.5]), max([*measured, 2.0]))
    parts, y = [], TOP
    for colour, name, rows in groups:
        for row in rows:
            parts.append(_bar(row, name, colour, y, scale))
            y += LINE
        y += GAP
    height = y + 48
    title = "Tokens per processor second, Strop over others (1 = as fast)"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}">'
    )
    foot = [
        f'<text class="faint" x="16" y="{height - 28 + 18 * line}">{escape(text)}</text>'
        for line, text in enumerate((results.setting, f"{results.machine['processor']}, {results.date}"))
    ]
    heading = f'<text class="title" x="16" y="24">{escape(title)}</text>'
    return "\n".join([head, _STYLE, heading, *_grid(scale, y), *parts, *foot, "</svg>"]) + "\n"


class _Scale:
    """Maps ratios to pixels, logarithmically: twice as fast and half as fast are equally far from 1."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low / 1.15, high * 1.15

    def x(self, ratio: float) -> float:
        """Return the place of a ratio."""
        share = math.log(ratio / self.low) / math.log(self.high / self.low)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def ticks(self) -> list[float]:
        """Return the round ratios that are in sight."""
        return [tick for tick in TICKS if self.low <= tick <= self.high]


def _grid(scale: _Scale, bottom: int) -> list[str]:
    lines = []
    for tick in scale.ticks():
        x, kind = scale.x(tick), "even" if tick == 1.0 else "grid"
        lines.append(f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 10}" y2="{bottom - GAP}"/>')
        lines.append(f'<text class="faint" x="{x:.1f}" y="{TOP - 15}" text-anchor="middle">{tick:g}x</text>')
    return lines


def _bar(row: Row, name: str, colour: str, y: int, scale: _Scale) -> str:
    label = f'<text x="16" y="{y + 15}">{escape(row.case)}</text>'
    if row.ratio is None:
        text = f"{name}: {row.reason}"
        return f'{label}<text class="faint" x="{scale.x(1.0) + 8:.1f}" y="{y + 15}">{escape(text)}</text>'
    even, end = scale.x(1.0), scale.x(row.ratio)
    left, width = min(even, end), max(abs(end - even), 1.0)
    beside = f'<text x="{max(even, end) + 8:.1f}" y="{y + 15}">{row.ratio:.2f} {escape(name)}</text>'
    return (
        f'{label}<rect x="{left:.1f}" y="{y + 3}" width="{width:.1f}" height="{LINE - 8}" rx="2" '
        f'fill="{colour}"/>{beside}'
    )


def _fastest(rows: Sequence[Row]) -> list[Row]:
    """Of several ways to run the same server, keep the fastest in each case."""
    best: dict[str, Row] = {}
    for row in rows:
        if row.case not in best or (row.theirs or 0.0) > (best[row.case].theirs or 0.0):
            best[row.case] = row
    return list(best.values())
