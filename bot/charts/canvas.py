"""A card to draw on, in points: forms are drawn larger and scaled down, text is set at its final size."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

Align = Literal["left", "middle", "right"]
Point = tuple[float, float]

#: Discord shows a picture at most 550 points wide and 350 high; sharp screens have two pixels a point.
WIDTH = 550
SCALE = 2
#: Forms are drawn this much larger still and averaged: Pillow doesn't smooth edges by itself.
_FINER = 2
_RADIUS = 10

GROUND = "#1f2226"
EDGE = "#565d66"
RULE = "#3d434b"
INK = "#f2f4f6"
SOFT = "#c0c7cf"
BLUE = "#56b4e9"
ORANGE = "#e69f00"

_FONTS = Path(__file__).parent / "fonts"
# Digits of one width, for numbers that stand below each other.
_TABULAR = ["tnum"]


@dataclass(frozen=True, slots=True)
class Area:
    """A rectangle in points."""

    left: float
    top: float
    width: float
    height: float

    @property
    def right(self) -> float:
        """The right edge."""
        return self.left + self.width

    @property
    def bottom(self) -> float:
        """The lower edge."""
        return self.top + self.height


class Canvas:
    """One card. Everything is in points from its upper left corner; text stands above all forms."""

    def __init__(self, height: float) -> None:
        self.height = round(height)
        pixels = (WIDTH * SCALE * _FINER, self.height * SCALE * _FINER)
        self._forms = Image.new("RGB", pixels, GROUND)
        self._draw = ImageDraw.Draw(self._forms)
        self._texts: list[tuple[float, float, str, float, str, bool]] = []
        self.box(self._card, outline=EDGE, width=1, radius=_RADIUS)

    @property
    def _card(self) -> Area:
        return Area(0, 0, WIDTH, self.height)

    def line(self, start: Point, end: Point, color: str, width: float = 1, dash: float | None = None) -> None:
        """Draw a straight line; `dash` is the length of its pieces and gaps."""
        if dash is None:
            self._draw.line([*_scaled(start), *_scaled(end)], fill=color, width=_thick(width))
            return
        for piece in _pieces(start, end, dash):
            self.line(*piece, color, width)

    def box(
        self,
        area: Area,
        *,
        fill: str | None = None,
        outline: str | None = None,
        width: float = 1,
        radius: float = 0,
    ) -> None:
        """Draw a rectangle."""
        left, top = _scaled((area.left, area.top))
        right, bottom = _scaled((area.right, area.bottom))
        # Pillow counts the last pixel in.
        corners = [left, top, max(right - 1, left), max(bottom - 1, top)]
        # Of what is thinner than two radii only half its size is rounded.
        rounding = min(radius, area.width / 2, area.height / 2) * SCALE * _FINER
        self._draw.rounded_rectangle(corners, rounding, fill, outline, _thick(width) if outline else 0)

    def hatch(self, area: Area, color: str, gap: float = 3.5) -> None:
        """Draw a rectangle of slanting stripes with an outline: it is told from a full one without colour."""
        width, height = max(_thick(area.width), 1), max(_thick(area.height), 1)
        stripes = Image.new("L", (width, height))
        draw = ImageDraw.Draw(stripes)
        for offset in range(-height, width, _thick(gap)):
            draw.line([offset, height, offset + height, 0], fill=255, width=_thick(1.2))
        self._forms.paste(color, _whole((area.left, area.top)), stripes)
        self.box(area, outline=color, width=1.2)

    def disc(self, centre: Point, radius: float, fill: str, outline: str | None = None) -> None:
        """Draw a disc, or with an outline a ring around it."""
        x, y = _scaled(centre)
        reach = radius * SCALE * _FINER
        self._draw.ellipse(
            [x - reach, y - reach, x + reach, y + reach], fill, outline, _thick(2) if outline else 0
        )

    def diamond(self, centre: Point, radius: float, fill: str) -> None:
        """Draw a square that stands on its corner."""
        x, y = centre
        self.shape([(x, y - radius), (x + radius, y), (x, y + radius), (x - radius, y)], fill)

    def shape(self, corners: Sequence[Point], fill: str) -> None:
        """Draw a filled polygon."""
        self._draw.polygon([_scaled(corner) for corner in corners], fill)

    def tick(self, at: Point, color: str) -> None:
        """Draw a check mark whose middle is at a point."""
        x, y = at
        corners = [_scaled(corner) for corner in ((x - 4, y), (x - 1, y + 3), (x + 4.5, y - 4))]
        self._draw.line([value for corner in corners for value in corner], color, _thick(2), joint="curve")

    def text(
        self,
        at: Point,
        words: str,
        *,
        size: float = 13,
        color: str = SOFT,
        bold: bool = False,
        align: Align = "left",
    ) -> None:
        """Set words on a baseline."""
        back = {"left": 0.0, "middle": 0.5, "right": 1.0}[align] * text_width(words, size, bold)
        self._texts.append((at[0] - back, at[1], words, size, color, bold))

    def heading(self, room: Area, words: str, more: str, *, whole: bool = True) -> None:
        """Set a heading and what qualifies it; `more` that doesn't fit is left out, or cut if not `whole`."""
        self.text((room.left, room.top), words, size=15, color=INK, bold=True)
        left = room.left + text_width(words, 15, bold=True) + 8
        fits = shorten_to_width(more, room.right - left - 12, 11.5)
        if fits == more or not whole:
            self.text((left, room.top), fits, size=11.5)

    def png(self) -> bytes:
        """Return the finished picture."""
        drawn = self._forms.reduce(_FINER)
        draw = ImageDraw.Draw(drawn)
        for left, baseline, words, size, color, bold in self._texts:
            x = left * SCALE
            for run, font in _runs(words, size, bold):
                draw.text((x, baseline * SCALE), run, color, font, anchor="ls", features=_features(run))
                x += font.getlength(run, features=_features(run))
        drawn.putalpha(self._corners())
        # The encoder holds the interpreter; a palette, enough for flat colours, takes a quarter of the time.
        few = drawn.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        file = io.BytesIO()
        few.save(file, "PNG")
        return file.getvalue()

    def _corners(self) -> Image.Image:
        """Return the card's opacity: nothing shows outside its round corners."""
        mask = Image.new("L", self._forms.size)
        corners = [0, 0, self._forms.width - 1, self._forms.height - 1]
        ImageDraw.Draw(mask).rounded_rectangle(corners, _RADIUS * SCALE * _FINER, 255)
        return mask.reduce(_FINER)


