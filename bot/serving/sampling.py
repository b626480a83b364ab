"""Choose the next token of one request from its logits.

Every request draws from its own generator, one number a token, so that a seed gives the same reply whatever
else runs in the batch.
"""

from __future__ import annotations

import secrets

import torch

from bot.serving.events import SamplingOptions

# Nucleus sampling looks at this many tokens first; sorting a whole vocabulary costs milliseconds on a CPU.
SHORTLIST = 256


class Sampler:
    """The choice of tokens for one request."""

    def __init__(self, options: SamplingOptions) -> None:
        self._options = options
        self._generator = torch.Generator(device="cpu")
        seed = secrets.randbits(63) if options.seed is None else options.seed
        self._generator.manual_seed(seed)

    def choose(self, logits: torch.Tensor, seen: torch.Tensor | None = None) -> int:
        """Return a token id for ``logits`` (V,), float32 on the CPU; ``seen`` are the ids to penalise."""
        options = self._options
        if options.repetition_penalty != 1.0 and seen is not None:
            logits = penalise(logits, seen, options.repetition_penalty)
        if options.temperature < 1e-5:
            return int(torch.argmax(logits))
        # Always exactly one draw, also where only one token is left to choose.
        draw = float(torch.rand((), generator=self._generator, dtype=torch.float64))
        ids, probabilities = shortlist(logits, options)
        cumulative = torch.cumsum(probabilities.to(torch.float64), dim=0)
        place = int(torch.searchsorted(cumulative, draw * float(cumulative[-1]), right=True))
        return int(ids[min(place, ids.numel() - 1)])


def penalise(logits: torch.Tensor, seen: torch.Tensor, penalty: float) -> torch.Tensor:
    """Divide positive and multiply negative logits of seen tokens (https://arxiv.org/abs/1909.05858)."""
    values = logits[seen]
    logits = logits.clone()
    logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
    return logits


def shortlist(logits: torch.Tensor, options: SamplingOptions) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ids (n,) that min-p, top-k and top-p leave, most likely first, and their probabilities."""
    log_probabilities = torch.log_softmax(logits / options.temperature, dim=-1)
    vocabulary = logits.numel()
    limit = min(options.top_k, vocabulary) if options.top_k > 0 else vocabulary
    count = min(limit, SHORTLIST)
    values, ids = torch.topk(log_probabilities, count)
    probabilities = values.exp()
    # A nucleus is a share of what top-k left, so with top-k the total is known only here.
    top_k_mass = float(probabilities.sum()) if count == limit else None
    if count < limit and (options.top_p == 1.0 or float(probabilities.sum()) < options.top_p):
        values, ids = torch.sort(log_probabilities, descending=True, stable=True)
        values, ids = values[:limit], ids[:limit]
        probabilities = values.exp()
        top_k_mass = float(probabilities.sum())
    keep = torch.ones_like(probabilities, dtype=torch.bool)
    if options.min_p > 0:
        keep &= probabilities >= options.min_p * probabilities[0]
    if options.top_p < 1.0:
        mass = top_k_mass if options.top_k > 0 and top_k_mass is not None else 1.0
        before = torch.cumsum(probabilities, dim=0) - probabilities
        keep &= before < options.top_p * mass
    keep[0] = True
    return ids[keep], probabilities[keep]
