"""What can be counted in a text: features that a person can read, hashed words, and repeated phrases."""

from __future__ import annotations

import itertools
import math
import re
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

HASH_BUCKETS = 256
# A text with a larger share of repeated phrases repeats itself.
MOST_REPETITION = 0.05

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
# A run of marks is looked at once: possessive, and never from its middle.
_SENTENCE_END = re.compile(r"(?<![.!?])[.!?]++(?=\s|$)")
_CLAUSE_END = re.compile(r"(?<![.!?…])[.!?…]++(?:\s|$)|[。！？\n]")
_LIST_LINE = re.compile(r"^[^\S\n]*(?:[-*•]|\d+[.)])\s", re.MULTILINE)
_EMOJI = re.compile("[\U0001f300-\U0001faff\u2600-\u27bf]")

FEATURES = (
    "log_words",
    "words_over_20",
    "words_over_40",
    "log_sentences",
    "words_per_sentence",
    "ends_with_question",
    "ends_with_exclamation",
    "ends_cleanly",
    "questions",
    "exclamations",
    "has_digit",
    "has_list",
    "has_line_break",
    "has_emoji",
    "says_you",
    "says_i",
    "all_lower_case",
    "apologises",
    "thanks",
    "starts_with_greeting",
    "mean_word_length",
    "repetition",
)


def features(texts: Sequence[str]) -> Array:
    """Return the feature matrix, shape (texts, readable features + HASH_BUCKETS)."""
    return np.asarray([[*_readable(text), *_hashed(text)] for text in texts], dtype=float).reshape(
        len(texts), len(FEATURES) + HASH_BUCKETS
    )


def sentences(text: str) -> list[str]:
    """Return a text's sentences, lower-case and without their punctuation."""
    return [" ".join(words) for part in _CLAUSE_END.split(text.lower()) if (words := _WORD.findall(part))]


def gist(text: str) -> frozenset[str]:
    """Return what a text says at least once: "What about you?" once or three times is the same."""
    return frozenset(sentences(text))


def repetition(text: str) -> float:
    """Return the share of word 4-grams that repeat an earlier one, 0 for short texts."""
    words = [word.lower() for word in _WORD.findall(text)]
    grams = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def repeats_itself(text: str) -> bool:
    """Whether a text says a sentence twice, or more than MOST_REPETITION of its phrases."""
    said = sentences(text)
    return len(set(said)) < len(said) or repetition(text) > MOST_REPETITION


def _readable(text: str) -> list[float]:
    stripped = text.strip()
    words = _WORD.findall(stripped)
    lower = [word.lower() for word in words]
    sentences = max(1, len(_SENTENCE_END.findall(stripped)))
    count = len(words)
    return [
        math.log1p(count),
        float(count > 20),
        float(count > 40),
        math.log(sentences),
        min(count / sentences, 60.0),
        float(stripped.endswith("?")),
        float(stripped.endswith("!")),
        float(stripped.endswith((".", "!", "?", ")", '"'))),
        min(stripped.count("?"), 4.0),
        min(stripped.count("!"), 4.0),
        float(any(character.isdigit() for character in stripped)),
        float(bool(_LIST_LINE.search(stripped))),
        float("\n" in stripped),
        float(bool(_EMOJI.search(stripped))),
        float(any(word in ("you", "your", "you're") for word in lower)),
        float(any(word in ("i", "i'm", "i've", "my", "me") for word in lower)),
        float(bool(words) and stripped == stripped.lower()),
        float(any(word in ("sorry", "apologize", "apologise") for word in lower)),
        float(any(word in ("thanks", "thank", "glad") for word in lower)),
        float(bool(lower) and lower[0] in ("hi", "hello", "hey", "greetings")),
        float(np.mean([len(word) for word in words])) if words else 0.0,
        repetition(stripped),
    ]


def _hashed(text: str) -> list[float]:
    """Return which hashed words and word pairs occur (1.0 or 0.0), with a sign against collisions."""
    words = [word.lower() for word in _WORD.findall(text)]
    buckets = [0.0] * HASH_BUCKETS
    # In a settled order: of two in one bucket the last wins, and a set's order changes with each process.
    for gram in sorted({*words, *(f"{a} {b}" for a, b in itertools.pairwise(words))}):
        code = zlib.crc32(gram.encode())
        buckets[code % HASH_BUCKETS] = 1.0 if code & (1 << 30) else -1.0
    return buckets