def text_width(words: str, size: float = 13, bold: bool = False) -> float:
    """Return how wide words will be, in points."""
    runs = _runs(words, size, bold)
    return sum(font.getlength(run, features=_features(run)) for run, font in runs) / SCALE


def shorten_to_width(words: str, width: float, size: float = 13, bold: bool = False) -> str:
    """Return the words, shortened with an ellipsis where they are wider than `width` points."""
    if text_width(words, size, bold) <= width:
        return words
    kept = words
    while kept and text_width(f"{kept}…", size, bold) > width:
        kept = kept[:-1].rstrip()
    return f"{kept}…"


def _runs(words: str, size: float, bold: bool) -> Iterator[tuple[str, ImageFont.FreeTypeFont]]:
    """Split words into runs of one font: Inter, and Noto for what Inter doesn't have."""
    for japanese, run in groupby(words, lambda character: ord(character) >= 0x3000):
        name = "NotoSansJP-Medium" if japanese else "Inter-SemiBold" if bold else "Inter-Regular"
        yield "".join(run), _font(name, round(size * SCALE))


def _features(run: str) -> list[str]:
    """Between letters digits (and hyphens, which would get a digit's width too) keep their own widths."""
    return [] if any(character.isalpha() for character in run) else _TABULAR


@cache
def _font(name: str, pixels: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(_FONTS / f"{name}.ttf", pixels)


def _scaled(point: Point) -> Point:
    return point[0] * SCALE * _FINER, point[1] * SCALE * _FINER


def _whole(point: Point) -> tuple[int, int]:
    x, y = _scaled(point)
    return round(x), round(y)


def _thick(points: float) -> int:
    return round(points * SCALE * _FINER)


def _pieces(start: Point, end: Point, dash: float) -> Iterator[tuple[Point, Point]]:
    (x, y), (right, bottom) = start, end
    length = ((right - x) ** 2 + (bottom - y) ** 2) ** 0.5
    for number in range(0, int(length // dash) + 1, 2):
        shares = [min(each * dash / length, 1.0) for each in (number, number + 1)]
        first, last = ((x + (right - x) * share, y + (bottom - y) * share) for share in shares)
        yield first, last
