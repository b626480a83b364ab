"""What a base's hidden states would add to the judge: a fifth block beside those that it has.

The product reads the middle layer given the question, as 16 principal components; here other layers, contexts
and numbers stand beside that, and what the block does where cross-validation leaves it out.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.config_sections import ChatConfig
from tests.bench.learning.judge.curves import split
from tests.bench.learning.judge.pools import Pool
from trainer.data.question_features import Exchange
from trainer.data.text_features import Array
from trainer.evaluation import reward_model, ridge_logistic, statistics
from trainer.evaluation.feature_blocks import Encoder
from trainer.evaluation.hidden_states.components import Components
from trainer.evaluation.reward_model import RatedText

# Imported where it is used: whoever only reads cells loads no model library.
if TYPE_CHECKING:
    from bot.serving.model.loading import LoadedBase

LAYERS, DEPTHS = ("middle", "last"), (0.5, 1.0)
MAX_LENGTH = 512
CONTEXTS = ("asked", "alone", "difference", "both")
HIDDEN, NOW = "hidden states", "now"
# Taken at any price: what the block does where it isn't left out.
ALWAYS = float("-inf")


@dataclass(frozen=True)
class Variant:
    """Which states are used: given the question, given an empty message, or the difference.

    `both` is the first and the last of these, `rank` components each.
    """

    layer: str
    context: str
    rank: int

    @property
    def name(self) -> str:
        """Return its name in tables and cells."""
        return f"{self.layer}, {self.context}, {self.rank}"

    @classmethod
    def of(cls, text: str) -> Variant:
        """Read ``LAYER:CONTEXT:RANK``. Raises ValueError."""
        layer, context, rank = text.split(":")
        if layer not in LAYERS or context not in CONTEXTS:
            raise ValueError(f"{text}: use one of {LAYERS}, one of {CONTEXTS} and a number")
        return cls(layer, context, int(rank))


CHOSEN = Variant("middle", "asked", 16)


class States:
    """Mean hidden states of answers, computed once and kept in a file."""

    def __init__(self, base_folder: Path, kept: Path) -> None:
        self._folder, self._path = base_folder, kept
        self._base: LoadedBase | None = None
        self._known: dict[str, Array] = {}
        if kept.exists():
            with np.load(kept) as stored:
                self._known = dict(zip(stored["keys"].tolist(), stored["states"], strict=True))

    def parts(self, exchanges: Sequence[Exchange], variant: Variant) -> list[Array]:
        """Return one layer's states, each part of shape (exchanges, hidden size)."""
        layer = LAYERS.index(variant.layer)
        states = [self._of(each)[:, layer] for each in _read(exchanges, variant)]
        if variant.context in ("asked", "alone"):
            return states
        asked, alone = states
        return [asked, asked - alone] if variant.context == "both" else [asked - alone]

    def compute(self, exchanges: Sequence[Exchange], variants: Sequence[Variant]) -> None:
        """Compute what some variants need and isn't known yet, and keep it."""
        wanted = {
            key_of(each): each for variant in variants for read in _read(exchanges, variant) for each in read
        }
        missing = {key: each for key, each in wanted.items() if key not in self._known}
        if missing:
            from bot.serving.model.loading import load_base
            from trainer.evaluation.hidden_states.reader import mean_states

            self._base = self._base or load_base(self._folder, "auto", "serve")
            for key, each in missing.items():
                states = mean_states(self._base, each, ChatConfig().system_prompt, MAX_LENGTH, DEPTHS)
                self._known[key] = np.asarray(states)
            self._keep()

    def _of(self, exchanges: Sequence[Exchange]) -> Array:
        return np.asarray([self._known[key_of(each)] for each in exchanges], np.float64)

    def _keep(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial.npz")
        np.savez(partial, keys=np.asarray(list(self._known)), states=np.asarray(list(self._known.values())))
        partial.replace(self._path)


def cell(
    pool: Pool,
    texts: Sequence[RatedText],
    true: Sequence[bool],
    count: int,
    draw: int,
    states: States,
    variants: Sequence[Variant],
) -> dict[str, Any]:
    """Return today's AUC on other conversations' true labels, and for each variant what the block changes.

    "gain" is with the block where cross-validation takes it, "always" with the block in any case.
    """
    train, test = split(pool, count, draw)
    rated, unseen = [texts[at] for at in train], [texts[at].exchange for at in test]
    if not reward_model.enough(rated):
        return {"too few": True}
    exchanges = [item.exchange for item in rated]
    penalties = reward_model.penalties_for(rated)
    encoder = Encoder(exchanges)
    known, new = encoder.blocks(exchanges), encoder.blocks(unseen)
    now = _Kernels(*(_combined(each, known, penalties) for each in (known, new)))
    truth = [true[at] for at in test]
    today = statistics.auc(now.predict(rated), truth)
    found: dict[str, Any] = {"now": round(today, 4), "liked": round(float(np.mean(truth)), 3)}
    for variant in variants:
        components = [Components(part, variant.rank) for part in states.parts(exchanges, variant)]
        mine, theirs = (
            np.hstack([few(part) for few, part in zip(components, states.parts(each, variant), strict=True)])
            for each in (exchanges, unseen)
        )
        hidden = _Kernels(mine @ mine.T, theirs @ mine.T)
        taken = now.beside(hidden, rated, ridge_logistic.MARGIN)
        always = now.beside(hidden, rated, ALWAYS)
        gains = [
            0.0 if each is None else statistics.auc(each.predict(rated), truth) - today
            for each in (taken, always)
        ]
        found[variant.name] = {
            "taken": taken is not None,
            **dict(zip(("gain", "always"), (round(gain, 4) for gain in gains), strict=True)),
        }
    return found


@dataclass(frozen=True)
class _Kernels:
    """A kernel among rated answers, shape (rated, rated), and of others with them, (others, rated)."""

    rated: Array
    others: Array

    def beside(self, added: _Kernels, rated: Sequence[RatedText], margin: float) -> _Kernels | None:
        """Return both under the best penalty of what is added; None where it doesn't help by the margin."""
        penalties = ridge_logistic.choose(
            {NOW: self.rated, HIDDEN: added.rated},
            *_labels(rated),
            np.asarray([zlib.crc32(repr(item.group).encode()) % reward_model.FOLDS for item in rated]),
            (1.0,),
            {HIDDEN: margin},
        )
        if HIDDEN not in penalties:
            return None
        weight = 1 / penalties[HIDDEN]
        return _Kernels(self.rated + weight * added.rated, self.others + weight * added.others)

    def predict(self, rated: Sequence[RatedText]) -> list[float]:
        """Return the log-odds of the others, fitted on what was rated."""
        found = ridge_logistic.fit(self.rated, *_labels(rated))
        return [float(value) for value in self.others @ found.alpha]


def _labels(rated: Sequence[RatedText]) -> tuple[Array, Array]:
    return np.asarray([float(item.liked) for item in rated]), np.ones(len(rated))


def _combined(rows: dict[str, Array], known: dict[str, Array], penalties: reward_model.Penalties) -> Array:
    return ridge_logistic.combine_kernels({name: rows[name] @ known[name].T for name in penalties}, penalties)


def _read(exchanges: Sequence[Exchange], variant: Variant) -> list[Sequence[Exchange]]:
    """Return what has to be read: the answers after their questions, after an empty message, or both."""
    alone = [Exchange("", each.answer) for each in exchanges]
    if variant.context in ("asked", "alone"):
        return [exchanges if variant.context == "asked" else alone]
    return [exchanges, alone]


def key_of(exchange: Exchange) -> str:
    """Return the name under which an answer's states are kept."""
    return hashlib.sha256(f"{exchange.question}\0{exchange.answer}".encode()).hexdigest()[:24]
