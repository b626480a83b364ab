"""The training-fit check: did a challenger learn its own training replies? It needs no sampling and no judge.

A challenger that learned from its ratings finds the liked replies more likely than the base does, by a larger
margin than the disliked ones. One with mixed-up labels or the wrong weights does not, though its replies may
please by chance. Passing is no evidence of a gain: the check says nothing about unseen replies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.evaluation import statistics
from trainer.evaluation.reward_model import MIN_EACH

# Replies of each kind that are scored, under two models: ten seconds of a CPU.
MOST_EACH = 20


@dataclass(frozen=True)
class ScoredTrainingReply:
    """Log-probability per token, in nats, of one rated training reply under challenger and base."""

    reply_id: str
    liked: bool
    challenger: float
    base: float


@dataclass(frozen=True)
class TrainingFit:
    """How well a challenger separates the liked from the disliked replies that it was trained on.

    `share` is that of pairs of a liked and a disliked reply in which the liked one gained more beside the
    base (an AUC): a count over these very replies, so that it has no interval.
    """

    liked: int
    disliked: int
    share: float


def summarise(scored: Sequence[ScoredTrainingReply]) -> TrainingFit | None:
    """Return the training fit; None with fewer than MIN_EACH of a kind."""
    liked = [reply.liked for reply in scored]
    counts = sum(liked), len(liked) - sum(liked)
    if min(counts) < MIN_EACH:
        return None
    return TrainingFit(*counts, statistics.auc([reply.challenger - reply.base for reply in scored], liked))
