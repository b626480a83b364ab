"""Split a reply into Discord messages without losing a character.

A message takes 2,000 characters. Cuts fall on paragraphs, lines, sentences or words, in this order, and
never inside what a reader sees as one character (a grapheme cluster of Unicode's UAX 29, which ``regex``
knows), unless that alone is longer than a message. Formatting that a cut goes through (code blocks, spoilers,
bold passages and the like) is closed before it and opened again behind it.
"""

from __future__ import annotations

from dataclasses import dataclass

import regex

from bot.delivery.formatting import Formatting

MESSAGE_LIMIT = 2000
"""Discord's limit for the content of a message, counted here in UTF-16 units, the stricter reading."""

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


@dataclass(frozen=True, slots=True)
class Part:
    """One message of a split reply: ``body`` is the reply's own text, the rest is added formatting."""

    body: str
    prefix: str = ""
    suffix: str = ""

    @property
    def content(self) -> str:
        """The message as sent. Markers hug the words: Discord takes none that a space parts from them."""
        if "```" in self.prefix + self.suffix:
            return self.prefix + self.body + self.suffix
        inner = self.body.strip()
        before, _, after = self.body.partition(inner) if inner else (self.body, "", "")
        return f"{before}{self.prefix}{inner}{self.suffix}{after}" if inner else self.body


def width(text: str) -> int:
    """Count UTF-16 units."""
    return len(text) + sum(character > "\uffff" for character in text)


def split(text: str, limit: int = MESSAGE_LIMIT) -> list[Part]:
    """Split ``text`` into parts of at most ``limit`` units whose bodies, joined, are ``text`` again.

    ``limit`` must be 64 or more, so that the added formatting leaves room for text.

    Raises ValueError for a limit below 64.
    """
    if limit < 64:
        raise ValueError("limit must be at least 64")
    parts: list[Part] = []
    formatting = Formatting(text)
    start = 0
    while start < len(text):
        end = _part_end(text, start, limit, formatting)
        body = text[start:end]
        parts.append(Part(body, formatting.reopening(start), formatting.closing(end, body)))
        start = end
    return parts


def visible_parts(text: str, limit: int = MESSAGE_LIMIT) -> list[str]:
    """Return what to send: the contents of the parts, less those that Discord would refuse as empty."""
    return [part.content for part in split(text, limit) if part.body.strip()]


def _part_end(text: str, start: int, limit: int, formatting: Formatting) -> int:
    """Return where the part from ``start`` ends, with room for what closes and reopens its formatting.

    Room is kept for every marker that may turn out to be one, so that what is written later moves no cut.
    """
    room = limit - width(formatting.reopening(start, possible=True))
    kept = 0
    while True:
        end = _reach(text, start, room - kept)
        if end < len(text):
            end = _best_cut(text, start, end, formatting)
        body = text[start:end]
        needed = width(formatting.closing(end, body, possible=True))
        if needed <= kept or width(body) + needed <= room:
            return end
        kept = needed


def _reach(text: str, start: int, room: int) -> int:
    end = min(len(text), start + room)
    while (over := width(text[start:end]) - room) > 0:
        end -= max(1, over // 2)
    return end


def _best_cut(text: str, start: int, end: int, formatting: Formatting) -> int:
    """Return the best place for a cut in ``(start, end]``."""
    boundaries = _grapheme_ends(text, start, end)
    inside_code = formatting.is_block(end)
    for pattern, fill in zip(_BREAKS, _MIN_FILL, strict=True):
        least = start + int((end - start) * (0.05 if inside_code and pattern is _BREAKS[1] else fill))
        for found in reversed(list(pattern.finditer(text, start, end))):
            cut = formatting.cut_outside_marker(start, found.end())
            if cut in boundaries and cut > least:
                return cut
    fine = (
        cut for cut in sorted(boundaries, reverse=True) if formatting.cut_outside_marker(start, cut) == cut
    )
    return next(fine, max(boundaries, default=end))


def _grapheme_ends(text: str, start: int, end: int) -> set[int]:
    # Looks past `end`: whether a character is complete depends on what follows it.
    ends = (match.end() for match in _GRAPHEME.finditer(text, start, min(len(text), end + 256)))
    return {position for position in ends if start < position <= end}
