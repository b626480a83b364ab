"""Pictures out of the files that come with a message: made small and plain, for a model that can see.

Whatever came is drawn anew: nothing of the file's own bytes, and nothing that it says of place and camera,
goes on. The bounds hold before anything is decoded.
"""

from __future__ import annotations

import base64
import io
import struct
import zlib
from pathlib import PurePosixPath

from bot.serving.protocol import MAX_PICTURE_SIDE

MAX_BYTES = 10 * 1024 * 1024
#: A photo of 24 megapixels takes 96 MB while it is drawn.
MAX_PIXELS = 24_000_000
#: Of one question.
MAX_PICTURES = 4
# Processors of vision models refuse what is smaller than one of their patches.
LEAST_SIDE = 32
QUALITY = 85

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
_TYPES = frozenset({"image/png", "image/jpeg", "image/webp", "image/gif"})
_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif"})
# What Pillow's readers raise at broken files.
_BROKEN = (
    *(OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, ArithmeticError, RuntimeError),
    *(zlib.error, struct.error),
)


class UnreadablePictureError(Exception):
    """The bytes are no picture of a known format, a broken one, or one of too many pixels."""


def most_at_once(picture_tokens: int, context_tokens: int) -> int:
    """Return how many pictures may go with a question, in half of the context; 0: the model sees none."""
    return min(MAX_PICTURES, context_tokens // 2 // picture_tokens) if picture_tokens else 0


def is_picture(content_type: str | None, filename: str) -> bool:
    """Whether a file calls itself a picture, as far as its type, or else its name, tells."""
    kind = (content_type or "").partition(";")[0].strip().lower()
    return kind in _TYPES or (not kind and PurePosixPath(filename.lower()).suffix in _SUFFIXES)


def draw(data: bytes) -> str:
    """Return the first frame as a data URL of a JPEG with at most `MAX_PICTURE_SIDE` pixels a side.

    Takes up to a second of processor time: never on the event loop.

    Raises:
        UnreadablePictureError: see there.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as opened:
            # The header alone is read so far. Modes of 16 and 32 bits a pixel have no agreed brightness.
            if opened.width * opened.height > MAX_PIXELS or opened.mode[0] in "IF":
                raise UnreadablePictureError(f"{opened.width} x {opened.height}, {opened.mode}")
            opened.draft("RGB", (MAX_PICTURE_SIDE, MAX_PICTURE_SIDE))
            mode = "RGBA" if opened.has_transparency_data else "RGB"
            picture: Image.Image = opened if opened.mode == mode else opened.convert(mode)
            picture.thumbnail((MAX_PICTURE_SIDE, MAX_PICTURE_SIDE), reducing_gap=2.0)
            picture = ImageOps.exif_transpose(picture)
            size = (max(picture.width, LEAST_SIDE), max(picture.height, LEAST_SIDE))
            plain = Image.new("RGB", size, "white")
            plain.paste(picture, mask=picture if picture.mode == "RGBA" else None)
            written = io.BytesIO()
            plain.save(written, "JPEG", quality=QUALITY)
    except (*_BROKEN, Image.DecompressionBombError) as error:
        raise UnreadablePictureError(type(error).__name__) from error
    return f"data:image/jpeg;base64,{base64.b64encode(written.getvalue()).decode()}"
