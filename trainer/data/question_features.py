"""What can be counted in an answer beside its question: what it takes up, and what kind of question it was.

Nothing here knows a language. Which words carry the matter is told by how rare they are among a community's
own questions and answers, and words are cut to their first letters, so that "walk" meets "walking". Scripts
that put no space between words are cut into pairs of characters.
"""

from __future__ import annotations

import itertools
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.data.text_features import Array

# A word's first letters, about its stem.
STEM = 5
PIECE = 4
FIRST_WORDS = 8
# A word is about the matter if it is as rare as this, where 0 is a word that every text has.
RARE = 0.6
_MOST_ECHOES = 6.0

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")

QUESTION_FEATURES = (
    "takes_up_the_question",
    "made_of_the_question",
    "rarest_shared_word",
    "shared_rare_words",
    "echoes",
    "length_beside_the_question",
    "shares_a_rare_word",
)
KINDS = (
    "ends_with_question",
    "asks",
    "log_words",
    "exclaims",
    *(f"first_word_{number}" for number in range(FIRST_WORDS)),
)


@dataclass(frozen=True)
class Exchange:
    """What was asked, and what was answered."""

    question: str
    answer: str


class Rarity:
    """How rare a word is among some texts: 0 where all have it, 1 where none has."""

    def __init__(self, texts: Iterable[str]) -> None:
        """Count in how many of the texts each word occurs."""
        known = list(texts)
        self._texts = len(known)
        self._counts = Counter(term for text in known for term in set(terms(text)))

    def of(self, term: str) -> float:
        """Return the rarity of one word."""
        if not self._texts:
            return 1.0
        return math.log((self._texts + 1) / (self._counts[term] + 1)) / math.log(self._texts + 1)

    def shared_rarities(self, exchange: Exchange) -> list[float]:
        """Return the rarities of the words that question and answer have in common, in a settled order."""
        return [self.of(term) for term in sorted({*terms(exchange.question)} & {*terms(exchange.answer)})]


def terms(text: str) -> list[str]:
    """Return a text's words in lower case, cut to STEM letters; pairs of characters where none is spaced."""
    found: list[str] = []
    for word in _WORD.findall(text.lower()):
        found += _pairs(word) if _UNSPACED.search(word) else [word[:STEM]]
    return found


def pieces(text: str) -> set[str]:
    """Return the runs of PIECE characters in a text's words, their ends marked by spaces."""
    words = (f" {word} " for word in _WORD.findall(text.lower()))
    return {word[at : at + PIECE] for word in words for at in range(max(1, len(word) - PIECE + 1))}


def question_features(exchanges: Sequence[Exchange], rarity: Rarity) -> Array:
    """Return what answers take up of their questions, shape (exchanges, QUESTION_FEATURES)."""
    rows = [_taken_up(exchange, rarity) for exchange in exchanges]
    return np.asarray(rows, dtype=float).reshape(len(rows), len(QUESTION_FEATURES))


def kinds(questions: Sequence[str]) -> Array:
    """Return what kind of question each is, by its form, shape (questions, KINDS)."""
    rows = [_kind(question) for question in questions]
    return np.asarray(rows, dtype=float).reshape(len(rows), len(KINDS))


def _taken_up(exchange: Exchange, rarity: Rarity) -> list[float]:
    asked, said = terms(exchange.question), terms(exchange.answer)
    shared = rarity.shared_rarities(exchange)
    pairs = set(itertools.pairwise(asked))
    return [
        _part(shared, asked, rarity),
        _part(shared, said, rarity),
        max(shared, default=0.0),
        sum(value * value for value in shared),
        min(_MOST_ECHOES, sum(pair in pairs for pair in itertools.pairwise(said))),
        math.log1p(len(said)) - math.log1p(len(asked)),
        float(any(value > RARE for value in shared)),
    ]


def _part(shared: Sequence[float], words: Sequence[str], rarity: Rarity) -> float:
    """Return the part of what some words say, weighted by rarity, that question and answer share."""
    whole = sum(rarity.of(word) for word in sorted(set(words)))
    return sum(shared) / whole if whole else 0.0


def _kind(question: str) -> list[float]:
    words = _WORD.findall(question.lower())
    first = [0.0] * FIRST_WORDS
    if words:
        first[zlib.crc32(words[0].encode()) % FIRST_WORDS] = 1.0
    ends = question.rstrip().endswith(("?", "？"))
    return [
        float(ends),
        float("?" in question or "？" in question),
        math.log1p(len(words)),
        float("!" in question or "！" in question),
        *first,
    ]


def _pairs(word: str) -> list[str]:
    return [word[at : at + 2] for at in range(max(1, len(word) - 1))]
