"""Several examples in one row without padding, and an attention that never crosses from one into another.

Padding a batch to its longest example multiplies nothing by the base's weights, at full price; so does what
several examples begin with, read once for each of them: the system message, and the prompt of both replies of
a pair. So the row is made of blocks, each followed by whatever goes on from it, and what is common lies in it
once. A block attends to itself and to those it goes on from (a mask over the row that is never built), and
only the positions that predict a completion pass the output head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from trainer.data.encoding import Example
from trainer.errors import TrainingError

ATTENTION = "strop_blocks"
# A shorter beginning is read again: one more block costs as much attention as these tokens cost products.
LEAST_SHARED = 8


@dataclass(frozen=True)
class Block:
    """Tokens that lie side by side in a row, after those of the blocks (by number) that they go on from."""

    length: int
    after: tuple[int, ...] = ()


@dataclass(frozen=True)
class Packed:
    """Examples in one row: `ids` and `positions` (1, T), `predicting` (N,) the places whose logits count.

    Those are the places before each completion token, example by example; one that predicts for several
    examples stands there once for each of them.
    """

    ids: Tensor
    positions: Tensor
    predicting: Tensor
    blocks: tuple[Block, ...]


def pack(examples: Sequence[Example], *, share: bool = True) -> Packed:
    """Put examples one after the other; each begins at position 0.

    What several begin with lies there once, unless `share` is false.
    """
    row = _Row([example.ids for example in examples], LEAST_SHARED if share else None)
    # The logits at position t predict token t + 1, so the first one that counts is at start - 1.
    predicting = [
        place
        for example, places in zip(examples, row.places, strict=True)
        for place in places[example.start - 1 : -1]
    ]
    # (T,) -> (1, T): one row is the whole batch.
    return Packed(
        ids=torch.tensor(row.ids)[None],
        positions=torch.tensor(row.positions)[None],
        predicting=torch.tensor(predicting, dtype=torch.long),  # none, where all replies are empty
        blocks=tuple(row.blocks),
    )


class _Row:
    """A row in the making; `places` are those of each sequence's tokens in it."""

    def __init__(self, sequences: Sequence[tuple[int, ...]], least_shared: int | None) -> None:
        self.ids: list[int] = []
        # Rotary positions begin at 0 again: to the model each example is alone in its row.
        self.positions: list[int] = []
        self.blocks: list[Block] = []
        self.places: list[list[int]] = [[] for _ in sequences]
        self._sequences = sequences
        self._least_shared = least_shared
        self._lay(range(len(sequences)), 0, ())

    def _lay(self, members: Sequence[int], depth: int, after: tuple[int, ...]) -> None:
        """Lay the tokens from `depth` on of sequences that are alike before it."""
        alike: dict[tuple[int, ...], list[int]] = {}
        for member in members:
            if rest := self._sequences[member][depth:]:
                beginning = (member,) if self._least_shared is None else rest[: self._least_shared]
                alike.setdefault(beginning, []).append(member)
        for sharing in alike.values():
            end = depth + _common([self._sequences[member][depth:] for member in sharing])
            places = range(len(self.ids), len(self.ids) + end - depth)
            self.ids += self._sequences[sharing[0]][depth:end]
            self.positions += range(depth, end)
            self.blocks.append(Block(end - depth, after))
            for member in sharing:
                self.places[member] += places
            self._lay(sharing, end, (*after, len(self.blocks) - 1))


def _common(sequences: Sequence[tuple[int, ...]]) -> int:
    """Return how many tokens all sequences begin with."""
    least, most = min(sequences), max(sequences)
    differing = (at for at, (a, b) in enumerate(zip(least, most, strict=False)) if a != b)
    return next(differing, min(len(least), len(most)))


def bins(examples: Sequence[Example], limit: int) -> list[list[int]]:
    """Return groups of indices with at most `limit` tokens each (or one longer example), as few as can be."""
    return fill([len(example.ids) for example in examples], limit)


