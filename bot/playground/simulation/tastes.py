"""Tastes a simulated community can have: what it likes, as a rule that anyone can read and check.

`utility` is a pure function of a reply's text in [0, 1]. A simulated member's opinion is that utility,
moved by the member's own bias and by noise, both drawn from the seed: the same member says the same of the
same text again.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

#: A reply whose perceived utility reaches this is liked, any other disliked.
LIKED_FROM = 0.6
#: Standard deviation of a member's lasting bias and of the noise of one opinion.
BIAS = 0.06
NOISE = 0.12

_MARKUP = re.compile(r"^[^\S\n]*(?:[-*•#>]|\d+[.)])\s|\*\*|__|`", re.MULTILINE)
_CONCRETE = re.compile(r"\d|\b(for example|for instance|such as|e\.g\.)", re.IGNORECASE)
_YOU = re.compile(r"\b(you|your|you're|you'll|yours)\b", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<![.!?…])[.!?…]++(?=\s|$)")


@dataclass(frozen=True)
class Taste:
    """One taste: how it is called, told and shown, and how well a text meets it."""

    key: str
    title: str
    description: str
    example: str
    utility: Callable[[str], float]


def brevity(text: str, *, full: int, none: int) -> float:
    """1 up to `full` words, falling evenly to 0 at `none`."""
    words = len(text.split())
    return max(0.0, min(1.0, (none - words) / (none - full)))


def ends_with_question(text: str) -> float:
    """1 if the last sentence asks something."""
    return float(text.rstrip().rstrip("\"'”*_ ").endswith("?"))


def is_one_sentence(text: str) -> float:
    """1 for exactly one finished sentence."""
    ended = bool(re.search(r"[.!?…][\"'”)]*\s*$", text))
    return float(ended and len(_SENTENCE_END.findall(text)) == 1 and "\n" not in text.strip())


def is_plain(text: str) -> float:
    """1 for sentences without lists, headings, bold text or line breaks."""
    return float(not _MARKUP.search(text) and "\n" not in text.strip())


def is_warm(text: str) -> float:
    """Half for speaking to the reader, half for an exclamation mark."""
    return 0.5 * bool(_YOU.search(text)) + 0.5 * ("!" in text)


def is_concrete(text: str) -> float:
    """1 for a number or an example."""
    return float(bool(_CONCRETE.search(text)))


def _short_question(text: str) -> float:
    return 0.65 * ends_with_question(text) + 0.35 * brevity(text, full=20, none=50)


def _one_sentence(text: str) -> float:
    return 0.65 * is_one_sentence(text) + 0.35 * brevity(text, full=15, none=40)


def _plain(text: str) -> float:
    if not text.strip() or _MARKUP.search(text):
        return 0.0
    return 0.3 + 0.4 * ("\n" not in text.strip()) + 0.3 * (":" not in text)


def _concrete(text: str) -> float:
    if not text.strip():
        return 0.0
    return 0.7 * is_concrete(text) + 0.3 * brevity(text, full=25, none=60)


TASTES = {
    taste.key: taste
    for taste in (
        Taste(
            "short-question",
            "Short, and ends with a question",
            "About twenty words at most, and the last sentence asks something back.",
            "Tomatoes love sun and steady water. How big is your balcony?",
            _short_question,
        ),
        Taste(
            "one-sentence",
            "One single sentence",
            "Exactly one finished sentence of about fifteen words.",
            "Let the dough rest overnight in the fridge and bake it very hot.",
            _one_sentence,
        ),
        Taste(
            "warm",
            "Warm and personal",
            "Speaks to the reader as “you” and has an exclamation mark.",
            "What a lovely plan, you will enjoy every minute of it!",
            is_warm,
        ),
        Taste(
            "concrete",
            "Concrete",
            "Contains a number or an example, without going on for long.",
            "Walk for 20 minutes after lunch, for example around the park.",
            _concrete,
        ),
        Taste(
            "plain",
            "Plain sentences",
            "No lists, no headings, no bold text, no line breaks: just sentences.",
            "Start with the corners and work towards the middle. It goes faster than you think.",
            _plain,
        ),
    )
}
DEFAULT_TASTE = "short-question"


@dataclass(frozen=True)
class SimulatedRater:
    """A member with a taste, a bias of their own and some noise, all settled by `seed` and `user_id`.

    A troll says the opposite of what the taste says.
    """

    user_id: int
    taste: Taste
    seed: int = 0
    noise: float = NOISE
    troll: bool = False

    def opinion(self, text: str) -> float:
        """The perceived utility of a text; about [0, 1], a little beyond where bias and noise carry it."""
        bias = random.Random(f"{self.seed}:{self.user_id}").gauss(0.0, BIAS)
        noise = random.Random(f"{self.seed}:{self.user_id}:{text}").gauss(0.0, self.noise)
        utility = self.taste.utility(text)
        return (2 * LIKED_FROM - utility if self.troll else utility) + bias + noise

    def likes(self, text: str) -> bool:
        """Whether the member reacts with 👍 rather than 👎."""
        return self.opinion(text) >= LIKED_FROM

    def prefers(self, first: str, second: str) -> int:
        """A blind vote between two texts: 1 the first, -1 the second, 0 no difference worth a vote."""
        difference = self.opinion(first) - self.opinion(second)
        if abs(difference) < self.noise / 2:
            return 0
        return 1 if difference > 0 else -1
