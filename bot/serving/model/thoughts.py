"""Take a model's thinking out of its replies: what it writes between think tags is not part of the answer.

Models that reason write ``<think>...</think>`` before they answer, some of them in other tags, some more than
once. A thought is never shown, stored, sent back, rated or trained on, so every text of a model passes
through here: pieces of a stream through :class:`ThoughtFilter`, whole texts through :func:`without_thoughts`.

A thought without an end lasts to the end of the text. A tag right behind a backtick is mentioned, not used.
"""

from __future__ import annotations

import re

# The tags of Qwen, DeepSeek, GLM, SmolLM and their kin; of Gemma's and others' fine-tunes; of Magistral.
_ANGLE_NAMES = ("think", "thinking", "thought", "reasoning")
OPENING_TAGS = (*(f"<{name}>" for name in _ANGLE_NAMES), "[THINK]")
CLOSING_TAGS = (*(f"</{name}>" for name in _ANGLE_NAMES), "[/THINK]")

_OPENING = re.compile("|".join(map(re.escape, OPENING_TAGS)), re.IGNORECASE)
_CLOSING = re.compile("|".join(map(re.escape, CLOSING_TAGS)), re.IGNORECASE)
_ANY_TAG = re.compile(f"{_OPENING.pattern}|{_CLOSING.pattern}", re.IGNORECASE)
_END = _CLOSING.pattern
_LONE_END = re.compile(rf"(?:^|(?<=\n))(?:{_END})|(?:{_END})(?=\s*\n|\s*\Z)", re.IGNORECASE)
_LONGEST_TAG = max(map(len, (*OPENING_TAGS, *CLOSING_TAGS)))


class ThoughtFilter:
    """Drops thoughts from a text that comes in pieces, wherever a tag is cut; what it returns is final.

    ``inside``: the prompt has opened a thought already, so the text begins within it.
    """

    def __init__(self, *, inside: bool = False) -> None:
        self._inside = inside
        self._held = ""
        # The last character that was let through: white space between two thoughts would pile up.
        self._last = ""
        self._after_thought = inside

    def push(self, text: str) -> str:
        """Add a piece; return what of it, and of what was held back, can be shown."""
        self._held += text
        shown = ""
        while (tag := (_CLOSING if self._inside else _ANY_TAG).search(self._held)) is not None:
            before, self._held = self._held[: tag.start()], self._held[tag.end() :]
            if self._inside:
                self._inside, self._after_thought = False, True
                continue
            shown += self._let_through(before)
            if self._last == "`":
                shown += self._let_through(tag[0])
            else:
                self._inside = _OPENING.fullmatch(tag[0]) is not None
                self._after_thought = True
        keep = _possible_tag(self._held)
        ready, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown if self._inside else shown + self._let_through(ready)

    def finish(self) -> str:
        """Return what was held back; an unfinished thought is dropped."""
        rest, self._held = self._held, ""
        return "" if self._inside else self._let_through(rest)

    def _let_through(self, text: str) -> str:
        if self._after_thought and (not self._last or self._last.isspace()):
            text = text.lstrip()
        if text:
            self._last, self._after_thought = text[-1], False
        return text


def without_thoughts(text: str) -> str:
    """Return a whole text without its thoughts; unchanged where it has none.

    A closing tag on a line of its own without an opening one ends a thought that the prompt had opened.
    """
    first = _ANY_TAG.search(text)
    if first is None:
        return text
    thoughts = ThoughtFilter(inside=_LONE_END.match(text, first.start()) is not None)
    return thoughts.push(text) + thoughts.finish()


def _possible_tag(text: str) -> int:
    """Return how long a suffix of the text may still grow into a tag."""
    for start in range(max(0, len(text) - _LONGEST_TAG + 1), len(text)):
        suffix = text[start:].lower()
        if any(tag.lower().startswith(suffix) for tag in (*OPENING_TAGS, *CLOSING_TAGS)):
            return len(text) - start
    return 0
