"""Turn a growing list of token ids into text that can be shown at once and never has to be taken back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# A token that ends inside a multi-byte character decodes to this; the text waits for the rest.
_INCOMPLETE = "\ufffd"
# Four bytes make the longest UTF-8 character: beyond that, a replacement character is what the model wrote.
_LONGEST_WAIT_TOKENS = 4


class TextStream:
    """Decodes tokens one by one, holds back incomplete characters and possible stop strings."""

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._start = 0
        self._shown = 0
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Add a token; return the text that is final now (often none). Sets ``stopped`` at a stop string."""
        self._ids.append(token)
        return self._release(self._decode_new(final=False), final=False)

    def finish(self) -> str:
        """Return what was held back; half a character at the very end is dropped."""
        return self._release(self._decode_new(final=True), final=True)

    def _decode_new(self, *, final: bool) -> str:
        """Decode from a little before the new tokens: some tokenizers join a token to the one before it."""
        before = self._text(self._start, self._shown)
        after = self._text(self._start, len(self._ids))
        waiting = len(self._ids) - self._shown
        if after.endswith(_INCOMPLETE):
            if final:
                after = after.rstrip(_INCOMPLETE)
            elif waiting < _LONGEST_WAIT_TOKENS:
                return ""
        if len(after) <= len(before):
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        return after[len(before) :]

    def _text(self, start: int, end: int) -> str:
        return str(
            self._tokenizer.decode(
                self._ids[start:end], skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    def _release(self, new: str, *, final: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        found = [place for place in (text.find(stop) for stop in self._stop) if place >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = 0 if final else self._possible_stop(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _possible_stop(self, text: str) -> int:
        """Return how long a suffix of the text may still grow into a stop string."""
        longest = 0
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:length]):
                    longest = length
                    break
        return longest
