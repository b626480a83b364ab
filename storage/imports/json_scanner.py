"""JSON of any length, element by element: memory holds one element at a time.

Elements are parsed by Python's own decoder, whose recursion is limited; a reader that tracks paths of its own
takes memory that grows with the square of the depth of a hostile file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO, Any

from storage.errors import ImportFileError

MAX_RECORD = 4 * 1024 * 1024
_CHUNK = 1 << 16
_SPACE = " \t\r\n"


class JsonScanner:
    """A position in a stream of JSON text.

    Raises json.JSONDecodeError or RecursionError where the text is not JSON, ImportFileError where an element
    is longer than MAX_RECORD characters.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._decoder = json.JSONDecoder()
        self._text = ""
        self._at = 0

    def enter_list(self) -> tuple[dict[str, Any], str]:
        """Go to the first list of an object; return the values before it, and its name."""
        before: dict[str, Any] = {}
        self._expect("{")
        while True:
            name = self._value()
            self._expect(":")
            if self._peek() == "[":
                return before, str(name)
            before[str(name)] = self._value()
            self._expect(",")

    def elements(self) -> Iterator[Any]:
        """Yield the elements of the list that begins here."""
        self._expect("[")
        if self._peek() == "]":
            return
        while True:
            yield self._value()
            if self._peek() == "]":
                return
            self._expect(",")

    def values(self) -> Iterator[Any]:
        """Yield the values that stand one after the other, with space between them or none."""
        while self._peek():
            yield self._value()

    def _expect(self, wanted: str) -> None:
        if self._peek() != wanted:
            raise json.JSONDecodeError(f"{wanted} is missing", self._text[:80], 0)
        self._at += 1

    def _peek(self) -> str:
        """Return the next character that is no space; an empty text at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def _value(self) -> Any:
        self._peek()
        wanted = _CHUNK
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
                # A number may go on in what isn't read yet.
                if end < len(self._text) or not self._more():
                    _check_length(end - self._at)
                    self._at = end
                    return value
            except json.JSONDecodeError:
                _check_length(len(self._text) - self._at)
                # Twice as much each time: an element is parsed a few times, however long it is.
                wanted = max(wanted, len(self._text) - self._at)
                if not self._more(wanted):
                    raise

    def _more(self, wanted: int = _CHUNK) -> bool:
        """Read on, forgetting what lies behind; return whether there was anything."""
        read = self._stream.read(wanted)
        self._text = self._text[self._at :] + read
        self._at = 0
        return bool(read)


def _check_length(length: int) -> None:
    if length > MAX_RECORD:
        raise ImportFileError(f"A record is longer than {MAX_RECORD:,} characters.")
