"""Which files are pictures that the page may show in place: by their bytes, never by their names."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image

# An SVG can run scripts, and is no picture here.
_FORMATS = ("PNG", "JPEG", "GIF", "WEBP")


@dataclass(frozen=True, slots=True)
class PictureFile:
    """A picture's type and size in pixels, as Discord tells them."""

    content_type: str
    width: int
    height: int


def look(data: bytes) -> PictureFile | None:
    """Return what kind of picture the bytes are, or None; only their beginning is read."""
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as opened:
            return PictureFile(f"image/{(opened.format or '').lower()}", *opened.size)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
