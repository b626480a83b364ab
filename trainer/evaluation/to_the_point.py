"""Do answers answer? The base tells, by which question it finds each of them likelier to follow.

An answer that says something of its question is likelier after that one than after another member's; one
that would fit any question ("That is nice! What about you?") is about as likely after both. So the base is
asked how likely each answer is after its own question and after others of the same run. What the answer would
be worth alone cancels out, and so does most of its length: short answers that answer are told as well as long
ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainer.evaluation import statistics
from trainer.evaluation.statistics import Estimate

# Prompts whose answers are looked at, and other questions that each of them is put behind: half a minute of
# two cores for two models.
MOST_PROMPTS = 32
OTHERS = 2
# Where the share has risen by this much over the champion's there is doubt, and more answers are looked at,
# of those that were compared: by 32 a rise of .17 is only known to be more than .07 (EXPERIMENTS, 33). A rise
# beyond the second figure leaves none.
DOUBT = (0.05, 0.3)
MOST_IN_DOUBT = 96
# Fewer prompts than this say nothing.
MIN_PROMPTS = 12
# How often a challenger that answers as much to the point as what it is compared with is taken for worse, in
# each of the two comparisons (EXPERIMENTS, 21). By the second look in doubt it may be up to twice
# as often.
ERROR = 0.025


@dataclass(frozen=True)
class Tie:
    """Log-probability of one answer, in nats, after its own question and after others."""

    own: float
    others: tuple[float, ...]

    @property
    def beside(self) -> float:
        """Return how far it fits the others as well as its own: 0 its own only, 1 no better its own."""
        if not self.others:
            return 0.0
        chances = [1 / (1 + math.exp(min(50.0, self.own - other))) for other in self.others]
        return min(1.0, 2 * sum(chances) / len(chances))


@dataclass(frozen=True)
class TiedAnswers:
    """How everybody's answers to one prompt are tied to it; `base` where it answered beside an adapter."""

    cluster: str
    challenger: Tie
    champion: Tie
    base: Tie | None = None


@dataclass(frozen=True)
class Rise:
    """How far a share has risen, and how far it gets by chance: beyond `most_by_chance` in ERROR of cases."""

    estimate: Estimate
    most_by_chance: float

    @property
    def beyond_chance(self) -> bool:
        """Whether it has risen further."""
        return self.estimate.value > self.most_by_chance

    def as_json(self) -> dict[str, float | int]:
        """Return plain values for reports."""
        return {**self.estimate.as_json(), "most_by_chance": self.most_by_chance}


@dataclass(frozen=True)
class ToThePoint:
    """The share of answers beside the point, and its rise over champion and base.

    `over_base` is None where the champion is the base, or where it has answered too few prompts.
    """

    challenger: float
    champion: float
    over_champion: Rise
    base: float | None = None
    over_base: Rise | None = None

    def as_json(self) -> dict[str, Any]:
        """Return plain values for reports."""
        return {
            "challenger": self.challenger,
            "champion": self.champion,
            "over_champion": self.over_champion.as_json(),
            "base": self.base,
            "over_base": self.over_base.as_json() if self.over_base else None,
        }


def summarise(tied: Sequence[TiedAnswers], **judge: Any) -> ToThePoint | None:
    """Return how many answers are beside the point; None with too few prompts to say."""
    if len(tied) < MIN_PROMPTS:
        return None
    with_base = [(each, each.base) for each in tied if each.base is not None]
    known = len(with_base) >= MIN_PROMPTS
    return ToThePoint(
        challenger=_mean([each.challenger.beside for each in tied]),
        champion=_mean([each.champion.beside for each in tied]),
        over_champion=_rise([(each, each.champion) for each in tied], judge),
        base=_mean([base.beside for _, base in with_base]) if known else None,
        over_base=_rise(with_base, judge) if known else None,
    )


def in_doubt(tied: Sequence[TiedAnswers]) -> bool:
    """Whether more answers have to be looked at, by how far the share has risen over the champion's."""
    if not tied:
        return False
    least, most = DOUBT
    return least <= _mean([each.challenger.beside - each.champion.beside for each in tied]) <= most


def _rise(compared: Sequence[tuple[TiedAnswers, Tie]], judge: dict[str, Any]) -> Rise:
    differences = [each.challenger.beside - before.beside for each, before in compared]
    clusters = [each.cluster for each, _ in compared]
    return Rise(
        statistics.clustered_mean(differences, clusters, **judge),
        statistics.most_risen_by_chance(differences, clusters, alpha=ERROR, seed=judge["seed"]),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
