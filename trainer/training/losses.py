"""The losses of training, over the completion tokens of a few examples, one after the other.

Only completion tokens are here at all: nothing is ever learned from a prompt. TRL's trainers are the oracle
of the tests; they have no place for a weight per example.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor


@dataclass(frozen=True)
class TokenScores:
    """What one forward says about the completions of B examples with N tokens together.

    `logps` (N,): log-probability of each completion token, in nats; `lengths`: how many tokens each example
    has. The distributions behind them are not kept: they are as large as all else in the output head.
    """

    logps: Tensor
    lengths: tuple[int, ...]

    @property
    def totals(self) -> Tensor:
        """Return the summed log-probability of each completion, shape (B,)."""
        # Not `index_add`, whose order, and with it the last bits, is not fixed on a GPU.
        return torch.stack([part.sum() for part in torch.split(self.logps, list(self.lengths))])


def supervised_loss(scores: TokenScores, weights: Tensor) -> Tensor:
    """Return the weighted sum of token losses; the caller divides by the batch's weighted token count.

    A token of a reply with weight 2 (a correction) counts as two tokens of a reply with weight 1.
    """
    return -(scores.totals * weights).sum()


def divergence_from_base(logits: Tensor, base_logits: Tensor) -> Tensor:
    """Return the summed KL(base || adapter) over completion tokens, in nats; both (N, V).

    Computed over the whole vocabulary rather than on the sampled token: the same expectation as training on
    the base's own replies, with less variance.
    """
    # Both (N, V), in nats; the sum runs over vocabulary and tokens.
    reference = functional.log_softmax(base_logits.float(), dim=-1)
    policy = functional.log_softmax(logits.float(), dim=-1)
    return (reference.exp() * (reference - policy)).sum()


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
    below zero.
    """
    # (B,) log-ratios in nats: the implied reward divided by beta.
    ratios = policy - reference
    signs = torch.where(liked, 1.0, -1.0).to(ratios)
    return weights * (1 - torch.sigmoid(beta * signs * (ratios - divergence)))


def mismatch_divergence(policy: Tensor, reference: Tensor) -> Tensor:
    """Return KTO's KL estimate from mismatched pairs (a prompt, its neighbour's reply), a scalar >= 0."""
    return (policy - reference).mean().detach().clamp(min=0)


def dpo(policy: Tensor, reference: Tensor, weights: Tensor, *, beta: float) -> Tensor:
    """Return direct-preference losses, one per pair, already multiplied by their weights, shape (P,).

    Equation 7 of https://arxiv.org/abs/2305.18290. `policy` and `reference` (P, 2) are log-probabilities of
    the chosen and of the rejected completion.
    """
    # (P,): chosen minus rejected log-ratio.
    margins = (policy - reference)[:, 0] - (policy - reference)[:, 1]
    return -weights * functional.logsigmoid(beta * margins)
