"""Free signals: what members did after a reply tells whether they like it, if their own ratings say so.

A model of signals alone is fitted on rated training replies and tested on those left out, by the folds of
the reward model's own proof. If it predicts them, unrated replies join the ratings in the reward model that
ranks replies to learn from, and in nothing else, each with the likelihood ratio of its signals: the label
that text and signals let expect, in turns with the fit. A chance in place of the ratio would pull the fit
towards what is too flat. How much of a rating such a label counts is chosen on ratings left out too, and is
0 unless that clearly helps. What the next message says is known by its letters (feature_blocks.Wording): a
community's own words of thanks, in any language.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from storage.learning.signals.of_replies import Signals
from trainer.data.question_features import Exchange
from trainer.data.rows import WeakLabel
from trainer.data.snapshot import DIGITS, Snapshot
from trainer.data.text_features import Array
from trainer.evaluation import reward_model, ridge_logistic, statistics
from trainer.evaluation.evaluate import rated_texts
from trainer.evaluation.feature_blocks import Scaling, Wording
from trainer.evaluation.reward_model import Penalties, RatedText, RewardModel
from trainer.evaluation.ridge_logistic import MARGIN, Folds, chance
from trainer.evaluation.statistics import Estimate

ACTS, WORDS = "acts", "words"
# The parts of a rating that an unrated reply may count.
WEIGHTS = (0.1, 0.3)
RESAMPLES = 500
# As sure as the gate has to be of its own judge.
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Found:
    """What signals told: `auc` on rated replies left out, None where there are too few, and what came of it.

    `weight` is 0 where `replies` unrated ones are not used.
    """

    auc: Estimate | None
    rated: int
    replies: int
    weight: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values, for a run's metrics."""
        figures = {"rated": self.rated, "replies": self.replies, "weight": self.weight}
        if self.auc is None:
            return figures
        return figures | {"auc": round(self.auc.value, 3), "bound": round(self.auc.bound_low, 3)}


def weak_labels(
    snapshot: Snapshot, of_rated: Sequence[Signals], of_unrated: Sequence[Signals], *, seed: int
) -> tuple[list[WeakLabel], Found]:
    """Return the unrated replies that a ranking model may learn from, none where their signals prove nothing.

    Both kinds of signals are given by their replies' ids; conversations that are held out are left out.
    """
    signals = {one.reply_id: one for one in of_rated}
    known = [
        (signals[row.reply_id], text)
        for row in snapshot.of("train")
        if row.reply_id in signals
        for text in rated_texts([row], corrections=False)
    ]
    held_out = {row.group_key for row in snapshot.of("development", "gate")}
    unrated = [one for one in of_unrated if one.group_key not in held_out]
    found = Found(None, len(known), len(unrated))
    if not reward_model.enough([text for _, text in known]):
        return [], found
    model, chances = SignalsModel.cross_validated(known)
    auc = statistics.auc_estimate(
        chances.tolist(),
        [text.liked for _, text in known],
        [text.group for _, text in known],
        resamples=RESAMPLES,
        confidence=CONFIDENCE,
        seed=seed,
    )
    found = replace(found, auc=auc)
    if auc.bound_low <= 0.5 or not unrated:
        return [], found
    weight = _choose_weight(model, rated_texts(snapshot.of("train")), unrated)
    if not weight:
        return [], found
    return label(model.fit(), unrated, weight), replace(found, weight=weight)


def label(model: SignalsModel, unrated: Sequence[Signals], weight: float) -> list[WeakLabel]:
    """Return unrated replies with the likelihood ratio of the signals of each, by a fitted model."""
    return [
        WeakLabel(
            one.reply_id,
            one.group_key,
            one.question,
            one.text,
            round(float(ratio), DIGITS),
            weight,
            one.source,
        )
        for one, ratio in zip(unrated, model.log_ratios(unrated), strict=True)
    ]


class SignalsModel:
    """Predicts from the signals of a reply alone whether it is liked."""

    def __init__(self, known: Sequence[tuple[Signals, RatedText]], penalties: Penalties) -> None:
        self._texts = [text for _, text in known]
        self._encoder = _Encoder([signals for signals, _ in known])
        self._blocks = self._encoder.blocks([signals for signals, _ in known])
        self._penalties = penalties
        self._folds = np.asarray([reward_model.fold_of(text.group) for text in self._texts])
        self._rows = np.arange(len(known))
        self._solution: ridge_logistic.Solution | None = None

    @classmethod
    def cross_validated(cls, known: Sequence[tuple[Signals, RatedText]]) -> tuple[SignalsModel, Array]:
        """Return a model that is still to be fitted, and what fits without each reply's fold say of it."""
        signals = [one for one, _ in known]
        blocks = _Encoder(signals).blocks(signals)
        penalties, chances = reward_model.predict_left_out([text for _, text in known], blocks)
        return cls(known, penalties), chances

    def fit(self, without: int | None = None) -> SignalsModel:
        """Fit on all rated replies but those of one fold; all the same where that leaves one kind only."""
        rows = np.flatnonzero(self._folds != without)
        if len({self._texts[at].liked for at in rows}) < 2:
            rows = np.arange(len(self._texts))
        self._rows = rows
        self._solution = ridge_logistic.fit(
            self._kernel({name: columns[rows] for name, columns in self._blocks.items()}),
            np.asarray([float(self._texts[at].liked) for at in rows]),
            _relative([self._texts[at] for at in rows]),
        )
        return self

    def log_ratios(self, signals: Sequence[Signals]) -> Array:
        """Return log P(signals | liked) / P(signals | disliked) for each: its log-odds over the ratings'."""
        assert self._solution is not None
        across = self._kernel(self._encoder.blocks(signals))
        texts = [self._texts[at] for at in self._rows]
        liked = float(_relative(texts) @ [text.liked for text in texts])
        usual = math.log(liked / (len(texts) - liked))
        return np.asarray(across @ self._solution.alpha + self._solution.intercept - usual)

    def _kernel(self, others: Mapping[str, Array]) -> Array:
        return np.asarray(
            sum(
                others[name] @ self._blocks[name][self._rows].T / penalty
                for name, penalty in self._penalties.items()
            )
        )


