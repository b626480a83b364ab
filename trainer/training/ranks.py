"""Several processes that train one adapter together: each takes a part of every step's examples.

The processes ("ranks", as torch calls them) are those of torch's default process group; without one a process
is alone, and nothing here changes a byte. Every loss is divided by its whole batch, so gradients of parts
only have to be added. All ranks hold the same adapter and the same moments; rank 0 alone reads the clock,
keeps checkpoints and saves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from trainer.data.encoding import Example
from trainer.training.packing import bins

T = TypeVar("T")
Bins = Callable[[Sequence[Example], int], list[list[int]]]


def count() -> int:
    """Return how many processes train together."""
    return distributed.get_world_size() if _together() else 1


def is_first() -> bool:
    """Whether this process keeps what there is to keep."""
    return not _together() or distributed.get_rank() == 0


def own_bins(examples: Sequence[Example], limit: int, divide: Bins = bins) -> list[list[int]]:
    """Return this process's groups of a batch, as `packing.bins` or another one divides it."""
    if count() == 1:
        return divide(examples, limit)
    tokens = sum(len(each.ids) for each in examples)
    groups = divide(examples, min(limit, -(-tokens // count())))
    return groups[distributed.get_rank() :: count()]


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Add a tensor up over all ranks, in place; return it."""
    if count() > 1:
        distributed.all_reduce(tensor)
    return tensor


def add_gradients(model: nn.Module, loss: float) -> float:
    """Add up the gradients of all ranks and return the sum of their losses.

    A rank without examples in this step has no gradient, and adds zeros.
    """
    if count() == 1:
        return loss
    trained = [each for each in model.parameters() if each.requires_grad]
    gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in trained]
    # (P,): one call for all of them instead of hundreds.
    whole = sum_over_ranks(torch.cat([each.flatten() for each in gradients]))
    for each, part in zip(trained, torch.split(whole, [each.numel() for each in trained]), strict=True):
        each.grad = part.view_as(each).clone()
    return float(sum_over_ranks(torch.tensor(loss, dtype=torch.float64, device=whole.device)))


def broadcast_first(value: T) -> T:
    """Return the first rank's value: what hangs on its clock, its memory or its files."""
    if count() == 1:
        return value
    values: list[Any] = [value]
    distributed.broadcast_object_list(values, src=0)
    agreed_value: T = values[0]
    return agreed_value


def everyone(value: T) -> list[T]:
    """Return the values of all ranks."""
    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    distributed.all_gather_object(values, value)
    return values


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized()