def fill(sizes: Sequence[int], limit: int) -> list[list[int]]:
    """Return groups of indices whose sizes add up to at most `limit` each, as few as can be.

    First fit, the largest first: within 22 % of the fewest groups, https://doi.org/10.1137/0203025.
    """
    groups: list[list[int]] = []
    room: list[int] = []  # tokens left in each group
    # Equal sizes keep their order, so that the same examples always fall into the same groups.
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        size = sizes[i]
        found = next((at for at, left in enumerate(room) if left >= size), None)
        if found is None:
            groups.append([i])
            room.append(limit - size)
        else:
            groups[found].append(i)
            room[found] -= size
    return groups


def bins_of_alike(examples: Sequence[Example], limit: int) -> list[list[int]]:
    """Return groups as `bins` does, of examples that begin alike: they share more, and need not be as few."""
    groups: list[list[int]] = []
    room = 0  # tokens left in the last group
    for i in sorted(range(len(examples)), key=lambda i: (examples[i].ids, i)):
        size = len(examples[i].ids)
        if not groups or room < size:
            groups.append([])
            room = limit
        groups[-1].append(i)
        room -= size
    return groups


def attend_within_blocks(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    blocks: Sequence[Block] | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention of each block of a row to itself and those before it: `query` (B, heads, T, width) to
    (B, T, heads, width).

    This is transformers' attention interface.

    Raises:
        TrainingError: the model does not hand `blocks` on; one example would see another.
    """
    if blocks is None:
        raise TrainingError(
            "{model} can't keep the examples of one row apart in its attention: this base can be "
            "served, but not trained.",
            model=type(module).__name__,
        )
    lengths = [block.length for block in blocks]
    # (B, heads, T, width) -> (B, heads, length, width) a block.
    queries, keys, values = (torch.split(each, lengths, dim=2) for each in (query, key, value))
    attended = []
    for number, block in enumerate(blocks):
        seen = (*block.after, number)
        # All that a block's example has had so far: (B, heads, depth + length, width).
        past, said = (_joined([each[at] for at in seen]) for each in (keys, values))
        attended.append(_attend(queries[number], past, said, scaling, sliding_window, softcap))
    # Joined along T again, heads last, as the output projection takes them; no attention weights.
    return torch.cat(attended, 2).transpose(1, 2).contiguous(), None


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), 2)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, scale: float | None, window: int | None, softcap: float | None
) -> Tensor:
    length = key.shape[2]
    # A block that fits the window sees all of itself, and the fused kernel needs no mask for that.
    windowed = window is not None and window < length
    if softcap is None and not windowed and query.shape[2] == length:
        return functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scale, enable_gqa=True
        )
    # Distances (queries, keys) from query to key, the last of both at the same place: negative ones lie in
    # the future.
    place = torch.arange(length, device=query.device)
    distance = place[length - query.shape[2] :, None] - place[None, :]
    visible = (distance >= 0) & (distance < (window if window is not None else length))
    if softcap is None:
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask=visible, scale=scale, enable_gqa=True
        )
    # Gemma 2 bends its scores: https://arxiv.org/abs/2408.00118, section 2.
    # Grouped-query attention by hand: each key head serves `groups` query heads.
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    # (B, heads, queries, keys), scaled by width ** -0.5 unless the model has a scale of its own.
    scores = query @ key.transpose(2, 3) * (scale if scale is not None else query.shape[-1] ** -0.5)
    # The mask comes after the bend, which would bring -inf back to -softcap.
    scores = (softcap * torch.tanh(scores / softcap)).masked_fill(~visible, float("-inf"))
    # Softmax in float32: bfloat16 has 8 bits for sums over hundreds of keys.
    return scores.float().softmax(-1).to(value.dtype) @ value


@contextmanager
def within_blocks(model: nn.Module) -> Iterator[None]:
    """Let a model attend inside blocks for one forward, whose `blocks` it must be given."""
    config: Any = model.config
    before = config._attn_implementation
    config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before


def _no_mask(*_: Any, **__: Any) -> None:
    """The blocks say it all."""


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attend_within_blocks)
ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, _no_mask)
