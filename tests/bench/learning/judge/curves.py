"""AUC by number of ratings, of a judge that sees answers only beside one that reads the question."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from tests.bench.learning.judge.pools import Pool
from trainer.evaluation import reward_model, statistics
from trainer.evaluation.feature_blocks import ANSWER, BLOCKS
from trainer.evaluation.reward_model import RatedText

COUNTS = (50, 100, 250, 500, 800)
# Whole conversations that are left to test on.
TESTED = 400
JUDGES = {"answers only": (ANSWER,), "with the question": BLOCKS}
PROOF: dict[str, Any] = {"resamples": 500, "confidence": 0.95, "seed": 0}


def cell(
    pool: Pool, texts: Sequence[RatedText], true: Sequence[bool], count: int, draw: int
) -> dict[str, Any]:
    """Fit both judges on `count` ratings and test them on other conversations' true labels.

    `bound` is the lower bound of the AUC on noisy ratings that the product itself would go by.
    """
    train, test = split(pool, count, draw)
    rated = [texts[at] for at in train]
    if not reward_model.enough(rated):
        return {"too few": True}
    unseen = [texts[at] for at in test]
    truth = [true[at] for at in test]
    found: dict[str, Any] = {}
    for name, blocks in JUDGES.items():
        penalties = reward_model.penalties_for(rated, blocks)
        model = reward_model.fit(rated, penalties)
        chances = model.probability([item.exchange for item in unseen]).tolist()
        said = statistics.auc_estimate(
            chances, [item.liked for item in unseen], [item.group for item in unseen], **PROOF
        )
        found[name] = {
            "auc": round(statistics.auc(chances, truth), 4),
            "bound": round(said.bound_low, 4),
            "blocks": dict(penalties),
        }
    return found


def split(pool: Pool, count: int, draw: int) -> tuple[list[int], list[int]]:
    """Draw conversations to rate until there are `count` answers; others are tested on."""
    by_group: dict[str, list[int]] = {}
    for at, group in enumerate(pool.groups):
        by_group.setdefault(group, []).append(at)
    order = sorted(by_group)
    random.Random(f"draw {pool.name} {draw}").shuffle(order)
    train: list[int] = []
    test: list[int] = []
    for group in order:
        if len(train) < count:
            train += by_group[group]
        elif len(test) < TESTED:
            test += by_group[group]
    return train[:count], test
