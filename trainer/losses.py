"""The losses of training, over batches whose completions are aligned at their right end.

Every function takes log-probabilities of completion tokens `(B, T)` with a mask `(B, T)` that is 1 where a
token carries loss. Positions before a shorter completion are masked: nothing is ever learned from a prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor


@dataclass(frozen=True)
class TokenScores:
    """What one forward says about the completions of a batch.

    `logps` (B, T): log-probability of each completion token, in nats; `mask` (B, T): 1 where there is one;
    `logits` (B, T, V): the distributions that produced them.
    """

    logps: Tensor
    mask: Tensor
    logits: Tensor

    @property
    def totals(self) -> Tensor:
        """Return the summed log-probability of each completion, shape (B,)."""
        return (self.logps * self.mask).sum(-1)


def supervised(scores: TokenScores, weights: Tensor) -> Tensor:
    """Return the weighted sum of token losses; the caller divides by the batch's weighted token count.

    A token of a reply with weight 2 (a correction) counts as two tokens of a reply with weight 1.
    """
    return -(scores.logps * scores.mask * weights[:, None]).sum()


def divergence_from_base(scores: TokenScores, base_logits: Tensor) -> Tensor:
    """Return the summed KL(base || adapter) over completion tokens, in nats.

    Computed over the whole vocabulary rather than on the sampled token: the same expectation as training on
    the base's own replies, with less variance.
    """
    reference = functional.log_softmax(base_logits.float(), dim=-1)
    policy = functional.log_softmax(scores.logits.float(), dim=-1)
    per_token = (reference.exp() * (reference - policy)).sum(-1)
    return (per_token * scores.mask).sum()


def kto(
    policy: Tensor,
    reference: Tensor,
    liked: Tensor,
    weights: Tensor,
    *,
    divergence: Tensor,
    beta: float,
) -> Tensor:
    """Return Kahneman-Tversky losses, one per example, already multiplied by their weights, shape (B,).

    Equation 7 of https://arxiv.org/abs/2402.01306. `policy` and `reference` (B,) are log-probabilities,
    `liked` (B,) is boolean, `divergence` the batch's estimate of KL(policy || reference), detached and not
    below zero. TRL's KTO trainer is the oracle in the tests; it has no place for a weight per example.
    """
    ratios = policy - reference
    signs = torch.where(liked, 1.0, -1.0).to(ratios)
    return weights * (1 - torch.sigmoid(beta * signs * (ratios - divergence)))


def mismatch_divergence(policy: Tensor, reference: Tensor) -> Tensor:
    """Return KTO's KL estimate from mismatched pairs (a prompt, its neighbour's reply), a scalar >= 0."""
    return (policy - reference).mean().detach().clamp(min=0)
