"""Discord's markup in a text: which formatting is open at a place, and what closes and reopens it there.

Read once from left to right. A marker that nothing closes is plain text to Discord, except for a code fence,
which a reply that is still being written often has open.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import regex

_MOST_BACKTICKS = 20
"""A longer row is a drawing, not a fence."""
_LANGUAGE_ROOM = 24
"""A fence and its language are reopened together up to this width, so that they leave room for text."""
_CODE_REACH = 200
"""Inline code ends within so many characters, and within its paragraph; else a backtick is a character."""

# A language tag longer than this is taken for text.
_FENCE = regex.compile(r"(`{3,})(?:([A-Za-z0-9_+#.\-]{1,20})?\n)?")
_RUN = regex.compile(r"\\.|`+|\*+|_+|~+|\|+", regex.DOTALL)
_URL = regex.compile(r"https?://\S+")
_INLINE = {"*": ("*", "**"), "_": ("_", "__"), "~": ("~~",), "|": ("||",)}


@dataclass(slots=True)
class _Span:
    """Formatting between two markers. `end` is where the second begins, or where it could come no more."""

    start: int
    inner: int
    marker: str
    end: int
    language: str = ""
    closed: bool = False
    after: int = 0

    @property
    def is_block(self) -> bool:
        return self.marker.startswith("```")


class Formatting:
    """The formatting of one text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._spans: list[_Span] = []
        self._open: list[_Span] = []
        self._urls = [found.span() for found in _URL.finditer(text)]
        self._read()
        self._moves = dict(self._torn())

    def reopening(self, place: int, *, possible: bool = False) -> str:
        """Return what opens again, behind a cut, the formatting that is open there."""
        spans = self._at(place, possible)
        if spans and spans[-1].is_block:
            fence, language = spans[-1].marker, spans[-1].language
            return f"{fence}{language if len(fence) + len(language) < _LANGUAGE_ROOM else ''}\n"
        return "".join(span.marker for span in spans)

    def closing(self, place: int, body: str, *, possible: bool = False) -> str:
        """Return what closes, behind ``body`` that ends at a cut, the formatting that is open there."""
        spans = self._at(place, possible and place < len(self._text))
        if spans and spans[-1].is_block:
            return spans[-1].marker if body.endswith("\n") else f"\n{spans[-1].marker}"
        return "".join(span.marker for span in reversed(spans))

    def is_block(self, place: int) -> bool:
        """Whether a place is inside a code block."""
        return any(span.is_block for span in self._at(place, True))

    def cut_outside_marker(self, start: int, cut: int) -> int:
        """Return the nearest place up to ``cut`` that tears no marker from its words, or ``cut`` itself."""
        moved = cut
        while moved in self._moves:
            moved = self._moves[moved]
        return moved if moved > start else cut

    def _torn(self) -> Iterator[tuple[int, int]]:
        """Yield each place that would tear a marker from its words, with the better place before it."""
        for span in self._spans:
            last = span.inner - 1 if span.is_block else span.inner
            yield from ((place, span.start) for place in range(span.start + 1, last + 1))
            if span.closed:
                before = self._before_close(span)
                yield from ((place, before) for place in range(span.end, span.after))

    def _before_close(self, span: _Span) -> int:
        """Return a place that leaves the closing marker some of its words: a line of code, or a character."""
        if not span.is_block:
            return max(span.start, span.end - 1)
        line = self._text.rfind("\n", span.inner, max(span.inner, span.end - 1)) + 1
        return line or span.start

    def _at(self, place: int, possible: bool) -> list[_Span]:
        """Return what is open at a place, outermost first; inside a code block, that alone."""
        found = []
        for span in self._spans:
            if span.start >= place:
                break
            if span.inner <= place <= span.end and (possible or span.closed or span.is_block):
                found.append(span)
        return found[-1:] if found and found[-1].is_block else found

    def _read(self) -> None:
        place = 0
        while found := _RUN.search(self._text, place):
            run = found[0]
            if run.startswith("`"):
                place = self._code(found.start(), run)
            else:
                self._emphasis(found.start(), run)
                place = found.end()
        for span in self._open:
            span.end = len(self._text)

    def _code(self, start: int, run: str) -> int:
        """Read code from its first backtick; return where reading goes on."""
        if len(run) > _MOST_BACKTICKS:
            return start + len(run)
        if fence := _FENCE.match(self._text, start):
            closing = regex.compile(f"`{{{len(run)},{_MOST_BACKTICKS}}}(?!`)").search(self._text, fence.end())
            return self._add_code(start, fence.end(), run, closing, fence[2] or "")
        paragraph_end = self._text.find("\n\n", start)
        reach = min(
            start + _CODE_REACH, len(self._text) if paragraph_end < 0 else paragraph_end, len(self._text)
        )
        closing = regex.compile(f"(?<!`)`{{{len(run)}}}(?!`)").search(self._text, start + len(run), reach)
        if closing is None:
            return start + len(run)
        return self._add_code(start, start + len(run), run, closing)

    def _add_code(
        self, start: int, inner: int, marker: str, closing: regex.Match[str] | None, language: str = ""
    ) -> int:
        end, after = closing.span() if closing else (len(self._text), len(self._text))
        self._spans.append(_Span(start, inner, marker, end, language, closing is not None, after))
        return after

    def _emphasis(self, start: int, run: str) -> None:
        """Read a run of one kind of marker: it closes what it can, else it opens what it can."""
        if run.startswith("\\"):
            return
        markers = self._markers(run)
        end = start + len(run)
        before, after = self._text[start - 1 : start], self._text[end : end + 1]
        open_here = [span.marker for span in self._open]
        if markers and all(marker in open_here for marker in markers) and self._may_close(run, before, after):
            place = start
            # The innermost first.
            for marker in sorted(markers, key=open_here.index, reverse=True):
                self._close(marker, place)
                place += len(marker)
        elif self._may_open(run, before, after) and not any(a <= start < b for a, b in self._urls):
            place = start
            for marker in markers:
                if marker not in open_here:
                    span = _Span(start, end, marker, 0)
                    self._spans.append(span)
                    self._open.append(span)
                place += len(marker)

    @staticmethod
    def _markers(run: str) -> tuple[str, ...]:
        known = _INLINE[run[0]]
        if run in known:
            return (run,)
        return known if len(known) > 1 and len(run) == 3 else ()

    @staticmethod
    def _may_open(run: str, before: str, after: str) -> bool:
        if run[0] == "|":
            return True
        inside_word = run == "_" and (before.isalnum() or before == "_")
        return bool(after) and not after.isspace() and not inside_word

    @staticmethod
    def _may_close(run: str, before: str, after: str) -> bool:
        if run[0] == "|":
            return True
        inside_word = run == "_" and (after.isalnum() or after == "_")
        return bool(before) and not before.isspace() and not inside_word

    def _close(self, marker: str, place: int) -> None:
        """Close a marker; what was opened inside it and isn't closed yet is plain text."""
        at = next(i for i, span in enumerate(self._open) if span.marker == marker)
        closing, inside = self._open[at], self._open[at + 1 :]
        for span in inside:
            span.end = place
        # Of "***" either half may end first.
        twins = [span for span in inside if span.start == closing.start]
        self._open = [*self._open[:at], *twins]
        closing.end, closing.closed, closing.after = place, True, place + len(marker)
