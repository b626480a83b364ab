"""A small reward model: how likely does this community like a reply?

Logistic regression on features that a person can read (length, ending, questions, lists, ...) beside hashed
words and word pairs under a stronger penalty. There are two of them in a run, with no rating in common: one
is fitted on training ratings and ranks replies to learn from (ranking), the other is fitted on held-out
ratings and judges the challenger (weighing). Either counts only once its AUC on ratings that it was not
fitted on has a lower bound over one half.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.text_features import FEATURES, HASH_BUCKETS, Array, features
from trainer.evaluation.statistics import Estimate, auc_estimate

PENALTIES = (1.0, 4.0, 16.0)
# Words are many and seen rarely: they are shrunk this much more than the readable features.
HASH_PENALTY = 4.0
FOLDS = 5
# Below this many of one kind an AUC says nothing.
MIN_EACH = 5


@dataclass(frozen=True)
class RatedText:
    """A reply with its label; `group` is the conversation that it belongs to, for folds and clusters."""

    text: str
    liked: bool
    weight: float
    group: Hashable
    created_ms: int = 0


@dataclass(frozen=True)
class RewardModel:
    """Coefficients over standardised features; `probability` is calibrated on the training ratings."""

    mean: Array
    scale: Array
    coefficients: Array
    intercept: float

    def probability(self, texts: Sequence[str]) -> Array:
        """Return P(liked) for each text."""
        return self._chance(self._inputs(texts))

    def _inputs(self, texts: Sequence[str]) -> Array:
        """Return the standardised features, shape (texts, coefficients)."""
        return np.asarray((features(texts) - self.mean) / self.scale)

    def _chance(self, inputs: Array) -> Array:
        return np.asarray(1 / (1 + np.exp(-(inputs @ self.coefficients + self.intercept))))

    def compared(
        self, rated: Sequence[RatedText], penalty: float, new: Sequence[str], old: Sequence[str]
    ) -> tuple[Array, Array, float]:
        """Return P(liked) of new and of old texts, and how far the difference of their means may be off.

        The last is a standard error for want of more ratings than `rated`, which the model was fitted on
        with `penalty`. To first order: Huber's sandwich, with conversations as clusters. That the texts are
        a sample too is not in it.
        """
        (chance, design), (after, with_new), (before, with_old) = (
            self._linear(texts) for texts in ([item.text for item in rated], new, old)
        )
        weights = _weights(rated)
        ridge = np.append(_ridge(penalty), 0.0)
        curvature = (design * (weights * chance * (1 - chance))[:, None]).T @ design + np.diag(ridge)
        scores = design * (weights * (_targets(rated) - chance))[:, None]
        groups = {group: at for at, group in enumerate(dict.fromkeys(item.group for item in rated))}
        by_group = np.zeros((len(groups), design.shape[1]))
        np.add.at(by_group, [groups[item.group] for item in rated], scores)
        slopes = [(x * (p * (1 - p))[:, None]).mean(0) for p, x in ((after, with_new), (before, with_old))]
        error = np.linalg.norm(by_group @ np.linalg.solve(curvature, slopes[0] - slopes[1]))
        return after, before, float(error)

    def _linear(self, texts: Sequence[str]) -> tuple[Array, Array]:
        """Return P(liked), and the inputs with a one for the intercept: their features are counted once."""
        inputs = self._inputs(texts)
        return self._chance(inputs), np.column_stack([inputs, np.ones(len(texts))])

    def strongest(self, count: int = 5) -> list[tuple[str, float]]:
        """Return the readable features with the largest effect of one standard deviation, in log-odds."""
        readable = zip(FEATURES, self.coefficients[: len(FEATURES)].tolist(), strict=True)
        return sorted(readable, key=lambda item: -abs(item[1]))[:count]


@dataclass(frozen=True)
class Proof:
    """How well the reward model predicts ratings that it did not see; None where there are too few.

    `unseen` decides; `cross_validated`, among the ratings that it was fitted on, is reported.
    """

    cross_validated: Estimate | None
    unseen: Estimate | None
    penalty: float

    @property
    def holds(self) -> bool:
        """Whether the lower bound lies over one half."""
        return self.unseen is not None and self.unseen.bound_low > 0.5

    def why_not(self) -> str:
        """Say in a clause why the reward model may not judge."""
        if self.unseen is None:
            return f"there are fewer than {MIN_EACH} liked or disliked replies to test the reward model on"
        return (
            f"the reward model could not be shown to predict ratings that it did not see "
            f"(AUC {self.unseen.value:.2f}, lower bound {self.unseen.bound_low:.2f})"
        )


def fit(rated: Sequence[RatedText], penalty: float) -> RewardModel:
    """Fit by penalised maximum likelihood (Newton's method; the intercept is free).

    Raises ValueError unless both kinds are there.
    """
    inputs = features([item.text for item in rated])
    return _fit(inputs, _targets(rated), _weights(rated), penalty)


def prove(
    rated: Sequence[RatedText], unseen: Sequence[RatedText], *, resamples: int, confidence: float, seed: int
) -> tuple[RewardModel | None, Proof]:
    """Fit on ratings, the penalty chosen by cross-validation, and test on ratings of other conversations."""
    settings: dict[str, Any] = {"resamples": resamples, "confidence": confidence, "seed": seed}
    model, validated, penalty = _validated(rated, settings)
    if model is None or not enough(unseen):
        return model, Proof(validated, None, penalty)
    tested = auc_estimate(
        model.probability([item.text for item in unseen]).tolist(),
        [item.liked for item in unseen],
        [item.group for item in unseen],
        **settings,
    )
    return model, Proof(validated, tested, penalty)


def cross_validated(
    rated: Sequence[RatedText], *, resamples: int, confidence: float, seed: int, stratified: bool = False
) -> tuple[RewardModel | None, Estimate | None]:
    """Fit on all, and say how well that predicts conversations left out; None where there are too few.

    `stratified` deals the conversations of either kind evenly to the folds. With a kind that is rare a fold
    that happens to hold much of it is otherwise predicted by a model that has seen little of it, and the AUC
    errs below one half.
    """
    settings: dict[str, Any] = {"resamples": resamples, "confidence": confidence, "seed": seed}
    model, validated, _ = _validated(rated, settings, _dealt if stratified else _by_hash)
    return model, validated


def _by_hash(rated: Sequence[RatedText]) -> list[int]:
    """Return each text's fold: a conversation's own, whatever else there is."""
    return [zlib.crc32(repr(item.group).encode()) % FOLDS for item in rated]


def _dealt(rated: Sequence[RatedText]) -> list[int]:
    """Return each text's fold: the conversations of either kind take turns, in the order of their hashes."""
    turns: dict[tuple[bool, Hashable], int] = {}
    for kind in (True, False):
        groups = {item.group for item in rated if item.liked == kind}
        ordered = sorted(groups, key=lambda group: (zlib.crc32(repr(group).encode()), repr(group)))
        turns |= {(kind, group): turn % FOLDS for turn, group in enumerate(ordered)}
    return [turns[item.liked, item.group] for item in rated]


def _validated(
    rated: Sequence[RatedText],
    settings: dict[str, Any],
    folds: Callable[[Sequence[RatedText]], list[int]] = _by_hash,
) -> tuple[RewardModel | None, Estimate | None, float]:
    """Choose the penalty by cross-validation over conversations and fit with it."""
    if not enough(rated):
        return None, None, PENALTIES[-1]
    inputs, targets, weights = features([item.text for item in rated]), _targets(rated), _weights(rated)
    fold = np.asarray(folds(rated))
    tried = [(penalty, _out_of_fold(inputs, targets, weights, fold, penalty)) for penalty in PENALTIES]
    penalty, predicted = min(tried, key=lambda item: _log_loss(item[1], targets, weights))
    estimate = auc_estimate(
        predicted.tolist(), (targets > 0.5).tolist(), [item.group for item in rated], **settings
    )
    return _fit(inputs, targets, weights, penalty), estimate, penalty


def enough(rated: Sequence[RatedText]) -> bool:
    """Whether there are MIN_EACH of each kind."""
    liked = sum(item.liked for item in rated)
    return min(liked, len(rated) - liked) >= MIN_EACH


def _targets(rated: Sequence[RatedText]) -> Array:
    return np.asarray([float(item.liked) for item in rated])


def _weights(rated: Sequence[RatedText]) -> Array:
    """Return weights with mean 1, so that a penalty means the same however sure the labels are."""
    weights = np.asarray([item.weight for item in rated])
    return np.asarray(weights / weights.mean())


def _fit(inputs: Array, targets: Array, weights: Array, penalty: float) -> RewardModel:
    if not 0 < targets.sum() < len(targets):
        raise ValueError("a reward model needs liked and disliked replies")
    mean = inputs.mean(0)
    scale = np.where(inputs.std(0) > 1e-9, inputs.std(0), 1.0)
    design = (inputs - mean) / scale
    ridge = _ridge(penalty)
    # Rows are fewer than features: the Newton step is solved in the space of the rows (Woodbury's identity).
    kernel = (design / ridge) @ design.T
    solution, intercept = np.zeros(design.shape[1]), 0.0
    for _ in range(50):
        chance = 1 / (1 + np.exp(-np.clip(design @ solution + intercept, -30, 30)))
        curvature = weights * chance * (1 - chance) + 1e-12
        error = weights * (chance - targets)
        sides = np.stack([design.T @ error + ridge * solution, design.T @ curvature])
        step, across = _ridge_solve(design, kernel, ridge, curvature, sides)
        shift = (error.sum() - sides[1] @ step) / (curvature.sum() - sides[1] @ across)
        step -= across * shift
        solution -= step
        intercept -= shift
        if max(np.abs(step).max(), abs(shift)) < 1e-8:
            break
    return RewardModel(mean, scale, solution, float(intercept))


def _ridge(penalty: float) -> Array:
    """Return the penalty of each coefficient."""
    return np.concatenate([np.full(len(FEATURES), penalty), np.full(HASH_BUCKETS, penalty * HASH_PENALTY)])


def _ridge_solve(design: Array, kernel: Array, ridge: Array, curvature: Array, sides: Array) -> Array:
    """Solve (design' diag(curvature) design + diag(ridge)) x = side for each row of `sides`."""
    scaled = sides / ridge
    inner = np.linalg.solve(kernel + np.diag(1 / curvature), design @ scaled.T)
    return np.asarray(scaled - (design.T @ inner).T / ridge)


def _out_of_fold(
    inputs: Array, targets: Array, weights: Array, fold: npt.NDArray[Any], penalty: float
) -> Array:
    """Predict every row by a model that saw none of its conversation; a fold of one kind gets the mean."""
    predicted = np.full(len(targets), float((weights * targets).sum() / weights.sum()))
    for number in range(FOLDS):
        held, kept = fold == number, fold != number
        if not held.any() or not 0 < targets[kept].sum() < kept.sum():
            continue
        model = _fit(inputs[kept], targets[kept], weights[kept], penalty)
        logits = ((inputs[held] - model.mean) / model.scale) @ model.coefficients + model.intercept
        predicted[held] = 1 / (1 + np.exp(-logits))
    return predicted


def _log_loss(predicted: Array, targets: Array, weights: Array) -> float:
    clipped = np.clip(predicted, 1e-6, 1 - 1e-6)
    losses = -(targets * np.log(clipped) + (1 - targets) * np.log(1 - clipped))
    return float((weights * losses).sum() / weights.sum())
