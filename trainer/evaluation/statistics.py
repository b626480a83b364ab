"""The statistics of the gate: clustered bootstrap intervals, AUC, and a betting e-process for votes."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

# Bets of the e-process, as shares of the stake. A prior over win rates .525 to .95 (rate = (1 + bet) / 2),
# heavier on small edges: measured against other priors in EXPERIMENTS.md.
BETS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9)
# Draws of the test by exchange: at an error of 1 % its own error is a tenth of that.
EXCHANGES = 10_000
# Futures of a vote that are simulated: it takes 0.04 s, and the quartiles err by a tenth.
FUTURES = 200


@dataclass(frozen=True)
class Estimate:
    """A figure over `n` items in `clusters` groups.

    `low` to `high` is the two-sided interval; `bound_low` and `bound_high` are one-sided bounds.
    """

    value: float
    low: float
    high: float
    bound_low: float
    bound_high: float
    n: int
    clusters: int

    def as_json(self) -> dict[str, float | int]:
        """Return the estimate as plain values."""
        return {key: getattr(self, key) for key in ("value", "low", "high", "n", "clusters")}


def clustered_mean(
    values: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    resamples: int,
    confidence: float,
    seed: int,
    bound_confidence: float | None = None,
    further_error: float = 0.0,
) -> Estimate:
    """Bootstrap a mean by resampling whole clusters (conversations): their items are not independent.

    Intervals are percentiles. The lower bound can be asked for at a confidence of its own. `further_error` is
    the standard error of what the values were measured with, common to all of them: a normal error that is
    added to every draw. Raises ValueError without values.
    """
    if not values:
        raise ValueError("there is nothing to estimate")
    names = list(dict.fromkeys(clusters))
    index = {name: i for i, name in enumerate(names)}
    sums, counts = np.zeros(len(names)), np.zeros(len(names))
    for value, cluster in zip(values, clusters, strict=True):
        sums[index[cluster]] += value
        counts[index[cluster]] += 1
    draws = _cluster_draws(len(names), resamples, seed)
    means = (draws @ sums) / (draws @ counts)
    if further_error:
        means = means + further_error * np.random.default_rng([seed, 1]).standard_normal(len(means))
    found = _estimate(float(sums.sum() / counts.sum()), means, confidence, len(values), len(names))
    if bound_confidence is None:
        return found
    return replace(found, bound_low=float(np.quantile(means, 1 - bound_confidence)))


def clustered_difference(
    values: Sequence[float],
    positive: Sequence[bool],
    clusters: Sequence[Hashable],
    *,
    resamples: int,
    confidence: float,
    seed: int,
) -> Estimate:
    """Bootstrap mean(values where positive) minus mean(values elsewhere), resampling whole clusters.

    Raises ValueError unless both kinds are there.
    """
    if not any(positive) or all(positive):
        raise ValueError("a difference needs both kinds")
    names = list(dict.fromkeys(clusters))
    index = {name: i for i, name in enumerate(names)}
    table = np.zeros((len(names), 4))
    for value, good, cluster in zip(values, positive, clusters, strict=True):
        at = 0 if good else 2
        table[index[cluster], at] += value
        table[index[cluster], at + 1] += 1
    draws = _cluster_draws(len(names), resamples, seed) @ table
    usable = draws[(draws[:, 1] > 0) & (draws[:, 3] > 0)]
    differences = usable[:, 0] / usable[:, 1] - usable[:, 2] / usable[:, 3]
    whole = table.sum(0)
    value = float(whole[0] / whole[1] - whole[2] / whole[3])
    return _estimate(value, differences, confidence, len(values), len(names))


def most_risen_by_chance(
    differences: Sequence[float], clusters: Sequence[Hashable], *, alpha: float, seed: int
) -> float:
    """Return how far a mean of paired differences gets by chance: beyond it in at most `alpha` of cases.

    The exact paired test by exchange (Fisher's randomisation test): if the two sides of a cluster might as
    well have changed places, so might its sign. Nothing is assumed of how differences are distributed.
    Raises ValueError without differences.
    """
    if not differences:
        raise ValueError("there is nothing to estimate")
    names = {name: at for at, name in enumerate(dict.fromkeys(clusters))}
    sums = np.zeros(len(names))
    for value, cluster in zip(differences, clusters, strict=True):
        sums[names[cluster]] += value
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), size=(EXCHANGES, len(sums)))
    means = signs @ sums / len(differences)
    # A hair more, so that the order of sums decides nothing.
    return float(np.quantile(means, 1 - alpha, method="higher")) + 1e-9


def auc(scores: Sequence[float], positive: Sequence[bool], weights: Sequence[float] | None = None) -> float:
    """Return the chance that a positive item scores above a negative one, ties counting half.

    Raises ValueError unless both kinds are there.
    """
    values, good = np.asarray(scores, dtype=float), np.asarray(positive, dtype=bool)
    mass = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=float)
    if not mass[good].sum() or not mass[~good].sum():
        raise ValueError("an AUC needs both kinds")
    return float(_weighted_auc(values, good, mass[None])[0])


def auc_estimate(
    scores: Sequence[float],
    positive: Sequence[bool],
    clusters: Sequence[Hashable],
    *,
    resamples: int,
    confidence: float,
    seed: int,
) -> Estimate:
    """Bootstrap an AUC by resampling whole clusters; draws without both kinds are left out."""
    values, good = np.asarray(scores, dtype=float), np.asarray(positive, dtype=bool)
    names = list(dict.fromkeys(clusters))
    index = {name: i for i, name in enumerate(names)}
    member = np.asarray([index[cluster] for cluster in clusters])
    draws = _cluster_draws(len(names), resamples, seed)[:, member]
    usable = draws[(draws[:, good].sum(1) > 0) & (draws[:, ~good].sum(1) > 0)]
    found = _weighted_auc(values, good, usable)
    return _estimate(auc(scores, positive), found, confidence, len(values), len(names))


def e_values(outcomes: Sequence[float]) -> tuple[float, float]:
    """Return the evidence that the challenger wins more than half of its duels, and that it loses more.

    A betting e-process (https://arxiv.org/abs/2010.09686): the wealth of a gambler who stakes a mixture of
    fixed shares on each vote. If the challenger is no better than a coin, its chance of ever reaching 20 is
    at most 1/20, however often somebody looks. `outcomes` are 1 (challenger), -1 (champion) and 0 (tie, no
    evidence), or anything between; their order makes no difference.
    """
    values = np.asarray(outcomes, dtype=float)
    bets = np.asarray(BETS)[:, None]
    return (
        float(np.exp(np.log1p(bets * values).sum(1)).mean()),
        float(np.exp(np.log1p(-bets * values).sum(1)).mean()),
    )


def most_by_chance(opposite: int, alpha: float = 0.05) -> int:
    """Return the most changes for the worse that chance explains beside `opposite` changes for the better.

    The exact one-sided sign test of paired outcomes (McNemar's): without a real difference a change goes
    either way like a coin, and one more than this would come up with a chance of `alpha` or less.
    """
    worse = 0
    while _sign_tail(worse + 1, opposite) > alpha:
        worse += 1
    return worse


def _sign_tail(worse: int, better: int) -> float:
    """Return the chance of `worse` heads or more in as many throws of a coin as there are changes."""
    changes = worse + better
    return sum(math.comb(changes, heads) for heads in range(worse, changes + 1)) / 2.0**changes


def votes_to_decide(alpha: float, win_rate: float, share: float = 0.5, limit: int = 2_000) -> int:
    """Return by how many votes the evidence suffices in a `share` of all cases, at a true `win_rate` (> .5).

    Exact, by following the distribution of wins among votes that are still undecided; at most `limit`.
    """
    bets = np.asarray(BETS)[:, None]
    undecided, decided = np.ones(1), 0.0
    for n in range(1, limit):
        undecided = np.append(undecided * (1 - win_rate), 0.0) + np.append(0.0, undecided * win_rate)
        wins = np.arange(n + 1)
        wealth = np.exp(wins * np.log1p(bets) + (n - wins) * np.log1p(-bets)).mean(0)
        enough = wealth >= 1 / alpha
        decided += float(undecided[enough].sum())
        undecided[enough] = 0.0
        if decided >= share:
            return n
    return limit


def outcomes_to_decide(
    seen: Sequence[float],
    hoped: tuple[float, float],
    limits: tuple[float, float],
    *,
    shares: Sequence[float],
    limit: int,
) -> list[int]:
    """Return by how many more outcomes the evidence suffices in these shares of simulated futures.

    A future's win rate is drawn from the posterior of `hoped`, a Beta prior as (wins, losses), and of the
    outcomes `seen` (-1 to 1); its outcomes are 1 and -1. It ends where the evidence for reaches the first of
    `limits` or the evidence against the second, and after `limit` outcomes at the latest.
    """
    draws, values, bets = np.random.default_rng(0), np.asarray(seen, dtype=float), np.asarray(BETS)
    won = float((1 + values).sum() / 2)
    win_rates = draws.beta(hoped[0] + won, hoped[1] + len(values) - won, FUTURES)
    gain = np.tile(np.log1p(np.outer(values, bets)).sum(0), (FUTURES, 1))
    loss = np.tile(np.log1p(-np.outer(values, bets)).sum(0), (FUTURES, 1))
    ended = np.full(FUTURES, limit)
    for n in range(1, limit):
        signs = np.where(draws.random(FUTURES) < win_rates, 1.0, -1.0)
        gain, loss = gain + np.log1p(np.outer(signs, bets)), loss + np.log1p(-np.outer(signs, bets))
        enough = (np.exp(gain).mean(1) >= limits[0]) | (np.exp(loss).mean(1) >= limits[1])
        ended[enough & (ended == limit)] = n
        if (ended < limit).all():
            break
    return [int(each) for each in np.quantile(ended, shares, method="lower")]


def _weighted_auc(values: Array, good: npt.NDArray[np.bool_], mass: Array) -> Array:
    """Return one AUC for each row of `mass` (rows, items)."""
    # Negative mass strictly below each value, plus half of that tied with it.
    _, tied = np.unique(values, return_inverse=True)
    negative = (mass * ~good) @ np.eye(tied.max() + 1)[tied]
    below = np.cumsum(negative, axis=1) - negative / 2
    wins = (mass * good * below[:, tied]).sum(1)
    return np.asarray(wins / (mass[:, good].sum(1) * mass[:, ~good].sum(1)))


def _cluster_draws(clusters: int, resamples: int, seed: int) -> Array:
    """Return how often each resample draws each cluster, shape (resamples, clusters)."""
    generator = np.random.default_rng(seed)
    chances = np.full(clusters, 1 / clusters)
    return generator.multinomial(clusters, chances, size=resamples).astype(np.float64)


def _estimate(value: float, draws: Array, confidence: float, n: int, clusters: int) -> Estimate:
    tail = 1 - confidence
    low, high, bound_low, bound_high = np.quantile(draws, [tail / 2, 1 - tail / 2, tail, 1 - tail])
    return Estimate(value, float(low), float(high), float(bound_low), float(bound_high), n, clusters)
