"""Whether a message calls the bot by a word or phrase, in any script.

What is code, quoted, or part of an address isn't said to anybody, so it calls nobody.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

import regex

_CODE = regex.compile(r"(?s)(`{3,}).*?(?:\1|\Z)|(?<!`)(`{1,2})(?!`)[^\n].*?(?<!`)\2(?!`)")
_QUOTE = regex.compile(r"(?ms)^>>>\s.*\Z|^>\s[^\n]*$")
_ADDRESS = regex.compile(r"\]\([^)\s]*\)|<?\b(?:https?|ftp)://[^\s>]+>?|\bwww\.\S+|\S+@\S+\.\w+")
# Mentions, emoji, times and commands; their names are no words of the message.
_TOKEN = regex.compile(r"<(?:a?:\w+:|@[!&]?|#|/[^:>]+:|t:)-?\d+(?::\w)?>")
_BETWEEN = r"[\s,،、·!.…]+"

# Scripts without spaces between words, in which any place may be the end of one.
_UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}\p{Javanese}]")
_KATAKANA = regex.compile(r"[\p{Katakana}ー]")
_WORD = regex.compile(r"[\w\p{M}-]")
# What Korean writes behind a name without a space.
_PARTICLES = regex.compile(
    r"(?:님|씨|아|야|이야|이여|여|이|가|은|는|을|를|의|에게|한테|께|도|만|랑|이랑|와|과|께서|봇)(?!\p{Hangul})"
)
_ARABIC_MARKS = regex.compile(r"[\u0640\u064b-\u065f\u0670]")


def spoken(content: str) -> str:
    """Return what a message says to others: without code, quotes and addresses, unless it is only a quote."""
    bare = _CODE.sub(" ", content)
    said = _QUOTE.sub(" ", bare)
    return _ADDRESS.sub(" ", said if said.strip() else bare)


def calls(content: str, wake_words: Iterable[str]) -> bool:
    """Whether one of the wake words, a phrase word by word, stands in what a message says."""
    wanted = [word for word in wake_words if word]
    if not wanted:
        return False
    text = fold(_TOKEN.sub(" ", spoken(content)))
    return any(_stands_in(text, fold(word)) for word in wanted)


def fold(text: str) -> str:
    """Return the one form of a text that its case, the width of its letters and vowel marks don't change."""
    return _ARABIC_MARKS.sub(
        "", unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    )


def _stands_in(text: str, phrase: str) -> bool:
    pattern = _BETWEEN.join(regex.escape(word) for word in phrase.split())
    return any(
        _parted(text[: found.start()], text[found.start() :])
        and (_parted(text[: found.end()], text[found.end() :]) or _PARTICLES.match(text, found.end()))
        for found in regex.finditer(pattern, text, overlapped=True)
    )


def _parted(before: str, after: str) -> bool:
    """Whether a word may end between two texts."""
    left, right = before[-1:], after[:1]
    if not (_WORD.match(left) and _WORD.match(right)):
        return True
    if regex.match(r"\p{M}", right):
        return False
    if _KATAKANA.match(left) and _KATAKANA.match(right):
        return False
    return any(_UNSPACED.match(each) or _KATAKANA.match(each) for each in (left, right))
