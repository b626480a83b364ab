"""One forward of the model over packed examples: what it says about their completions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from trainer.data.encoding import Example
from trainer.training import ranks
from trainer.training.fitting import BATCH_TOKENS_CPU, BATCH_TOKENS_GPU
from trainer.training.losses import TokenScores
from trainer.training.packing import Packed, bins_of_alike, fill, pack, within_blocks

S = TypeVar("S")
T = TypeVar("T")

# Counts the changes after which the same examples round otherwise, for adapters' cards: 2 reads once what
# several examples begin with, and computes a step in two halves at once.
VERSION = 2


@dataclass(frozen=True)
class Piece:
    """Examples that go through the model together, and a loss (a scalar) of the logits (N, V) of their
    completions.
    """

    examples: Sequence[Example]
    loss: Callable[[Tensor], Tensor]


def score(model: nn.Module, examples: Sequence[Example]) -> TokenScores:
    """Run one forward over a few examples and return how likely their completions are."""
    return scores_of(distributions(model, examples), examples)


def scores_of(logits: Tensor, examples: Sequence[Example]) -> TokenScores:
    """Return how likely completions are by the logits (N, V) of their tokens."""
    tokens = [token for example in examples for token in example.ids[example.start :]]
    targets = torch.tensor(tokens, dtype=torch.long)
    # (N, V) -> (N, V) -> (N, 1) -> (N,): keep only each target's log-probability, in nats.
    logps = logits.log_softmax(-1).gather(-1, targets.to(logits.device)[:, None]).squeeze(-1)
    return TokenScores(logps=logps, lengths=tuple(example.completion_length for example in examples))


def distributions(model: nn.Module, examples: Sequence[Example]) -> Tensor:
    """Run one forward over a few examples and return the logits `(N, V)` of their completion tokens."""
    # Not on a GPU, where an attention with a mask was not measured and may keep all of its scores.
    return _logits(model, pack(examples, share=device_of(model).type == "cpu"))


def _logits(model: nn.Module, packed: Packed) -> Tensor:
    device = device_of(model)
    with within_blocks(model):
        output = model(
            input_ids=packed.ids.to(device),
            position_ids=packed.positions.to(device),
            use_cache=False,
            # Only positions that predict a completion token pass the output head, the largest product.
            logits_to_keep=packed.predicting.to(device),
            blocks=packed.blocks,
        )
    # (1, N, V) -> (N, V); float32, since bfloat16 loses the small differences that losses are made of.
    logits: Tensor = output.logits[0]
    return logits.float()


def accumulate(model: nn.Module, loss: Tensor) -> float:
    """Add a loss's gradient to what the adapter has; return the loss.

    Examples keep to themselves here too: a layer whose activations were not kept is computed again.
    """
    with within_blocks(model):
        loss.backward()  # type: ignore[no-untyped-call]
    return loss.item()


def backward(model: nn.Module, pieces: Sequence[Piece], limit: int) -> float:
    """Accumulate the gradient of all pieces' losses and return their sum.

    Pieces share a forward as far as `limit` tokens go: each forward unpacks every layer anew.
    """
    total = 0.0
    sizes = [sum(len(example.ids) for example in piece.examples) for piece in pieces]
    # One backward pass a group: its activations are freed before the next group's forward.
    for group in fill(sizes, limit):
        one, other = _halves(group, sizes) if _has_cores(model) else (group, [])
        if not other:
            total += accumulate(model, _loss(model, [pieces[i] for i in group]))
            continue
        with within_blocks(model):
            loss, (other_loss, gradients) = _at_once(
                lambda one=one: accumulate(model, _loss(model, [pieces[i] for i in one])),  # type: ignore[misc]
                lambda other=other: _gradients(model, [pieces[i] for i in other]),  # type: ignore[misc]
            )
        # Always in this order, so that the sums are the same in every run.
        for parameter, gradient in zip(_trained(model), gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        total += loss + other_loss
    return total


def totals(model: nn.Module, examples: Sequence[Example], limit: int) -> Tensor:
    """Return summed completion log-probabilities `(B,)` in the order of the examples, without a gradient."""
    found = torch.zeros(len(examples), device=device_of(model))

    def measure(group: list[int]) -> None:
        found[group] = score(model, [examples[i] for i in group]).totals

    with torch.no_grad(), within_blocks(model):
        _each(model, ranks.own_bins(examples, limit, bins_of_alike), measure)
    return ranks.sum_over_ranks(found)


def base_distributions(model: nn.Module, replay: Sequence[Example], limit: int) -> list[Tensor]:
    """Return the base's logits `(T, V)` over each replay completion, the adapter switched off.

    Kept as bfloat16 in main memory, since a step needs few of them: 64 replies of 40 tokens take 250 MB with
    a vocabulary of 49,152.
    """
    was_training = model.training
    model.eval()
    kept: list[Tensor] = [torch.empty(0)] * len(replay)

    def ask(group: list[int]) -> None:
        examples = [replay[i] for i in group]
        found = distributions(model, examples).to("cpu", torch.bfloat16)
        parts = torch.split(found, [example.completion_length for example in examples])
        for i, part in zip(group, parts, strict=True):
            kept[i] = part

    with torch.no_grad(), model.disable_adapter(), within_blocks(model):  # type: ignore[operator]
        _each(model, bins_of_alike(replay, limit), ask)
    model.train(was_training)
    return kept


def _loss(model: nn.Module, pieces: Sequence[Piece]) -> Tensor:
    """Put pieces through the model together and return the sum of their losses."""
    # (N, V), N being the completion tokens of all pieces, one piece after the other.
    logits = distributions(model, [example for piece in pieces for example in piece.examples])
    parts = torch.split(logits, [sum(e.completion_length for e in piece.examples) for piece in pieces])
    return torch.stack([piece.loss(part) for piece, part in zip(pieces, parts, strict=True)]).sum()


def _gradients(model: nn.Module, pieces: Sequence[Piece]) -> tuple[float, tuple[Tensor | None, ...]]:
    """Return the pieces' loss and its gradient, which is added to nothing yet.

    A parameter that the loss does not reach has None, as after `backward`: `loop.check_gradients` says so.
    """
    loss = _loss(model, pieces)
    return loss.item(), torch.autograd.grad(loss, _trained(model), allow_unused=True)


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _has_cores(model: nn.Module) -> bool:
    return device_of(model).type == "cpu" and torch.get_num_threads() > 1


def _halves(places: Sequence[int], sizes: Sequence[int]) -> tuple[list[int], list[int]]:
    """Divide places into two parts of about the same size in all, the second empty where there is but one."""
    parts: tuple[list[int], list[int]] = ([], [])
    for place in sorted(places, key=lambda place: (-sizes[place], place)):
        min(parts, key=lambda part: sum(sizes[i] for i in part)).append(place)
    return parts


def _each(model: nn.Module, groups: Sequence[list[int]], work: Callable[[list[int]], None]) -> None:
    """Do a piece of work for each group, two at a time where there are cores for it."""

    def every_other(first: int) -> None:
        for group in groups[first::2]:
            work(group)

    if len(groups) > 1 and _has_cores(model):
        _at_once(partial(every_other, 0), partial(every_other, 1))
        return
    for group in groups:
        work(group)


def _at_once(first: Callable[[], S], second: Callable[[], T]) -> tuple[S, T]:
    """Do two things at the same time, each with half of torch's threads.

    The products of a small model are so short that threads which share one wait for each other more than
    they save: two of them trained no faster than one (EXPERIMENTS, 27).
    """
    threads, grad = torch.get_num_threads(), torch.is_grad_enabled()

    def beside() -> T:
        # Both are torch's own in each thread.
        with torch_threads(threads // 2), torch.set_grad_enabled(grad):
            return second()

    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(beside)
        with torch_threads(threads // 2):
            return first(), coming.result()


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Have so many threads share each operation of the calling thread, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def batch_tokens(model: nn.Module) -> int:
    """Return how many tokens one forward takes on the model's device, unless the operator says otherwise."""
    return BATCH_TOKENS_GPU if device_of(model).type == "cuda" else BATCH_TOKENS_CPU


def device_of(model: nn.Module) -> torch.device:
    """Return where the model lies."""
    return next(model.parameters()).device
