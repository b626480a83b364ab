"""The terms of a phase's loss: supervised tuning, replay of the base, KTO on all ratings, DPO on pairs.

Each says which examples of a step go through the model, and what their loss is; the formulas are in `losses`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn

from trainer.data.encoding import Example, PreferenceExample
from trainer.training import losses
from trainer.training.forward import Piece, backward, base_distributions, device_of, scores_of, totals
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

    @property
    def limit(self) -> int:
        """Return how many tokens one forward may take."""

    def pieces(self, model: nn.Module, number: int, chosen: Indices) -> list[Piece]:
        """Return what step `number` puts through the model for the chosen examples, with its loss."""

    def tokens(self, chosen: Indices) -> int:
        """Return how many tokens the chosen examples have."""


def backward_of(model: nn.Module, work: Sequence[tuple[Term, Indices]], number: int) -> float:
    """Accumulate the gradient of step `number`, of all its terms; return the sum of their losses."""
    pieces = [piece for term, chosen in work for piece in term.pieces(model, number, chosen)]
    return backward(model, pieces, min((term.limit for term, _ in work), default=1))


class Supervised:
    """The mean loss of a token, each counted with its example's weight."""

    def __init__(self, examples: Sequence[Example], limit: int) -> None:
        self._examples = examples
        self.limit = limit

    def prepare(self, model: nn.Module, steps: Sequence[Indices], kept: Tensor | None) -> None:
        """It measures against nothing."""

    def pieces(self, model: nn.Module, number: int, chosen: Indices) -> list[Piece]:
        """Return the examples of one batch; their losses add up to its mean weighted token loss."""
        batch = [self._examples[i] for i in chosen]
        # The divisor is the whole batch's, so that the gradient doesn't depend on how it falls into groups.
        mass = sum(example.weight * example.completion_length for example in batch)
        own = (batch[i] for group in own_bins(batch, self.limit) for i in group)
        return [Piece((example,), partial(self._loss, example, mass)) for example in own]

    @staticmethod
    def _loss(example: Example, mass: float, logits: Tensor) -> Tensor:
        # (1,), on the device and in the precision of the log-probabilities.
        weights = logits.new_tensor([example.weight])
        return losses.supervised_loss(scores_of(logits, [example]), weights) / mass

    def tokens(self, chosen: Indices) -> int:
        """Return how many tokens the chosen examples have."""
        return sum(len(self._examples[i].ids) for i in chosen)


class BaseLogits:
    """The base's logits over the replayed replies, asked once for all phases of a training."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples
        self._found: list[Tensor] | None = None

    def of(self, model: nn.Module, limit: int) -> list[Tensor]:
        """Return the logits (T, V) of each reply, asking the model with its adapter switched off."""
        if self._found is None:
            self._found = base_distributions(model, self.examples, limit)
        return self._found


class Replay:
    """The mean divergence from the base over replayed tokens, in proportion to their share of all tokens."""

    def __init__(self, replayed: BaseLogits, share: float, limit: int) -> None:
        self._replayed = replayed
        self._examples = replayed.examples
        # The other terms have the rest, 1 - share: the odds bring replay to `share` of the sum of both.
        self._factor = share / max(1 - share, 1e-6)
        self.limit = limit
        self._base: list[Tensor] = []

    def prepare(self, model: nn.Module, steps: Sequence[Indices], kept: Tensor | None) -> None:
        """Ask the base; it answers the same at any time."""
        if any(steps):
            self._base = self._replayed.of(model, self.limit)

    def pieces(self, model: nn.Module, number: int, chosen: Indices) -> list[Piece]:
        """Return the chosen replies; their losses add up to the mean KL to the base."""
        examples = [self._examples[i] for i in chosen]
        mass = sum(example.completion_length for example in examples)
        own = (i for group in own_bins(examples, self.limit) for i in group)
        return [Piece((examples[i],), partial(self._loss, chosen[i], mass)) for i in own]

    def _loss(self, place: int, mass: int, logits: Tensor) -> Tensor:
        # Both (T, V): the tokens of one completion.
        base = self._base[place].to(logits.device)
        return losses.divergence_from_base(logits, base) * (self._factor / mass)

    def tokens(self, chosen: Indices) -> int:
        """Return how many tokens the chosen examples have."""
        return sum(len(self._examples[i].ids) for i in chosen)


class Kto:
    """KTO's mean loss of a batch. The reference is computed once: no second copy of anything."""

    def __init__(self, rated: Sequence[Example], beta: float, limit: int) -> None:
        self._rated = rated
        self._beta = beta
        self.limit = limit
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
            [totals(model, batch, self.limit), totals(model, mismatch_completions(batch), self.limit)]
        )

    def pieces(self, model: nn.Module, number: int, chosen: Indices) -> list[Piece]:
        """Return the examples of one batch; their losses add up to its mean."""
        batch = [self._rated[i] for i in chosen]
        # A scalar for the batch, a baseline and no target: no gradient flows through it.
        with torch.no_grad():
            divergence = losses.mismatch_divergence(
                totals(model, mismatch_completions(batch), self.limit), self._reference[number][1]
            )
        return [
            Piece(
                (batch[i],),
                partial(self._loss, batch[i], self._reference[number][0, i], divergence, len(batch)),
            )
            for group in own_bins(batch, self.limit)
            for i in group
        ]

    def _loss(
        self, example: Example, reference: Tensor, divergence: Tensor, count: int, logits: Tensor
    ) -> Tensor:
        policy = scores_of(logits, [example]).totals
        # (1,) each: which side of the value function it is on, and how much it counts.
        liked = torch.tensor([example.liked], device=policy.device)
        weights = policy.new_tensor([example.weight * self._scale[0 if example.liked else 1]])
        loss = losses.kto(policy, reference, liked, weights, divergence=divergence, beta=self._beta)
        return loss.sum() / count

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
        self.limit = limit
        self._reference = torch.empty(0)

    def prepare(self, model: nn.Module, steps: Sequence[Indices], kept: Tensor | None) -> Tensor:
        """Score every pair, shape (pairs, 2): the chosen reply and the rejected one."""
        if kept is None:
            both = [example for pair in self._pairs for example in (pair.chosen, pair.rejected)]
            # (2P,) -> (P, 2): chosen and rejected alternate. The phase begins with this adapter.
            kept = totals(model, both, self.limit).view(-1, 2)
        self._reference = kept.to(device_of(model))
        return self._reference

    def pieces(self, model: nn.Module, number: int, chosen: Indices) -> list[Piece]:
        """Return the pairs of one batch; their losses add up to its mean."""
        batch = [self._pairs[i] for i in chosen]
        # Weighted tokens of the chosen replies: what the supervised part is a mean over.
        mass = sum(pair.weight * pair.chosen.completion_length for pair in batch)
        # Both sides of a pair in one forward: the loss is of their difference.
        return [
            Piece((batch[i].chosen, batch[i].rejected), partial(self._loss, chosen[i], len(batch), mass))
            for group in own_bins([pair.joined for pair in batch], self.limit)
            for i in group
        ]

    def _loss(self, place: int, count: int, mass: float, logits: Tensor) -> Tensor:
        pair = self._pairs[place]
        # (1, 2): the chosen reply and the rejected one, as in the reference.
        policy = scores_of(logits, (pair.chosen, pair.rejected)).totals[None]
        weights = policy.new_tensor([pair.weight])
        loss = losses.dpo(policy, self._reference[place][None], weights, beta=self._beta).sum() / count
        if self._sft_weight:
            loss = loss - self._sft_weight * (policy[:, 0] * weights).sum() / mass
        return loss

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
