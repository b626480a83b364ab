"""The terms of a phase's loss: supervised tuning, replay of the base, KTO on all ratings, DPO on pairs.

Each accumulates the gradient of its own examples, a few at a time; the formulas are in `losses`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn

from trainer.data.encoding import Example, PreferenceExample
from trainer.training import losses
from trainer.training.forward import accumulate, base_distributions, device_of, distributions, score, totals
from trainer.training.ranks import own_bins

# The class masses of KTO: liked to disliked between 1:1 and 4:3 (equation 8 of arXiv 2402.01306).
LIKED_MASS = 1.15

Indices: TypeAlias = tuple[int, ...]


class Term(Protocol):
    """One part of a phase's loss."""

    def prepare(self, model: nn.Module, steps: Sequence[Indices], kept: Tensor | None) -> Tensor | None:
        """Compute, before the phase's first step, what the term measures against; return what to keep of it.

        `kept` is what it returned in a process that was interrupted: the reference it began with.
        """

    def backward(self, model: nn.Module, number: int, chosen: Indices) -> float:
        """Accumulate the gradient of step `number` on the chosen examples; return the (weighted) loss."""

    def tokens(self, chosen: Indices) -> int:
        """Return how many tokens the chosen examples have."""


class Supervised:
    """The mean loss of a token, each counted with its example's weight."""

    def __init__(self, examples: Sequence[Example], limit: int) -> None:
        self._examples = examples
        self._limit = limit

    def prepare(self, model: nn.Module, steps: Sequence[Indices], kept: Tensor | None) -> None:
        """It measures against nothing."""

    def backward(self, model: nn.Module, number: int, chosen: Indices) -> float:
        """Accumulate the gradient of the mean weighted token loss of one batch; return that loss."""
        batch = [self._examples[i] for i in chosen]
        # The divisor is the whole batch's, so that the gradient doesn't depend on how it falls into groups.
        mass = sum(example.weight * example.completion_length for example in batch)
        total = 0.0
        for group in own_bins(batch, self._limit):
            examples = [batch[i] for i in group]
            scores = score(model, examples)
            # (B,), on the device and in the precision of the log-probabilities.
            weights = scores.logps.new_tensor([example.weight for example in examples])
            # One backward pass a group: its activations are freed before the next group's forward.
            total += accumulate(model, losses.supervised_loss(scores, weights) / mass)
        return total

    def tokens(self, chosen: Indices) -> int:
        """Return how many tokens the chosen examples have."""
        return sum(len(self._examples[i].ids) for i in chosen)


class Replay:
    """The mean divergence from the base over replayed tokens, in proportion to their share of all tokens."""

    def __init__(self, examples: Sequence[Example], share: float, limit: int) -> None:
        self._examples = examples
        # The other terms have the rest, 1 - share: the odds bring replay to `share` of the sum of both.
        self._factor = share / max(1 - share, 1e-6)
        self._limit = limit
        self._base: list[Tensor] = []

    def prepare(self, model: nn.Module, steps: Sequence[Indices], kept: Tensor | None) -> None:
        """Ask the base; it answers the same at any time."""
        if any(steps):
            self._base = base_distributions(model, self._examples)

    def backward(self, model: nn.Module, number: int, chosen: Indices) -> float:
        """Accumulate the gradient of the mean KL to the base; return it."""
        examples = [self._examples[i] for i in chosen]
        mass = sum(example.completion_length for example in examples)
        total = 0.0
        for group in own_bins(examples, self._limit):
            # Both (N, V): the completion tokens of the group's examples, one example after the other.
            logits = distributions(model, [examples[i] for i in group])
            base = torch.cat([self._base[chosen[i]] for i in group]).to(logits.device)
            total += accumulate(model, losses.divergence_from_base(logits, base) * (self._factor / mass))
        return total

    def tokens(self, chosen: Indices) -> int:
        """Return how many tokens the chosen examples have."""
        return sum(len(self._examples[i].ids) for i in chosen)


