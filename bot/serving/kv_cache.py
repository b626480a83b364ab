"""Keys and values of every running request, one row each, in tensors shared by all.

Token ``j`` of a request always sits at position ``j`` of its row: no padding on the left, so positions,
masks and rows need no shifting when requests join or leave. A forward pass sees a contiguous range of rows as
a view, without copying.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache, PretrainedConfig

GROWTH_TOKENS = 256


class RowCache(Cache):  # type: ignore[misc]
    """A cache of ``rows`` rows whose length grows in steps up to ``max_tokens``.

    Before a forward pass :meth:`select` says which rows it covers and where in each the new tokens go.
    """

    def __init__(self, config: PretrainedConfig, rows: int, max_tokens: int) -> None:
        super().__init__(layers=[])
        self._rows = rows
        self._max_tokens = max_tokens
        self._length = 0
        self._keys: list[torch.Tensor | None] = [None] * config.num_hidden_layers
        self._values: list[torch.Tensor | None] = [None] * config.num_hidden_layers
        self._first = 0
        self._span = 0
        self._write: tuple[torch.Tensor, torch.Tensor] | None = None

    def select(self, first: int, positions: torch.Tensor, span: int) -> None:
        """Cover B rows from ``first``; new tokens go to ``positions`` (B, T); queries see ``span`` keys."""
        self._grow(span)
        self._first, self._span = first, span
        rows = torch.arange(first, first + positions.shape[0], device=positions.device)
        self._write = (rows[:, None], positions)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store (B, heads, T, dim) at the selected places; return views (B, heads, span, dim)."""
        keys, values = self._layer(layer_idx, key_states)
        if self._write is None:
            raise RuntimeError("select() comes before a forward pass")
        rows, positions = self._write
        keys[rows, :, positions] = key_states.transpose(1, 2)
        values[rows, :, positions] = value_states.transpose(1, 2)
        last = self._first + key_states.shape[0]
        return keys[self._first : last, :, : self._span], values[self._first : last, :, : self._span]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy one row's first ``length`` tokens to another row."""
        for tensor in (*self._keys, *self._values):
            if tensor is not None:
                tensor[target, :, :length] = tensor[source, :, :length]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Zero: positions and masks are always given explicitly."""
        return 0

    def _layer(self, index: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self._keys[index], self._values[index]
        if keys is None or values is None:
            # Zeros, not empty memory: a masked NaN would still poison the weighted sum.
            shape = (self._rows, like.shape[1], self._length, like.shape[3])
            keys, values = like.new_zeros(shape), like.new_zeros(shape)
            self._keys[index], self._values[index] = keys, values
        return keys, values

    def _grow(self, needed: int) -> None:
        if needed <= self._length:
            return
        if needed > self._max_tokens:
            raise RuntimeError(f"{needed} tokens do not fit in a row of {self._max_tokens}")
        steps = -(-needed // GROWTH_TOKENS) * GROWTH_TOKENS
        self._length = min(max(steps, self._length * 3 // 2), self._max_tokens)
        for tensors in (self._keys, self._values):
            for index, old in enumerate(tensors):
                if old is not None:
                    new = old.new_zeros((*old.shape[:2], self._length, old.shape[3]))
                    new[:, :, : old.shape[2]] = old
                    tensors[index] = new


class CausalMasks:
    """The additive attention masks of one forward pass, in the form that the model's code takes."""

    def __init__(self, config: PretrainedConfig) -> None:
        layer_types = getattr(config, "layer_types", None) or []
        window = getattr(config, "sliding_window", None)
        self._by_type = "sliding_attention" in layer_types
        # Without layer types every layer slides (Mistral), or none does.
        self._window = int(window) if window and (self._by_type or not layer_types) else None

    def build(self, positions: torch.Tensor, span: int, dtype: torch.dtype) -> Any:
        """Let each query at ``positions`` (B, T) see keys up to itself: (B, 1, T, span), per layer type."""
        keys = torch.arange(span, device=positions.device)
        visible = keys <= positions[:, :, None]
        near = visible if self._window is None else visible & (keys > positions[:, :, None] - self._window)
        if self._by_type:
            return {"full_attention": _additive(visible, dtype), "sliding_attention": _additive(near, dtype)}
        return _additive(near, dtype)


def _additive(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]