class _Encoder:
    """Turns signals into blocks of columns, on the scale of those that it was made from."""

    def __init__(self, signals: Sequence[Signals]) -> None:
        self._acts = Scaling.of(_acts(signals))
        self._words = Wording([one.next_words for one in signals])

    def blocks(self, signals: Sequence[Signals]) -> dict[str, Array]:
        """Return each block's columns, shape (signals, columns)."""
        return {
            ACTS: self._acts(_acts(signals)),
            WORDS: self._words([one.next_words for one in signals]),
        }


def _acts(signals: Sequence[Signals]) -> Array:
    """Return what was done: asked for another version, kept this one, went on, in how many letters."""
    return np.asarray(
        [
            [one.another_version, one.kept, one.went_on, math.log1p(len(one.next_words.strip()))]
            for one in signals
        ],
        dtype=float,
    )


def fit_beside(model: RewardModel, rated: Sequence[RatedText], weak: Sequence[WeakLabel]) -> RewardModel:
    """Return a reward model fitted anew on its ratings and on weak labels, everything else as it was."""
    if not weak:
        return model
    exchanges = [*(text.exchange for text in rated), *(Exchange(one.question, one.text) for one in weak)]
    blocks = model.encoder.blocks(exchanges)
    found = ridge_logistic.fit_expected(
        _joint(blocks, model.penalties),
        np.asarray([float(text.liked) for text in rated]),
        np.asarray([*_relative(rated), *(one.weight for one in weak)]),
        np.asarray([one.log_ratio for one in weak]),
    )
    coefficients = {
        name: np.asarray(blocks[name].T @ found.alpha / penalty) for name, penalty in model.penalties.items()
    }
    return replace(model, coefficients=coefficients, intercept=found.intercept)


def _choose_weight(signals: SignalsModel, rated: Sequence[RatedText], unrated: Sequence[Signals]) -> float:
    """Return the weight of weak labels under which the ranking model predicts ratings left out best.

    0 unless its loss falls by the margin that is asked of a block. Without a fold's ratings the model of
    signals is fitted anew, and unrated replies of its conversations are left out as well.
    """
    if not reward_model.enough(rated):
        return 0.0
    model = reward_model.fit(rated, reward_model.penalties_for(rated))
    exchanges = [*(text.exchange for text in rated), *(Exchange(one.question, one.text) for one in unrated)]
    kernel = _joint(model.encoder.blocks(exchanges), model.penalties)
    folds = np.asarray(
        [
            *(reward_model.fold_of(text.group) for text in rated),
            *(reward_model.fold_of(one.group_key) for one in unrated),
        ]
    )
    losses = {weight: np.zeros(len(rated)) for weight in (0.0, *WEIGHTS)}
    liked, own = np.asarray([float(text.liked) for text in rated]), _relative(rated)
    for number in np.unique(folds[: len(rated)]):
        ratios = signals.fit(without=int(number)).log_ratios(unrated)
        for weight, lost in losses.items():
            weights = np.concatenate([own, np.full(len(unrated), weight)])
            held, kept = _divide(folds, int(number), len(rated), weights)
            known, others = kept[kept < len(rated)], kept[kept >= len(rated)] - len(rated)
            if not 0 < liked[known].sum() < len(known):
                continue
            found = ridge_logistic.fit_expected(
                kernel[np.ix_(kept, kept)], liked[known], weights[kept], ratios[others]
            )
            chances = chance(kernel[np.ix_(held, kept)] @ found.alpha + found.intercept)
            lost[held] = -own[held] * np.log(np.where(liked[held] > 0, chances, 1 - chances))
    best = min(WEIGHTS, key=lambda weight: float(losses[weight].sum()))
    return best if ridge_logistic.clearly_less(losses[best], losses[0.0], MARGIN) else 0.0


def _divide(folds: Folds, number: int, rated: int, weights: Array) -> tuple[Folds, Folds]:
    """Return the rated replies of a fold, and everything else that weighs anything."""
    of_fold = folds == number
    return np.flatnonzero(of_fold[:rated]), np.flatnonzero(~of_fold & (weights > 0))


def _joint(blocks: Mapping[str, Array], penalties: Penalties) -> Array:
    return ridge_logistic.combine_kernels(
        {name: blocks[name] @ blocks[name].T for name in penalties}, penalties
    )


def _relative(rated: Sequence[RatedText]) -> Array:
    """Return weights with mean 1: a rating, as the model of ratings alone has it."""
    weights = np.asarray([text.weight for text in rated])
    return np.asarray(weights / weights.mean())
