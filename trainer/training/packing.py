"""Several examples in one row without padding, and an attention that never crosses from one into another.

Padding a batch to its longest example multiplies nothing by the base's weights, at full price. Here the
examples follow each other in one row; each attends to itself only (a block-diagonal mask that is never built:
every block is multiplied by itself), and only the positions that predict a completion pass the output head.
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


@dataclass(frozen=True)
class Packed:
    """Examples in one row: `ids` and `positions` (1, T), `predicting` (N,) the places whose logits count.

    `targets` (N,) are the completion tokens, `lengths` how many each example has, `blocks` the examples' own
    lengths in the row.
    """

    ids: Tensor
    positions: Tensor
    predicting: Tensor
    targets: Tensor
    lengths: tuple[int, ...]
    blocks: tuple[int, ...]


def pack(examples: Sequence[Example]) -> Packed:
    """Put examples one after the other; every one begins at position 0."""
    ids: list[int] = []
    positions: list[int] = []
    predicting: list[int] = []
    targets: list[int] = []
    for example in examples:
        at = len(ids)
        # The logits at position t predict token t + 1, so the first one that counts is at start - 1.
        predicting += range(at + example.start - 1, at + len(example.ids) - 1)
        targets += example.ids[example.start :]
        # Rotary positions begin at 0 again: to the model each example is alone in its row.
        positions += range(len(example.ids))
        ids += example.ids
    # (T,) -> (1, T): one row is the whole batch.
    return Packed(
        ids=torch.tensor(ids)[None],
        positions=torch.tensor(positions)[None],
        predicting=torch.tensor(predicting),
        targets=torch.tensor(targets),
        lengths=tuple(example.completion_length for example in examples),
        blocks=tuple(len(example.ids) for example in examples),
    )


def bins(examples: Sequence[Example], limit: int) -> list[list[int]]:
    """Return groups of indices with at most `limit` tokens each (or one longer example), as few as can be.

    First fit, the longest first: within 22 % of the fewest groups, https://doi.org/10.1137/0203025.
    """
    groups: list[list[int]] = []
    room: list[int] = []  # tokens left in each group
    # Equal lengths keep their order, so that the same examples always fall into the same groups.
    for i in sorted(range(len(examples)), key=lambda i: (-len(examples[i].ids), i)):
        size = len(examples[i].ids)
        found = next((at for at, left in enumerate(room) if left >= size), None)
        if found is None:
            groups.append([i])
            room.append(limit - size)
        else:
            groups[found].append(i)
            room[found] -= size
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
    blocks: Sequence[int] | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each block of a row: `query` (B, heads, T, width) to (B, T, heads, width).

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
    lengths = list(blocks)
    # (B, heads, T, width) -> one triple of (B, heads, length, width) an example.
    parts = zip(*(torch.split(each, lengths, dim=2) for each in (query, key, value)), strict=True)
    attended = [_attend(q, k, v, scaling, sliding_window, softcap) for q, k, v in parts]
    # Joined along T again, heads last, as the output projection takes them; no attention weights.
    return torch.cat(attended, 2).transpose(1, 2).contiguous(), None


def _attend(
    query: Tensor, key: Tensor, value: Tensor, scale: float | None, window: int | None, softcap: float | None
) -> Tensor:
    length = query.shape[2]
    # A block that fits the window sees all of itself, and the fused kernel needs no mask for that.
    windowed = window is not None and window < length
    if softcap is None and not windowed:
        return functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scale, enable_gqa=True
        )
    # (T, T) distances from query to key: negative ones lie in the future.
    place = torch.arange(length, device=query.device)
    distance = place[:, None] - place[None, :]
    visible = (distance >= 0) & (distance < (window if window is not None else length))
    if softcap is None:
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask=visible, scale=scale, enable_gqa=True
        )
    # Gemma 2 bends its scores: https://arxiv.org/abs/2408.00118, section 2.
    # Grouped-query attention by hand: each key head serves `groups` query heads.
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    # (B, heads, T, T), scaled by width ** -0.5 unless the model has a scale of its own.
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
