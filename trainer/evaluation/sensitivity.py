"""What a verdict hangs on: one member's ratings, or when they were given. Reported; it decides nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from storage.config_sections import GateConfig
from trainer.evaluation import evidence, reward_model, statistics
from trainer.evaluation.evidence import Ratings
from trainer.evaluation.feature_blocks import StatesOf
from trainer.evaluation.reward_model import Penalties, RatedText
from trainer.evaluation.scores import Pair
from trainer.evaluation.statistics import Estimate

# The older part of the ratings, from which the newer ones are predicted.
OLDER_SHARE = 0.7


def without_members(
    pairs: Sequence[Pair],
    ratings: Mapping[str, Ratings],
    penalties: Penalties,
    settings: GateConfig,
    seed: int,
    challenger_number: int = 1,
    states_of: StatesOf | None = None,
) -> list[dict[str, Any]]:
    """Return the gain in P(liked) as a judge would see it that never heard one member, for each of them.

    `ratings` are the labels without that member, by the member's name. The challenger stays as it was
    trained.
    """
    judge: dict[str, Any] = _judge(settings, seed)
    found = []
    for name, others in ratings.items():
        if not _both_kinds(others.held_out):
            continue
        model = reward_model.fit(others.held_out, penalties, states_of)
        gain = evidence.preference(model, others.held_out, pairs, judge, challenger_number)
        found.append({"name": name, **gain.as_json(), "still_better": gain.bound_low > 0})
    return found


def time_forward(
    ratings: Ratings,
    penalties: Penalties,
    settings: GateConfig,
    seed: int,
    states_of: StatesOf | None = None,
) -> Estimate | None:
    """Return the AUC on the newer ratings of a judge that has learned from the older ones only.

    A conversation lies on one side: that of its newest reply. None with too few of a kind on either side, or
    where no times are known.
    """
    newest: dict[Any, int] = {}
    texts = [*ratings.train, *ratings.held_out]
    for item in texts:
        newest[item.group] = max(item.created_ms, newest.get(item.group, 0))
    order = sorted(newest, key=lambda group: (newest[group], str(group)))
    older = set(order[: round(len(order) * OLDER_SHARE)])
    before = [item for item in texts if item.group in older]
    after = [item for item in texts if item.group not in older]
    if len(set(newest.values())) < 2 or not (reward_model.enough(before) and reward_model.enough(after)):
        return None
    model = reward_model.fit(before, penalties, states_of)
    return statistics.auc_estimate(
        model.probability([item.exchange for item in after]).tolist(),
        [item.liked for item in after],
        [item.group for item in after],
        **_judge(settings, seed),
    )


def _both_kinds(rated: Sequence[RatedText]) -> bool:
    return 0 < sum(item.liked for item in rated) < len(rated)


def _judge(settings: GateConfig, seed: int) -> dict[str, Any]:
    return {"resamples": settings.bootstrap, "confidence": settings.confidence, "seed": seed}
