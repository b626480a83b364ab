"""How much the members really like a model: the hidden utility of its replies to new prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.bench.learning.chat import Given
from tests.bench.learning.tastes import Community
from trainer.evaluation import statistics

RESAMPLES = 2_000
CONFIDENCE = 0.95


def utility(given: Sequence[Given], community: Community, drifted: bool) -> dict[str, float | int]:
    """Return the mean utility with a 95 % interval, resampled by prompt."""
    values = [community.utility(reply.exchange, drifted) for reply in given]
    return _estimate(values, [reply.asked.text for reply in given])


def gain(
    new: Sequence[Given], old: Sequence[Given], community: Community, drifted: bool
) -> dict[str, float | int]:
    """Return the difference of two models on the same prompts and seeds, paired by reply."""
    before = {(reply.asked.text, reply.reply): community.utility(reply.exchange, drifted) for reply in old}
    values = [
        community.utility(reply.exchange, drifted) - before[reply.asked.text, reply.reply] for reply in new
    ]
    return _estimate(values, [reply.asked.text for reply in new])


def best_of(given: Sequence[Given], community: Community, drifted: bool) -> dict[str, float | int]:
    """Return the mean utility of the best reply to each prompt: what an oracle that picks could reach."""
    best: dict[str, float] = {}
    for reply in given:
        value = community.utility(reply.exchange, drifted)
        best[reply.asked.text] = max(value, best.get(reply.asked.text, 0.0))
    return _estimate(list(best.values()), list(best))


def share_with(given: Sequence[Given], words: str) -> float:
    """Return the share of replies that contain some words."""
    return sum(words.lower() in reply.text.lower() for reply in given) / max(1, len(given))


def _estimate(values: Sequence[float], clusters: Sequence[str]) -> dict[str, Any]:
    found = statistics.clustered_mean(values, clusters, resamples=RESAMPLES, confidence=CONFIDENCE, seed=0)
    return {key: round(value, 4) for key, value in found.as_json().items()}
