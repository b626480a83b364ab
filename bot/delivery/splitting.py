"""Split a reply into Discord messages without losing a character.

A message takes 2,000 characters. Cuts fall on paragraphs, lines, sentences or words, in this order, and
never inside what a reader sees as one character (a grapheme cluster of Unicode's UAX 29, which ``regex``
knows), unless that alone is longer than a message. A code block that a cut goes through is closed and opened
again with its language.
"""

from __future__ import annotations

from dataclasses import dataclass

import regex

MESSAGE_LIMIT = 2000
"""Discord's limit for the content of a message, counted here in UTF-16 units, the stricter reading."""

# A language tag longer than this is taken for text, so that a reopened block can't eat the whole message.
_FENCE = regex.compile(r"`{3,}(?:([A-Za-z0-9_+#.\-]{1,20})?\n)?")
_GRAPHEME = regex.compile(r"\X")
_BREAKS = (
    # Up to the next line's indentation, which belongs to that line: in code it means something.
    regex.compile(r"\n(?:[^\S\n]*\n)+"),
    regex.compile(r"\n"),
    regex.compile(r"""[.!?…؟۔।]["'”’»)\]]*\s+|[。！？][」』）】]*\s*"""),
    # Chinese and Japanese put no spaces between words, but a line may end behind these.
    regex.compile(r"\s+|[、，；：」』）】》]+"),
)
# A cut at a better kind of break may leave this share of the message empty, not more.
_MIN_FILL = (0.5, 0.5, 0.5, 0.25)
_CLOSING_WIDTH = len("\n```")


@dataclass(frozen=True, slots=True)
class Part:
    """One message of a split reply: ``body`` is the reply's own text, the rest are added code fences."""

    body: str
    prefix: str = ""
    suffix: str = ""

    @property
    def content(self) -> str:
        """The message as sent."""
        return self.prefix + self.body + self.suffix


def width(text: str) -> int:
    """Count UTF-16 units."""
    return len(text) + sum(character > "\uffff" for character in text)


def split(text: str, limit: int = MESSAGE_LIMIT) -> list[Part]:
    """Split ``text`` into parts of at most ``limit`` units whose bodies, joined, are ``text`` again.

    ``limit`` must be 64 or more, so that the added fences leave room for text.
    """
    if limit < 64:
        raise ValueError("limit must be at least 64")
    parts: list[Part] = []
    start, opened = 0, ""
    while start < len(text):
        end = _part_end(text, start, limit - width(opened), opened)
        body, prefix = text[start:end], opened
        opened = _open_fence(body, opened)
        parts.append(Part(body, prefix, _closing(body) if opened else ""))
        start = end
    return parts


def visible_parts(text: str, limit: int = MESSAGE_LIMIT) -> list[str]:
    """Return what to send: the contents of the parts, less those that Discord would refuse as empty."""
    return [part.content for part in split(text, limit) if part.body.strip()]


def _part_end(text: str, start: int, room: int, opened: str) -> int:
    """Return where the part from ``start`` ends, with ``room`` units for its body and closing fence."""
    end = _reach(text, start, room)
    if end < len(text):
        end = _best_cut(text, start, end, inside_code=bool(opened))
    body = text[start:end]
    if _open_fence(body, opened) and width(body) + len(_closing(body)) > room:
        end = _reach(text, start, room - _CLOSING_WIDTH)
        end = _best_cut(text, start, end, inside_code=True)
    return end


def _closing(body: str) -> str:
    return "```" if body.endswith("\n") else "\n```"


def _open_fence(body: str, opened: str) -> str:
    """Return the text that reopens the fence which is still open after ``body``, or an empty string."""
    for fence in _FENCE.finditer(body):
        opened = "" if opened else f"```{fence[1] or ''}\n"
    return opened


def _reach(text: str, start: int, room: int) -> int:
    end = min(len(text), start + room)
    while (over := width(text[start:end]) - room) > 0:
        end -= max(1, over // 2)
    return end


def _best_cut(text: str, start: int, end: int, *, inside_code: bool) -> int:
    """Return the best place for a cut in ``(start, end]``."""
    boundaries = _grapheme_ends(text, start, end)
    for pattern, fill in zip(_BREAKS, _MIN_FILL, strict=True):
        least = start + int((end - start) * (0.05 if inside_code and pattern is _BREAKS[1] else fill))
        for found in reversed(list(pattern.finditer(text, start, end))):
            cut = _before_fence(text, start, found.end())
            if cut in boundaries and cut > least:
                return cut
    cut = max(boundaries, default=end)
    moved = _before_fence(text, start, cut)
    return moved if moved in boundaries else cut


def _grapheme_ends(text: str, start: int, end: int) -> set[int]:
    # Looks past `end`: whether a character is complete depends on what follows it.
    ends = (match.end() for match in _GRAPHEME.finditer(text, start, min(len(text), end + 256)))
    return {position for position in ends if start < position <= end}


def _before_fence(text: str, start: int, cut: int) -> int:
    """Move a cut that would tear a fence apart to the fence's beginning, unless the part begins there."""
    for fence in _FENCE.finditer(text, start):
        if fence.start() >= cut:
            break
        if cut < fence.end():
            return fence.start() if fence.start() > start else cut
    return cut
