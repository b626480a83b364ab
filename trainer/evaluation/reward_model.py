"""A small reward model: how likely does this community like an answer to a question?

Logistic regression on blocks of features, each under a penalty of its own: what can be counted in the
answer, its wording, what it takes up of the question, and what kind of question it was. A block that
doesn't help to predict ratings left out is not used. There are two of these models in a run, with no rating
in common: one is fitted on training ratings and ranks replies to learn from (ranking), the other is fitted on
held-out ratings and judges the challenger (evidence). Either counts only once its AUC on ratings that it was
not fitted on has a lower bound over one half.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from storage.sentences import Figure, Sentence
from trainer.data.question_features import Exchange
from trainer.data.text_features import Array
from trainer.evaluation import ridge_logistic
from trainer.evaluation.feature_blocks import (
    ANSWER,
    BLOCKS,
    HIDDEN,
    MARGINS,
    OF_THE_QUESTION,
    Encoder,
    StatesOf,
    readable_names,
)
from trainer.evaluation.ridge_logistic import Folds, chance
from trainer.evaluation.statistics import Estimate, auc_estimate

# Of the features of the answer; the other blocks' are ridge_logistic's.
PENALTIES = (1.0, 4.0, 16.0)
FOLDS = 5
# Below this many of one kind an AUC says nothing.
MIN_EACH = 5

Penalties = Mapping[str, float]
"""The blocks that a model uses, with the penalty of each."""


@dataclass(frozen=True)
class RatedText:
    """An answer with its label; `group` is the conversation that it belongs to, for folds and clusters."""

    text: str
    liked: bool
    weight: float
    group: Hashable
    created_ms: int = 0
    question: str = ""

    @property
    def exchange(self) -> Exchange:
        """Return what was asked and answered."""
        return Exchange(self.question, self.text)


@dataclass(frozen=True)
class RewardModel:
    """Coefficients over the blocks that it uses; `probability` is calibrated on the ratings of its fit."""

    encoder: Encoder
    penalties: Penalties
    coefficients: Mapping[str, Array]
    intercept: float
    weight_of_blocks: Mapping[str, float]

    def probability(self, exchanges: Sequence[Exchange]) -> Array:
        """Return P(liked) for each answer."""
        return self._chance(self.encoder.blocks(exchanges))

    def _chance(self, blocks: Mapping[str, Array]) -> Array:
        log_odds = sum(blocks[name] @ values for name, values in self.coefficients.items())
        return chance(np.asarray(log_odds + self.intercept))

    def compare(
        self, rated: Sequence[RatedText], new: Sequence[Exchange], old: Sequence[Exchange]
    ) -> tuple[Array, Array, float]:
        """Return P(liked) of new and of old answers, and how far the difference of their means may be off.

        The last is a standard error for want of more ratings than `rated`, which the model was fitted on. To
        first order: Huber's sandwich, with conversations as clusters. That the answers are a sample too is
        not in it.
        """
        known, with_new, with_old = (
            self.encoder.blocks(each) for each in ([item.exchange for item in rated], new, old)
        )
        after, before = self._chance(with_new), self._chance(with_old)
        slopes, targets, weights = after * (1 - after), _targets(rated), _weights(rated)
        falls = before * (1 - before)
        across = sum(
            known[name]
            @ ((slopes @ with_new[name]) / len(new) - (falls @ with_old[name]) / len(old))
            / penalty
            for name, penalty in self.penalties.items()
        )
        kernel = ridge_logistic.combine_kernels(_grams(known), self.penalties)
        solution = ridge_logistic.fit(kernel, targets, weights)
        moved = ridge_logistic.influences(
            kernel, solution, targets, weights, np.asarray(across), float(slopes.mean() - falls.mean())
        )
        groups = {group: at for at, group in enumerate(dict.fromkeys(item.group for item in rated))}
        by_group = np.zeros(len(groups))
        np.add.at(by_group, [groups[item.group] for item in rated], moved)
        return after, before, float(np.linalg.norm(by_group))

    @property
    def reads_the_question(self) -> bool:
        """Whether a block that knows the question helped to predict ratings."""
        return any(name in self.penalties for name in OF_THE_QUESTION)

    @property
    def uses_hidden_states(self) -> bool:
        """Whether the base's hidden states helped to predict ratings."""
        return HIDDEN in self.penalties

    def strongest(self, count: int = 5) -> list[tuple[str, float]]:
        """Return the readable features with the largest effect of one standard deviation, in log-odds."""
        readable = [
            pair
            for block, names in readable_names().items()
            if block in self.coefficients
            for pair in zip(names, self.coefficients[block].tolist(), strict=False)
        ]
        return sorted(readable, key=lambda item: -abs(item[1]))[:count]