class Kto:
    """KTO's mean loss of a batch. The reference is computed once: no second copy of anything."""

    def __init__(self, rated: Sequence[Example], beta: float, limit: int) -> None:
        self._rated = rated
        self._beta = beta
        self._limit = limit
        self._scale = class_weights(rated)
        self._reference = torch.empty(0)

    def prepare(self, model: nn.Module, steps: Sequence[Indices], kept: Tensor | None) -> Tensor:
        """Score every batch and its mismatched twin, shape (steps, 2, batch)."""
        if kept is None:
            found = [self._both_totals(model, [self._rated[i] for i in chosen]) for chosen in steps]
            # All steps have equally many examples, so that they fit one tensor, which a checkpoint can keep.
            kept = torch.stack(found) if found else torch.empty(0)
        self._reference = kept.to(device_of(model))
        return self._reference

    def _both_totals(self, model: nn.Module, batch: Sequence[Example]) -> Tensor:
        # (2, B) in nats: each prompt with its own completion, then with its neighbour's.
        return torch.stack(
            [totals(model, batch, self._limit), totals(model, mismatch_completions(batch), self._limit)]
        )

    def backward(self, model: nn.Module, number: int, chosen: Indices) -> float:
        """Accumulate the gradient of one batch; return its mean loss."""
        batch = [self._rated[i] for i in chosen]
        reference, reference_mismatched = self._reference[number]
        # A scalar for the batch, a baseline and no target: no gradient flows through it.
        with torch.no_grad():
            divergence = losses.mismatch_divergence(
                totals(model, mismatch_completions(batch), self._limit), reference_mismatched
            )
        total = 0.0
        for group in own_bins(batch, self._limit):
            examples = [batch[i] for i in group]
            policy = score(model, examples).totals
            # (B,) each: which side of the value function an example is on, and how much it counts.
            liked = torch.tensor([example.liked for example in examples], device=policy.device)
            weights = policy.new_tensor([e.weight * self._scale[0 if e.liked else 1] for e in examples])
            loss = losses.kto(
                policy, reference[group], liked, weights, divergence=divergence, beta=self._beta
            )
            total += accumulate(model, loss.sum() / len(batch))
        return total

    def tokens(self, chosen: Indices) -> int:
        """Return how many tokens the chosen examples have."""
        return sum(len(self._rated[i].ids) for i in chosen)


class Dpo:
    """DPO's mean loss of a batch of pairs, and the supervised loss of their chosen replies beside it.

    Without the second the likelihood of both may fall, as long as that of the rejected one falls faster
    (https://arxiv.org/abs/2404.19733).
    """

    def __init__(
        self, pairs: Sequence[PreferenceExample], beta: float, sft_weight: float, limit: int
    ) -> None:
        self._pairs = pairs
        self._beta = beta
        self._sft_weight = sft_weight
        self._limit = limit
        self._reference = torch.empty(0)

    def prepare(self, model: nn.Module, steps: Sequence[Indices], kept: Tensor | None) -> Tensor:
        """Score every pair, shape (pairs, 2): the chosen reply and the rejected one."""
        if kept is None:
            both = [example for pair in self._pairs for example in (pair.chosen, pair.rejected)]
            # (2P,) -> (P, 2): chosen and rejected alternate. The phase begins with this adapter.
            kept = totals(model, both, self._limit).view(-1, 2)
        self._reference = kept.to(device_of(model))
        return self._reference

    def backward(self, model: nn.Module, number: int, chosen: Indices) -> float:
        """Accumulate the gradient of one batch; return its mean loss."""
        batch = [self._pairs[i] for i in chosen]
        # Weighted tokens of the chosen replies: what the supervised part is a mean over.
        mass = sum(pair.weight * pair.chosen.completion_length for pair in batch)
        total = 0.0
        for group in own_bins([pair.joined for pair in batch], self._limit):
            pairs = [batch[i] for i in group]
            # Both sides of a pair in one forward: the loss is of their difference.
            scores = score(model, [example for pair in pairs for example in (pair.chosen, pair.rejected)])
            policy = scores.totals.view(-1, 2)
            weights = policy.new_tensor([pair.weight for pair in pairs])
            # (P, 2) again: rows of the phase's pairs that are in this group.
            reference = self._reference[[chosen[i] for i in group]]
            loss = losses.dpo(policy, reference, weights, beta=self._beta).sum() / len(batch)
            if self._sft_weight:
                loss = loss - self._sft_weight * (policy[:, 0] * weights).sum() / mass
            total += accumulate(model, loss)
        return total

    def tokens(self, chosen: Indices) -> int:
        """Return how many tokens both sides of the chosen pairs have."""
        return sum(len(self._pairs[i].joined.ids) for i in chosen)


def class_weights(rated: Sequence[Example]) -> tuple[float, float]:
    """Return factors for liked and disliked examples that bring their masses to LIKED_MASS : 1, mean 1."""
    liked = sum(example.weight for example in rated if example.liked)
    disliked = sum(example.weight for example in rated if not example.liked)
    if not liked or not disliked:
        return 1.0, 1.0
    # Solved for liked' / disliked' = LIKED_MASS with liked' + disliked' unchanged: rates keep their meaning.
    whole = liked + disliked
    return whole * LIKED_MASS / (1 + LIKED_MASS) / liked, whole / (1 + LIKED_MASS) / disliked


def mismatch_completions(batch: Sequence[Example]) -> list[Example]:
    """Pair each prompt with the completion of the example before it, as TRL does for its KL estimate."""
    # A cyclic shift: no completion stays with its prompt, unless the batch is a single example.
    rotated = [batch[-1], *batch[:-1]]
    return [
        Example(ids=(*own.ids[: own.start], *other.ids[other.start :]), start=own.start)
        for own, other in zip(batch, rotated, strict=True)
    ]
