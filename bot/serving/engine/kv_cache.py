"""Keys and values of every request, one row each, in tensors that are reserved when the engine starts.

Token ``j`` of a request always sits at position ``j`` of its row: no padding on the left, so positions, masks
and rows need no shifting when requests join or leave. A row keeps its contents after its request has ended,
for the next one that begins alike (:mod:`bot.serving.engine.cache_rows`).
"""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Sequence
from typing import Any

import torch
from transformers import Cache, PretrainedConfig

# This much of the free memory may be reserved for keys and values.
CACHE_SHARE = 0.8
# The kernels work on eight keys at a time.
LENGTH_MULTIPLE = 8
# Huge pages make steps of 16 rows a twentieth faster, those of one row no faster. One holds a layer's row and
# more, so that a word takes the memory of a whole context. Who reserves many rows has asked for speed.
HUGE_PAGES_FROM_ROWS = 16


class RowCache(Cache):  # type: ignore[misc]
    """A cache of ``rows`` rows of ``max_tokens`` tokens; each layer's tensors are (rows, kv heads, length,
    head dim), and views of those that hold all layers.

    The model's modules multiply in ``compute`` (``dtype`` unless given): what they see is converted for them.
    Untouched parts cost no memory on a CPU: the system hands out pages when they are written. Before a
    forward pass through the model's modules :meth:`select` says which rows it covers and where in each the
    new tokens go.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        rows: int,
        max_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
        compute: torch.dtype | None = None,
    ) -> None:
        super().__init__(layers=[])
        self.dtype, self._compute = dtype, compute or dtype
        self.length = padded_length(max_tokens)
        row = (config.num_key_value_heads, self.length, head_width(config))
        shape = (config.num_hidden_layers, rows, *row)
        # Zeros, not empty memory: a masked NaN would still poison the weighted sum.
        self.all_keys, self.all_values = (
            _reserved_zeros(shape, dtype, device, huge=rows >= HUGE_PAGES_FROM_ROWS) for _ in range(2)
        )
        self.keys, self.values = list(self.all_keys.unbind()), list(self.all_values.unbind())
        self._rows: torch.Tensor | None = None
        self._positions: torch.Tensor | None = None
        self._block: slice | None = None
        self._span = 0

    def select(self, rows: Sequence[int], positions: torch.Tensor, span: int) -> None:
        """Cover these rows; their new tokens go to ``positions`` (B, T); queries see ``span`` keys."""
        self._rows = torch.tensor(rows, device=positions.device)
        self._positions, self._span = positions, span
        # Rows that adjoin are read as a view; others have to be gathered, which copies (B, heads, span, dim).
        block = list(range(rows[0], rows[0] + len(rows)))
        self._block = slice(rows[0], rows[0] + len(rows)) if list(rows) == block else None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store (B, heads, T, dim) at the selected places; return (B, heads, span, dim), views if rows adjoin
        and nothing is converted.
        """
        if self._rows is None:
            raise RuntimeError("select() comes before a forward pass")
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        # (B, 1) rows with (B, T) positions index (B, T, heads, dim): the advanced indices come first, so
        # that heads and tokens change places on the way in.
        keys[self._rows[:, None], :, self._positions] = self._stored(key_states.transpose(1, 2))
        values[self._rows[:, None], :, self._positions] = self._stored(value_states.transpose(1, 2))
        return self._seen(keys), self._seen(values)

    def _stored(self, states: torch.Tensor) -> torch.Tensor:
        if self.dtype == self._compute:
            return states
        largest = torch.finfo(self.dtype).max
        return states.clamp(-largest, largest).to(self.dtype)

    def _seen(self, tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor[:, :, : self._span]
        return (tensor[self._block] if self._block is not None else tensor[self._rows]).to(self._compute)

    def largest(self, length: int) -> float:
        """Return the magnitude of the largest number of the first row's first tokens."""
        return max(float(tensor[0, :, :length].abs().max()) for tensor in (*self.keys, *self.values))

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy one row's first ``length`` tokens to another row."""
        # Keys carry their rotary positions already, which hold since token j is at position j in any row.
        for tensor in (*self.keys, *self.values):
            tensor[target, :, :length] = tensor[source, :, :length]

    def clear(self, row: int) -> None:
        """Overwrite one row with zeros."""
        for tensor in (*self.keys, *self.values):
            tensor[row].zero_()

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Zero: positions and masks are always given explicitly."""
        return 0


def _reserved_zeros(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device, *, huge: bool
) -> torch.Tensor:
    """Return zeros that take memory as they are written over: torch writes them all, fresh pages don't."""
    if device.type != "cpu":
        return torch.zeros(tuple(shape), dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(AttributeError, OSError):  # not Linux, or a kernel without huge pages
        pages.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(tuple(shape))


def padded_length(tokens: int) -> int:
    """Return the length of a row that holds so many tokens."""
    return -(-tokens // LENGTH_MULTIPLE) * LENGTH_MULTIPLE


def head_width(config: PretrainedConfig) -> int:
    """Return the width of one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def row_bytes(config: PretrainedConfig, max_tokens: int, dtype: torch.dtype) -> int:
    """Return the memory of one row, keys and values of all layers together."""
    tokens = config.num_hidden_layers * config.num_key_value_heads * padded_length(max_tokens)
    return int(2 * tokens * head_width(config) * dtype.itemsize)


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
        # (span,) against (B, T, 1) -> (B, T, span). What lies behind a row's end is in its future too.
        visible = keys <= positions[:, :, None]
        near = visible if self._window is None else visible & (keys > positions[:, :, None] - self._window)
        if self._by_type:
            return {"full_attention": _additive(visible, dtype), "sliding_attention": _additive(near, dtype)}
        return _additive(near, dtype)


def _additive(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    # The smallest finite number, since a row of nothing but -inf has no softmax; [:, None] is for the heads.
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]