@dataclass(frozen=True)
class Proof:
    """How well the reward model predicts ratings that it did not see; None where there are too few.

    `unseen` decides; `cross_validated`, among the ratings that it was fitted on, is reported.
    """

    cross_validated: Estimate | None
    unseen: Estimate | None
    penalties: Penalties

    @property
    def holds(self) -> bool:
        """Whether the lower bound lies over one half."""
        return self.unseen is not None and self.unseen.bound_low > 0.5

    def why_not(self) -> Sentence:
        """Say in a clause why the reward model may not judge."""
        if self.unseen is None:
            return Sentence(
                "there are fewer than {count} liked or disliked replies to test the reward model on",
                count=MIN_EACH,
            )
        return Sentence(
            "the reward model could not be shown to predict ratings that it did not see "
            "(AUC {auc}, lower bound {bound})",
            auc=Figure(self.unseen.value, ".2f"),
            bound=Figure(self.unseen.bound_low, ".2f"),
        )


def fit(rated: Sequence[RatedText], penalties: Penalties, states_of: StatesOf | None = None) -> RewardModel:
    """Fit on ratings with the blocks and penalties that are given.

    Hidden states are asked for only if they are among the blocks. Raises ValueError unless both kinds are
    there.
    """
    encoder = Encoder([item.exchange for item in rated], states_of if HIDDEN in penalties else None)
    blocks = encoder.blocks([item.exchange for item in rated])
    kernel = ridge_logistic.combine_kernels(_grams(blocks), penalties)
    solution = ridge_logistic.fit(kernel, _targets(rated), _weights(rated))
    coefficients = {
        name: np.asarray(blocks[name].T @ solution.alpha / penalty) for name, penalty in penalties.items()
    }
    spread = {name: float((blocks[name] @ values).std()) for name, values in coefficients.items()}
    whole = sum(spread.values()) or 1.0
    shares = {name: value / whole for name, value in spread.items()}
    return RewardModel(encoder, dict(penalties), coefficients, solution.intercept, shares)


def penalties_for(rated: Sequence[RatedText], blocks: Sequence[str] = BLOCKS) -> Penalties:
    """Return which of the blocks help to predict ratings left out, and under which penalty each."""
    return _Rows(rated, _by_hash, blocks).choose_penalties()


def prove(
    rated: Sequence[RatedText],
    unseen: Sequence[RatedText],
    *,
    resamples: int,
    confidence: float,
    seed: int,
    states_of: StatesOf | None = None,
) -> tuple[RewardModel | None, Proof]:
    """Fit on ratings, blocks and penalties chosen by cross-validation, and test on other conversations'."""
    settings: dict[str, Any] = {"resamples": resamples, "confidence": confidence, "seed": seed}
    if not enough(rated):
        return None, Proof(None, None, {ANSWER: PENALTIES[-1]})
    found = _Rows(rated, _by_hash, states_of=states_of)
    penalties = found.choose_penalties()
    model = fit(rated, penalties, states_of)
    # Of the very folds that chose the penalties, and therefore only reported.
    validated = _estimate(found.predict(penalties), rated, settings)
    if not enough(unseen):
        return model, Proof(validated, None, penalties)
    tested = _estimate(model.probability([item.exchange for item in unseen]), unseen, settings)
    return model, Proof(validated, tested, penalties)


def cross_validated(
    rated: Sequence[RatedText],
    *,
    resamples: int,
    confidence: float,
    seed: int,
    stratified: bool = False,
    states_of: StatesOf | None = None,
) -> tuple[RewardModel | None, Estimate | None]:
    """Fit on all, and say how well that predicts conversations left out; None where there are too few.

    Blocks and penalties are chosen anew for each fold, by folds of their own: what is left out had no say.
    `stratified` deals the conversations of either kind evenly to the folds. With a kind that is rare a fold
    that happens to hold much of it is otherwise predicted by a model that has seen little of it, and the AUC
    errs below one half.
    """
    settings: dict[str, Any] = {"resamples": resamples, "confidence": confidence, "seed": seed}
    if not enough(rated):
        return None, None
    found = _Rows(rated, _dealt if stratified else _by_hash, states_of=states_of)
    return fit(rated, found.choose_penalties(), states_of), _estimate(found.predict_nested(), rated, settings)


