"""Which conversations train and which judge: decided once, by their first question."""

import hashlib
import re
import unicodedata
from typing import Literal

Split = Literal["train", "development", "gate"]

TRAIN_PERCENT = 70
DEVELOPMENT_PERCENT = 10
# The key of a prompt is made of its beginning: no message on Discord is longer, only text out of files is.
KEY_CHARACTERS = 4_000
# As many as Unicode's stream-safe format allows (UAX 15); no language needs more.
MOST_MARKS = 30
_MENTION_OR_ADDRESS = re.compile(r"<[@#:a]|https?://\S+")


def near_duplicate_key(prompt: str) -> str:
    """Return a key that prompts share when they differ only in case, punctuation, mentions or word order."""
    text = unicodedata.normalize("NFKC", _few_marks(prompt[:KEY_CHARACTERS])).casefold()
    words = sorted(set(re.findall(r"\w+", _without_mentions(text[: 2 * KEY_CHARACTERS]))))
    return hashlib.sha256(" ".join(words).encode()).hexdigest()[:16]


def _few_marks(text: str) -> str:
    """Return a text without long runs of combining marks, for which normalising takes quadratic time."""
    if text.isascii():
        return text
    kept, run = [], 0
    for character in text:
        run = run + 1 if unicodedata.combining(character) else 0
        if run <= MOST_MARKS:
            kept.append(character)
    return "".join(kept)


def _without_mentions(text: str) -> str:
    """Replace mentions, emoji and addresses by spaces, in one pass however many are left open."""
    pieces, position, closed = [], 0, True
    while (found := _MENTION_OR_ADDRESS.search(text, position)) is not None:
        end = found.end()
        if text[found.start()] == "<":
            end = text.find(">", end) + 1 if closed else 0
            closed = end > 0
        pieces.append(text[position : found.start()])
        pieces.append(" " if end else found[0])
        position = end or found.end()
    return "".join([*pieces, text[position:]])


def assign_split(group_key: str) -> Split:
    """Return the split of a group: 70 % train, 10 % development, 20 % gate, by a stable hash."""
    bucket = int(hashlib.sha256(f"split:{group_key}".encode()).hexdigest()[:8], 16) % 100
    if bucket < TRAIN_PERCENT:
        return "train"
    return "development" if bucket < TRAIN_PERCENT + DEVELOPMENT_PERCENT else "gate"
