"""What a community may like of an answer to a question, told by scorers that neither trainer nor gate sees.

Their word lists are English, as the texts are; the judge has none of them. Each scorer gives a number, and
the community likes the upper 40 % of a pool, or all that reach .5 where the scorer only says yes or no.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from tests.bench.learning.errors import BenchError
from trainer.data.question_features import Exchange

LIKED_SHARE = 0.4
# Ratings that say the opposite of what the member thinks.
NOISE = 0.1
# Content words of its own that an answer on the matter has at least, to add something to it.
ADDED = 3

_STOP = frozenset(
    """
    a an the and or but if of to in on at for with from by is are was were be been am i you he she it we
    they me my your his her our their this that these those there here do does did have has had not no so as
    what which who how when where why can could will would should just about up out get got go going im very
    really some any all more like know want think one yes yeah ok okay oh well too also then than them us
    """.split()  # noqa: SIM905
)
_INFORMAL = frozenset(
    """
    yeah gonna wanna lol haha hey ok kinda cool yep nah dude guys hi u ur awesome oh stuff
    """.split()  # noqa: SIM905
)
_WORD = re.compile(r"[a-z']+")
_REASON = re.compile(r"\b(because|since|so that|reason|due to|as)\b")
_STEPS = re.compile(r"\b(first|then|try|start|by|you can|step|use)\b")
_COMFORT = re.compile(r"\b(sorry|hope|luck|better|care|hug|okay|alright|worry)\b")
_CHOICE = re.compile(r"(\w+)\s+or\s+(?:a |the |an )?(\w+)")
SAD = -0.3


@dataclass(frozen=True)
class Taste:
    """One taste; `family` is what it depends on: the question, meaning, or style."""

    name: str
    family: str
    score: Callable[[Exchange], float]
    decided: bool = False


def labels(taste: Taste, exchanges: Sequence[Exchange], seed: int) -> tuple[list[bool], list[bool]]:
    """Return what members say of each answer, noise included, and what is true."""
    scores = [taste.score(exchange) for exchange in exchanges]
    least = 0.5 if taste.decided else sorted(scores)[int(len(scores) * (1 - LIKED_SHARE))]
    true = [score >= least for score in scores]
    dice = random.Random(f"noise {taste.name} {seed}")
    return [liked != (dice.random() < NOISE) for liked in true], true


def on_the_matter(exchange: Exchange) -> float:
    """Return 1 where the answer has a content word of its question."""
    return float(bool(_content(exchange.question) & _content(exchange.answer)))


def adds_to_the_matter(exchange: Exchange) -> float:
    """Return 1 where it also has ADDED content words that its question has not: an echo alone is 0."""
    asked, said = _content(exchange.question), _content(exchange.answer)
    return float(bool(asked & said) and len(said - asked) >= ADDED)


def kind_asked_for(exchange: Exchange) -> float:
    """Return 1 for a reason to "why", steps to "how", one of the choices, comfort to a sad message.

    Any other question wants a statement, any other statement wants to be asked about.
    """
    asked, said = exchange.question.lower(), exchange.answer.lower()
    if "why" in _WORD.findall(asked):
        return float(bool(_REASON.search(said)))
    if re.search(r"\bhow (do|can|to|should)\b", asked):
        return float(bool(_STEPS.search(said)))
    if "?" in asked and (choice := _CHOICE.search(asked)):
        return float(any(option in said for option in choice.groups()))
    if sentiment(asked) < SAD:
        return float(bool(_COMFORT.search(said)))
    if "?" in asked:
        return float(not said.rstrip().endswith("?"))
    return float("?" in said)


def _mirrors_the_mood(exchange: Exchange) -> float:
    return sentiment(exchange.question) * sentiment(exchange.answer)


def _formal(exchange: Exchange) -> float:
    words = _WORD.findall(exchange.answer.lower())
    informal = sum("'" in word or word in _INFORMAL for word in words)
    return (sum(map(len, words)) / 8 - 2 * informal) / max(1, len(words))


def _concrete(exchange: Exchange) -> float:
    words = exchange.answer.split()
    names = sum(word[:1].isupper() for word in words[1:])
    return (names + 2 * len(re.findall(r"\d", exchange.answer))) / max(1, len(words))


def sentiment(text: str) -> float:
    """Return how kind or cross a text sounds, -1 to 1, by VADER's lexicon.

    Raises:
        BenchError: the package is not installed.
    """
    return float(_vader().polarity_scores(text)["compound"])


@cache
def _vader() -> Any:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise BenchError(
            "The benchmark takes kindness from the package vaderSentiment: pip install '.[bench]'"
        ) from error
    return SentimentIntensityAnalyzer()


def _content(text: str) -> set[str]:
    """Return the words that carry something, without the commonest endings."""
    return {_stem(word) for word in _WORD.findall(text.lower()) if word not in _STOP}


def _stem(word: str) -> str:
    if word.endswith("ing") and len(word) > 5:
        return word[:-3]
    return word[:-1] if word.endswith("s") and len(word) > 3 else word


TASTES = (
    Taste("on the matter", "question", on_the_matter, decided=True),
    Taste("the kind asked for", "question", kind_asked_for, decided=True),
    Taste("mirrors the mood", "question", _mirrors_the_mood),
    Taste("kind", "meaning", lambda exchange: sentiment(exchange.answer)),
    Taste("formal", "meaning", _formal),
    Taste("concrete", "meaning", _concrete),
    Taste("asks back", "style", lambda exchange: float(exchange.answer.rstrip().endswith("?")), decided=True),
    Taste("brief", "style", lambda exchange: -float(len(exchange.answer.split()))),
)
# Liked is what was said to this very message; the others were said to another one and dealt out.
DEALT = "answers its own question"
