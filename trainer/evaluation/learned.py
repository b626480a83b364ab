"""Did a challenger learn what it was taught? Its own training replies answer: no sampling, no judge.

A challenger that has learned its ratings finds the liked replies that it imitated likelier than the base
does, more so than the disliked ones. One whose labels got mixed up on the way, or whose weights are not those
that were trained, does not, though its replies may please by chance. That it did learn is no evidence of a
gain: of replies that it has not seen this says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.evaluation import statistics
from trainer.evaluation.reward_model import MIN_EACH

# Replies of each kind that are scored, under two models: ten seconds of a CPU.
MOST_EACH = 20


@dataclass(frozen=True)
class TaughtReply:
    """Log-probability per token, in nats, of one rated training reply under challenger and base."""

    reply_id: str
    liked: bool
    challenger: float
    base: float


@dataclass(frozen=True)
class Learned:
    """How well a challenger tells apart what it was taught.

    `share` is that of pairs of a liked and a disliked reply in which the liked one gained more beside the
    base (an AUC): a count over these very replies, so that it has no interval.
    """

    liked: int
    disliked: int
    share: float


def judged(scored: Sequence[TaughtReply]) -> Learned | None:
    """Return what was learned; None with fewer than MIN_EACH of a kind."""
    liked = [reply.liked for reply in scored]
    counts = sum(liked), len(liked) - sum(liked)
    if min(counts) < MIN_EACH:
        return None
    return Learned(*counts, statistics.auc([reply.challenger - reply.base for reply in scored], liked))
