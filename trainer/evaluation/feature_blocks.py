"""What a reward model knows of a question and its answer, in blocks that are shrunk apart.

"answer" is what can be counted in the answer's text, "wording" which runs of letters it is made of,
"question" what it takes up of its question, and "kind" what can be counted in it by the kind of question.
Where the operator asks for it, "hidden" is what the base makes of it after its question.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from trainer.data.question_features import (
    KINDS,
    QUESTION_FEATURES,
    Exchange,
    Rarity,
    kinds,
    pieces,
    question_features,
)
from trainer.data.text_features import FEATURES, Array, features
from trainer.evaluation.hidden_states.components import Components

ANSWER, WORDING, QUESTION, KIND, HIDDEN = "answer", "wording", "question", "kind", "hidden"
BLOCKS = (ANSWER, WORDING, QUESTION, KIND)
# Those that know the question; the others see the answer's text only.
OF_THE_QUESTION = (QUESTION, KIND, HIDDEN)
# In standard errors: of its 264 columns some always seem to help (EXPERIMENTS, 19).
MARGINS = {KIND: 2.0}
# Words are many and seen rarely: they are shrunk this much more than the readable features.
HASH_PENALTY = 4.0
# The squared length of a text in the space of its letters, about that of the readable features.
WORDING_SCALE = 30.0
# A rare kind of question must not carry everything: standard deviations at most.
MOST = 3.0

StatesOf: TypeAlias = Callable[[Sequence[Exchange]], Array]
"""Returns hidden states of exchanges, shape (exchanges, hidden size)."""


@dataclass(frozen=True)
class Scaling:
    """Mean and standard deviation of some columns; a column without spread stays as it is."""

    mean: Array
    deviation: Array

    @classmethod
    def of(cls, columns: Array) -> Scaling:
        """Measure columns."""
        deviation = columns.std(0)
        return cls(columns.mean(0), np.where(deviation > 1e-9, deviation, 1.0))

    def __call__(self, columns: Array) -> Array:
        """Return standardised columns."""
        return np.asarray((columns - self.mean) / self.deviation)


class Encoder:
    """Turns exchanges into blocks of columns, on the scale of the exchanges that it was made from."""

    def __init__(self, exchanges: Sequence[Exchange], states_of: StatesOf | None = None) -> None:
        """Measure how rare words are, and each column's mean and spread; no label is looked at.

        Without `states_of` there is no block of hidden states.
        """
        answers = [exchange.answer for exchange in exchanges]
        questions = dict.fromkeys(exchange.question for exchange in exchanges)
        self._rarity = Rarity([*questions, *answers])
        self._answer = Scaling.of(features(answers))
        self._question = Scaling.of(question_features(exchanges, self._rarity))
        self._kinds = Scaling.of(kinds([exchange.question for exchange in exchanges]))
        self._wording = Wording(answers)
        self._states_of = states_of
        self._components = None if states_of is None else Components(states_of(exchanges))

    def blocks(self, exchanges: Sequence[Exchange]) -> dict[str, Array]:
        """Return each block's columns, shape (exchanges, columns), under a penalty of 1."""
        answers = [exchange.answer for exchange in exchanges]
        counted = self._answer(features(answers))
        readable, hashed = counted[:, : len(FEATURES)], counted[:, len(FEATURES) :]
        asked = np.clip(self._kinds(kinds([exchange.question for exchange in exchanges])), -MOST, MOST)
        by_kind = asked[:, :, None] * np.clip(readable, -MOST, MOST)[:, None, :] / math.sqrt(len(KINDS))
        hidden = (
            {HIDDEN: self._components(self._states_of(exchanges))}
            if self._components is not None and self._states_of is not None
            else {}
        )
        return {
            ANSWER: np.hstack([readable, hashed / math.sqrt(HASH_PENALTY)]),
            WORDING: self._wording(answers),
            QUESTION: self._question(question_features(exchanges, self._rarity)),
            KIND: by_kind.reshape(len(exchanges), -1),
            **hidden,
        }


class Wording:
    """Runs of letters weighted by how rare they are (tf-idf); those that occur once are left out."""

    def __init__(self, texts: Sequence[str]) -> None:
        counts = Counter(piece for text in texts for piece in pieces(text))
        known = sorted(piece for piece, count in counts.items() if count > 1)
        self._place = {piece: at for at, piece in enumerate(known)}
        self._weight = np.asarray([math.log((len(texts) + 1) / counts[piece]) for piece in known])
        self._mean = np.zeros(len(known))
        self._mean = self(texts).mean(0)

    def __call__(self, texts: Sequence[str]) -> Array:
        """Return columns of runs, shape (texts, runs)."""
        found = np.zeros((len(texts), len(self._place)))
        for row, text in enumerate(texts):
            found[row, [self._place[piece] for piece in pieces(text) if piece in self._place]] = 1.0
        found *= self._weight
        length = np.linalg.norm(found, axis=1, keepdims=True)
        return np.asarray(math.sqrt(WORDING_SCALE) * found / np.maximum(length, 1e-9) - self._mean)


def readable_names() -> dict[str, tuple[str, ...]]:
    """Return the names of the first columns of those blocks that a person can read."""
    return {ANSWER: FEATURES, QUESTION: QUESTION_FEATURES}
