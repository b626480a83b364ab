"""Reads answers with the trainer's own copy of the base, each once in a run."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from bot.serving.model.loading import LoadedBase
from bot.serving.protocol import ChatMessage
from trainer.data.encoding import encode
from trainer.data.examples import BaseCodec
from trainer.data.question_features import Exchange
from trainer.data.text_features import Array

# Which layer's states are used, as a share of all: the middle says more than the last (EXPERIMENTS, 30).
MIDDLE = 0.5


class HiddenStates:
    """The mean hidden state of each answer's tokens, given its question.

    New answers can be read within `reading_by` only. `seconds` is what it took so far.
    """

    def __init__(self, system_prompt: str, max_length: int) -> None:
        self._system_prompt, self._max_length = system_prompt, max_length
        self._base: LoadedBase | None = None
        self._known: dict[Exchange, Array] = {}
        self.seconds = 0.0

    @property
    def replies(self) -> int:
        """Return how many answers were read."""
        return len(self._known)

    @contextlib.contextmanager
    def reading_by(self, base: LoadedBase) -> Iterator[None]:
        """Read with this base; an adapter that it carries must be switched off."""
        was_training = base.model.training
        base.model.eval()
        self._base = base
        try:
            yield
        finally:
            self._base = None
            base.model.train(was_training)

    def __call__(self, exchanges: Sequence[Exchange]) -> Array:
        """Return the states, shape (exchanges, hidden size).

        Raises:
            LookupError: an answer was not read before, and no base is at hand.
        """
        began = time.monotonic()
        for exchange in exchanges:
            if exchange not in self._known:
                self._known[exchange] = self._read(exchange)
        self.seconds += time.monotonic() - began
        return np.asarray([self._known[exchange] for exchange in exchanges])

    def _read(self, exchange: Exchange) -> Array:
        if self._base is None:
            raise LookupError("no base is at hand to read an answer with")
        return mean_states(self._base, exchange, self._system_prompt, self._max_length, (MIDDLE,))[0]


def mean_states(
    base: LoadedBase, exchange: Exchange, system_prompt: str, max_length: int, places: Sequence[float]
) -> list[Array]:
    """Return the mean state of an answer's tokens, the stop token included, after each of some layers.

    `places` are layers as shares of all: 0 is the embedding, 1 the last one. Each answer is read by itself,
    so that its states are the same to the bit whatever else is read.
    """
    messages = [ChatMessage("system", system_prompt), ChatMessage("user", exchange.question)]
    row = encode(BaseCodec(base.tokenizer), messages, exchange.answer, finished=True, max_length=max_length)
    body: Any = base.model.base_model
    with torch.inference_mode():
        layers = body(
            torch.tensor([row.ids], device=base.device), use_cache=False, output_hidden_states=True
        ).hidden_states
        means = [layers[round(place * (len(layers) - 1))][0, row.start :].float().mean(0) for place in places]
    return [mean.cpu().numpy().astype(np.float64) for mean in means]