def predict_left_out(rated: Sequence[RatedText], blocks: Mapping[str, Array]) -> tuple[Penalties, Array]:
    """Return which of some blocks of other features help, and each row's chance by a fit without its fold.

    Blocks and penalties behind a chance were chosen without the row's fold too; the folds are those of the
    reward model's own proof.
    """
    found = _Rows(rated, _by_hash, grams=_grams(blocks))
    return found.choose_penalties(), found.predict_nested()


class _Rows:
    """Ratings as numbers, with the Gram matrix of each block; `grams` takes the place of the blocks."""

    def __init__(
        self,
        rated: Sequence[RatedText],
        folds: Callable[[Sequence[RatedText]], list[int]],
        blocks: Sequence[str] = BLOCKS,
        grams: Mapping[str, Array] | None = None,
        states_of: StatesOf | None = None,
    ) -> None:
        exchanges = [item.exchange for item in rated]
        self._rated, self._folds_of = rated, folds
        if grams is None:
            known = Encoder(exchanges, states_of).blocks(exchanges)
            grams = _grams({name: known[name] for name in (*blocks, HIDDEN) if name in known})
        self._grams = grams
        self._targets, self._weights = _targets(rated), _weights(rated)
        self._folds: Folds = np.asarray(folds(rated))

    def choose_penalties(self) -> dict[str, float]:
        """Return the blocks that help, with their penalties."""
        return self._chosen_from(np.arange(len(self._rated)))

    def predict(self, penalties: Penalties) -> Array:
        """Return each row's chance of being liked by a fit without its fold."""
        kernel = ridge_logistic.combine_kernels(self._grams, penalties)
        return ridge_logistic.out_of_fold(kernel, self._targets, self._weights, self._folds)

    def predict_nested(self) -> Array:
        """Return the same, with penalties that were chosen without the fold too."""
        predicted = np.full(len(self._rated), float((self._weights * self._targets).mean()))
        for number in np.unique(self._folds):
            held, kept = np.flatnonzero(self._folds == number), np.flatnonzero(self._folds != number)
            if not 0 < self._targets[kept].sum() < len(kept):
                continue
            kernel = ridge_logistic.combine_kernels(self._grams, self._chosen_from(kept))
            found = ridge_logistic.fit(
                kernel[np.ix_(kept, kept)], self._targets[kept], self._weights[kept], ridge_logistic.ROUGHLY
            )
            predicted[held] = chance(kernel[np.ix_(held, kept)] @ found.alpha + found.intercept)
        return predicted

    def _chosen_from(self, rows: Folds) -> dict[str, float]:
        return ridge_logistic.choose(
            {name: gram[np.ix_(rows, rows)] for name, gram in self._grams.items()},
            self._targets[rows],
            self._weights[rows],
            np.asarray(self._folds_of([self._rated[at] for at in rows])),
            PENALTIES,
            MARGINS,
        )


def _estimate(predicted: Array, rated: Sequence[RatedText], settings: Mapping[str, Any]) -> Estimate:
    return auc_estimate(
        predicted.tolist(), [item.liked for item in rated], [item.group for item in rated], **settings
    )


def _grams(blocks: Mapping[str, Array]) -> dict[str, Array]:
    """Return each block's Gram matrix, shape (rows, rows)."""
    return {name: np.asarray(columns @ columns.T) for name, columns in blocks.items()}


def _by_hash(rated: Sequence[RatedText]) -> list[int]:
    """Return each text's fold: a conversation's own, whatever else there is."""
    return [fold_of(item.group) for item in rated]


def fold_of(group: Hashable) -> int:
    """Return the fold of a conversation."""
    return zlib.crc32(repr(group).encode()) % FOLDS


def _dealt(rated: Sequence[RatedText]) -> list[int]:
    """Return each text's fold: the conversations of either kind take turns, in the order of their hashes."""
    turns: dict[tuple[bool, Hashable], int] = {}
    for kind in (True, False):
        groups = {item.group for item in rated if item.liked == kind}
        ordered = sorted(groups, key=lambda group: (zlib.crc32(repr(group).encode()), repr(group)))
        turns |= {(kind, group): turn % FOLDS for turn, group in enumerate(ordered)}
    return [turns[item.liked, item.group] for item in rated]


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
