"""Logistic regression with a penalty of its own for each block of features.

Rows are few and columns are many, so everything is solved in the space of the rows: with the penalties in
it, the sum of the blocks' Gram matrices is all that the fit has to know.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Folds = npt.NDArray[np.int64]

STEPS = 50
CLOSE = 1e-8
# Where penalties are only compared.
ROUGHLY = 1e-3
# A block is added only if it helps by so many standard errors of what it changes, on rows left out; the
# caller may ask for more of some.
MARGIN = 1.5
# Tried for a block that is added; the first one's are the caller's.
ADDED = (2.0, 8.0, 32.0)


@dataclass(frozen=True)
class Solution:
    """The fit in the space of the rows: log-odds are `kernel @ alpha + intercept`."""

    alpha: Array
    intercept: float
    curvature: Array


def chance(log_odds: Array) -> Array:
    """Return probabilities."""
    return np.asarray(1 / (1 + np.exp(-np.clip(log_odds, -30, 30))))


def fit(kernel: Array, targets: Array, weights: Array, close: float = CLOSE) -> Solution:
    """Fit by penalised maximum likelihood (Newton's method); the intercept is free.

    Raises ValueError unless both kinds are there.
    """
    if not 0 < targets.sum() < len(targets):
        raise ValueError("a reward model needs liked and disliked replies")
    alpha, intercept = np.zeros(len(targets)), _log_odds(targets, weights)
    log_odds = np.full(len(targets), intercept)
    for _ in range(STEPS):
        alpha, intercept = _newton_step(kernel, log_odds, targets, weights)
        before, log_odds = log_odds, kernel @ alpha + intercept
        if np.abs(log_odds - before).max() < close:
            break
    return Solution(alpha, intercept, _local(log_odds, targets, weights)[0])


def fit_expected(kernel: Array, targets: Array, weights: Array, log_ratios: Array) -> Solution:
    """Fit on rows whose labels are known and on more rows, of which something else is known: `log_ratios`.

    These are log P(it | label 1) / P(it | label 0), one for each row beyond `targets`. Each step of Newton's
    method takes the labels to be expected from the fit and from them (EM with a weight for rows without a
    label: Nigam et al., https://doi.org/10.1023/A:1007692713085). A ratio of 1 repeats the fit's own chance,
    and moves nothing. Raises ValueError unless both labels are there.
    """
    known = slice(len(targets))
    begun = fit(kernel[known, known], targets, weights[known], ROUGHLY)
    intercept, log_odds = begun.intercept, kernel[:, known] @ begun.alpha + begun.intercept
    for _ in range(STEPS):
        expected = np.concatenate([targets, chance(log_odds[len(targets) :] + log_ratios)])
        alpha, intercept = _newton_step(kernel, log_odds, expected, weights)
        before, log_odds = log_odds, kernel @ alpha + intercept
        if np.abs(log_odds - before).max() < ROUGHLY:
            break
    return Solution(alpha, intercept, _local(log_odds, expected, weights)[0])


def influences(
    kernel: Array, solution: Solution, targets: Array, weights: Array, across: Array, slope: float
) -> Array:
    """Return how far each row moves a linear figure of the fit: Huber's sandwich sums their squares.

    The figure is `across @ alpha + slope * intercept`, where `across` is the figure's kernel with the rows.
    """
    log_odds = kernel @ solution.alpha + solution.intercept
    curvature, pull = _local(log_odds, targets, weights)
    inner = kernel + np.diag(1 / curvature)
    solved, ones = np.linalg.solve(inner, np.column_stack([across, np.ones(len(targets))])).T
    shift = (slope - solved.sum()) / ones.sum()
    return np.asarray((solved + shift * ones) * pull / curvature)


def out_of_fold(kernel: Array, targets: Array, weights: Array, folds: Folds, close: float = ROUGHLY) -> Array:
    """Predict every row's chance by a fit that saw none of its fold; a fold of one kind gets the mean."""
    predicted = np.full(len(targets), float((weights * targets).sum() / weights.sum()))
    for number in np.unique(folds):
        held, kept = folds == number, folds != number
        if not 0 < targets[kept].sum() < kept.sum():
            continue
        found = fit(kernel[np.ix_(kept, kept)], targets[kept], weights[kept], close)
        predicted[held] = chance(kernel[np.ix_(held, kept)] @ found.alpha + found.intercept)
    return predicted


def choose(
    grams: Mapping[str, Array],
    targets: Array,
    weights: Array,
    folds: Folds,
    first: Sequence[float],
    margins: Mapping[str, float],
) -> dict[str, float]:
    """Return the penalty of each block by cross-validation; a block that doesn't clearly help is left out.

    The first block always stays, with the best of the penalties `first`; the others are tried in turn
    beside those that were kept.
    """
    chosen: dict[str, float] = {}
    best: Array | None = None
    for name, gram in grams.items():
        if best is not None and not gram.any():
            continue
        tried = [
            (penalty, _losses(combine_kernels(grams, chosen | {name: penalty}), targets, weights, folds))
            for penalty in (first if best is None else ADDED)
        ]
        penalty, losses = min(tried, key=lambda item: float(item[1].sum()))
        if best is None or clearly_less(losses, best, margins.get(name, MARGIN)):
            chosen[name], best = penalty, losses
    return chosen


def combine_kernels(grams: Mapping[str, Array], penalties: Mapping[str, float]) -> Array:
    """Return the kernel of some blocks under their penalties."""
    return np.asarray(sum(grams[name] / penalty for name, penalty in penalties.items()))


def clearly_less(losses: Array, before: Array, margin: float) -> bool:
    """Whether losses fall, summed over the rows, by so many standard errors of the fall."""
    gain = before - losses
    return bool(gain.sum() > margin * gain.std() * math.sqrt(len(gain)))


def _losses(kernel: Array, targets: Array, weights: Array, folds: Folds) -> Array:
    """Return each row's weighted log-loss, predicted without its fold."""
    predicted = np.clip(out_of_fold(kernel, targets, weights, folds), 1e-6, 1 - 1e-6)
    return np.asarray(-weights * (targets * np.log(predicted) + (1 - targets) * np.log(1 - predicted)))


def _newton_step(kernel: Array, log_odds: Array, targets: Array, weights: Array) -> tuple[Array, float]:
    curvature, pull = _local(log_odds, targets, weights)
    inner = kernel + np.diag(1 / curvature)
    sides = np.column_stack([log_odds + pull / curvature, np.ones(len(targets))])
    solved, ones = np.linalg.solve(inner, sides).T
    intercept = float(solved.sum() / ones.sum())
    return np.asarray(solved - intercept * ones), intercept


def _local(log_odds: Array, targets: Array, weights: Array) -> tuple[Array, Array]:
    """Return the curvature and the gradient of the log-likelihood at each row."""
    likely = chance(log_odds)
    return np.maximum(weights * likely * (1 - likely), 1e-9), weights * (targets - likely)


def _log_odds(targets: Array, weights: Array) -> float:
    return float(np.log((weights * targets).sum() / (weights * (1 - targets)).sum()))
