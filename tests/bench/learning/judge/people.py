"""What real people thought of real conversations, from the `chitchat-dataset` package (MIT).

Its conversations carry ratings of 1 to 10, half of them the default 5. Of those with 8 messages
or more, 8 and above count as liked and 3 and below as disliked, in equal numbers. A conversation is put to
the judge as one exchange: its first turn is the question, and all of its turns, joined, are the answer. Folds
are by sender: a conversation is tested by a fit on conversations with neither of its senders.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.bench.learning import prompts
from trainer.evaluation import reward_model, statistics
from trainer.evaluation.feature_blocks import ANSWER, BLOCKS
from trainer.evaluation.reward_model import RatedText

LEAST_MESSAGES = 8
LIKED_FROM, DISLIKED_TO = 8, 3
FOLDS = 5
RESAMPLES = 500
# Ratings of each kind, as many as there are of the rarer one at most.
COUNTS = {"witty": 250, "interesting": 100, "upbeat": 100}


@dataclass(frozen=True)
class Rated:
    """One conversation, who spoke in it, and whether it was liked."""

    name: str
    senders: frozenset[str]
    turns: tuple[str, ...]
    liked: bool

    @property
    def text(self) -> RatedText:
        """Return it as the judge sees it."""
        return RatedText(" ".join(self.turns), self.liked, 1.0, self.name, question=self.turns[0])


def conversations(quality: str, least_messages: int = LEAST_MESSAGES) -> list[Rated]:
    """Return the conversations with a clear opinion of one quality."""
    found = []
    for number, value in enumerate(prompts.conversations()):
        opinion = _opinion(value, quality, least_messages)
        if opinion is not None:
            turns = value["messages"]
            senders = frozenset(str(turn[0]["sender"]) for turn in turns)
            found.append(Rated(f"c{number}", senders, tuple(map(prompts.text_of, turns)), opinion))
    return found


def compare(quality: str, seed: int) -> dict[str, Any]:
    """Return the AUC of a judge that sees answers only and of today's, each with its interval."""
    found = drawn(conversations(quality), COUNTS[quality], seed)
    scores: dict[str, list[float]] = {"answers only": [], "with the question": []}
    tested: list[Rated] = []
    used: list[list[str]] = []
    for train, test in folds(found):
        rated = [one.text for one in train]
        if not reward_model.enough(rated):
            continue
        tested += test
        for name, blocks in (("answers only", (ANSWER,)), ("with the question", BLOCKS)):
            penalties = reward_model.penalties_for(rated, blocks)
            model = reward_model.fit(rated, penalties)
            scores[name] += _log_odds(model.probability([one.text.exchange for one in test]))
        used.append(sorted(penalties))
    return {
        "ratings": len(found),
        "tested": len(tested),
        "blocks": used,
        **{name: auc_of(values, tested) for name, values in scores.items()},
        "difference": _difference(scores, tested, seed),
    }


def folds(found: Sequence[Rated]) -> Iterator[tuple[list[Rated], list[Rated]]]:
    """Yield what to fit on and what to test, with no sender on both sides."""
    at = [zlib.crc32(min(one.senders).encode()) % FOLDS for one in found]
    for fold in range(FOLDS):
        test = [one for one, number in zip(found, at, strict=True) if number == fold]
        tested = frozenset[str]().union(*(one.senders for one in test))
        if test:
            yield [one for one in found if not one.senders & tested], test


def drawn(found: Sequence[Rated], count: int, seed: int) -> list[Rated]:
    """Draw as many liked as disliked ones, `count` in all or as many as there are."""
    dice = random.Random(f"people {seed}")
    kinds = [[one for one in found if one.liked == liked] for liked in (True, False)]
    each = min(count // 2, *map(len, kinds))
    return [one for kind in kinds for one in dice.sample(kind, each)]


def _log_odds(chances: Any) -> list[float]:
    clipped = np.clip(chances, 1e-6, 1 - 1e-6)
    return [float(value) for value in np.log(clipped / (1 - clipped))]


def auc_of(scores: Sequence[float], tested: Sequence[Rated]) -> dict[str, float]:
    """Return an AUC with its 95 % interval."""
    liked = [one.liked for one in tested]
    names = [one.name for one in tested]
    found = statistics.auc_estimate(scores, liked, names, resamples=1000, confidence=0.95, seed=0)
    return {"auc": round(found.value, 3), "low": round(found.low, 3), "high": round(found.high, 3)}


def _difference(scores: Mapping[str, Sequence[float]], tested: Sequence[Rated], seed: int) -> list[float]:
    """Return the difference of the two AUCs with its 95 % interval, conversations drawn anew."""
    old, new = scores["answers only"], scores["with the question"]
    liked = [one.liked for one in tested]
    dice = np.random.default_rng(seed)

    def gain(at: Sequence[int]) -> float:
        kinds = [liked[i] for i in at]
        return statistics.auc([new[i] for i in at], kinds) - statistics.auc([old[i] for i in at], kinds)

    draws = [dice.integers(0, len(liked), len(liked)).tolist() for _ in range(RESAMPLES)]
    gains = [gain(at) for at in draws if 0 < sum(liked[i] for i in at) < len(at)]
    return [
        round(float(value), 3) for value in (gain(range(len(liked))), *np.quantile(gains, (0.025, 0.975)))
    ]


def _opinion(value: Mapping[str, Any], quality: str, least_messages: int) -> bool | None:
    rating = value.get("ratings", {}).get(quality)
    messages = sum(len(turn) for turn in value["messages"])
    if rating is None or messages < least_messages:
        return None
    if float(rating) >= LIKED_FROM:
        return True
    return False if float(rating) <= DISLIKED_TO else None
