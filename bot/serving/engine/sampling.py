"""Choose the next token of one request from its logits.

Every request draws from its own generator, one number a token, so that a seed gives the same reply whatever
else runs in the batch.
"""

from __future__ import annotations

import secrets

import torch

from bot.serving.engine.events import SamplingOptions

# Nucleus sampling looks at this many tokens first; sorting a whole vocabulary costs milliseconds on a CPU.
SHORTLIST = 256


class Sampler:
    """The choice of tokens for one request."""

    def __init__(self, options: SamplingOptions) -> None:
        self.options = options
        self._generator = torch.Generator(device="cpu")
        seed = secrets.randbits(63) if options.seed is None else options.seed
        self._generator.manual_seed(seed)

    def choose(self, logits: torch.Tensor, seen: torch.Tensor | None = None) -> int:
        """Return a token id for ``logits`` (V,), float32 on the CPU; ``seen`` are the ids to penalise."""
        if self.options.repetition_penalty != 1.0 and seen is not None:
            logits = penalise(logits, seen, self.options.repetition_penalty)
        if self.greedy:
            return int(torch.argmax(logits))
        # Always exactly one draw, also where only one token is left to choose.
        return self.pick(logits, self.draw())

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken, and nothing drawn."""
        return self.options.temperature < 1e-5

    def draw(self) -> float:
        """Return the request's next number from [0, 1)."""
        return float(torch.rand((), generator=self._generator, dtype=torch.float64))

    def pick(self, logits: torch.Tensor, draw: float) -> int:
        """Return the token on which a draw falls, penalties applied."""
        ids, probabilities = shortlist(logits, self.options)
        cumulative = torch.cumsum(probabilities.to(torch.float64), dim=0)
        place = int(torch.searchsorted(cumulative, draw * float(cumulative[-1]), right=True))
        return int(ids[min(place, ids.numel() - 1)])


def penalise(logits: torch.Tensor, seen: torch.Tensor, penalty: float) -> torch.Tensor:
    """Divide positive and multiply negative logits of seen tokens (https://arxiv.org/abs/1909.05858).

    Which those are is the request's word: those of its prompt and its reply, but for end tokens.
    """
    values = logits[seen]
    logits = logits.clone()
    logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
    return logits


def shortlist(logits: torch.Tensor, options: SamplingOptions) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ids (n,) that top-k, top-p and min-p leave and their probabilities, in a fixed order."""
    probabilities = torch.softmax(logits / options.temperature, dim=-1)
    if options.top_k > 0:
        probabilities, ids = torch.topk(probabilities, min(options.top_k, logits.numel()))
        probabilities = probabilities / probabilities.sum()
    elif options.top_p < 1.0:
        probabilities, ids = _most_likely(probabilities, options.top_p)
    else:
        ids = torch.arange(logits.numel())
    keep = probabilities >= options.min_p * probabilities.max()
    if options.top_p < 1.0:
        keep &= torch.cumsum(probabilities, dim=0) - probabilities < options.top_p
        keep[0] = True
    return ids[keep], probabilities[keep]


def _most_likely(probabilities: torch.Tensor, mass: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return at least the most likely tokens that together have ``mass``, sorted."""
    count = SHORTLIST
    while count < probabilities.numel():
        values, ids = torch.topk(probabilities, count)
        if float(values.sum()) >= mass:
            return values, ids
        count *= 8
    return torch.sort(probabilities, descending=True, stable=True)
