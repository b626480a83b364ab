"""Layers whose weights stay as they lie in the prepared base, multiplied in float32 by the kernels.

The weights are mapped from the file, not read into memory: the server and a training run on the same machine
share one copy of them, and a forward pass, a backward pass and a reply all see the same numbers.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from bot.serving.native.library import Integers, Library, Linear, load_library

F32, BF16, NF4 = range(3)
BLOCK = 64
MAX_WIDTH = 32768
# From this many rows on, unpacking a layer for the matrix library beats multiplying it packed (measured: 48
# to 64).
UNPACK_ROWS = 48
# So many outputs share a register in integer products of many rows (GROUP of fast.h).
INTEGER_OUTPUTS = 16
# So many weights are unpacked at a time: a slice that stays in the processor's cache until it is multiplied.
SLICE_WEIGHTS = 1_000_000

_scratch = threading.local()


class PackedLinear(nn.Linear):
    """A frozen linear layer ``(out, in)`` with NF4, bfloat16 or float32 weights and float32 results."""

    def __init__(
        self,
        weight: torch.Tensor,
        scales: torch.Tensor | None,
        shape: tuple[int, int],
        bias: torch.Tensor | None = None,
        *,
        fast: bool = False,
    ) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = shape
        self.weight = nn.Parameter(weight, requires_grad=False)
        held = None if bias is None else nn.Parameter(bias.float(), requires_grad=False)
        self.register_parameter("bias", held)
        self.register_buffer("scales", scales, persistent=False)
        self.described = describe(weight, scales, held, shape, fast=fast)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``x`` (..., in), float32, to (..., out)."""
        # (..., in) -> (N, in): the kernels know rows only.
        rows = x.reshape(-1, self.in_features)
        # The base is frozen: a gradient is needed only where it goes on to an adapter below.
        if torch.is_grad_enabled() and x.requires_grad:
            out: torch.Tensor = _Product.apply(rows, self)  # type: ignore[no-untyped-call]
        else:
            out = self.product(rows)
        return out.view(*x.shape[:-1], self.out_features)

    def product(self, rows: torch.Tensor) -> torch.Tensor:
        """Return ``rows`` (N, in) times the weights' transpose, plus the bias."""
        if rows.shape[0] >= UNPACK_ROWS and not self._any_rows_in_integers():
            # (N, in) @ (in, n) for each slice of outputs, side by side: (N, out).
            out = torch.cat([rows @ weights.t() for _, weights in self.slices()], dim=1)
            return out if self.bias is None else out.add_(self.bias)
        # The kernels are handed addresses and assume rows of `in` floats without gaps.
        rows = rows.contiguous()
        out = rows.new_empty((rows.shape[0], self.out_features))
        # The kernels' copy of the input, in the order in which they read it beside the packed weights.
        dealt = rows.new_empty((rows.shape[0] + 1, self.in_features))
        _library().linear(
            ctypes.byref(self.described),
            rows.data_ptr(),
            rows.shape[0],
            out.data_ptr(),
            dealt.data_ptr(),
            torch.get_num_threads(),
        )
        return out

    def _any_rows_in_integers(self) -> bool:
        return (
            bool(self.described.fast)
            and self.described.kind == NF4
            and self.out_features % INTEGER_OUTPUTS == 0
            and _library().integers is Integers.AVX512_VNNI
        )

    def slices(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield the weights as float32, some outputs (n, in) at a time; each overwrites the one before."""
        step = max(1, SLICE_WEIGHTS // self.in_features)
        for first in range(0, self.out_features, step):
            count = min(step, self.out_features - first)
            weights = _borrow(count * self.in_features)
            _library().unpack(
                ctypes.byref(self.described), first, count, weights.data_ptr(), torch.get_num_threads()
            )
            yield slice(first, first + count), weights.view(count, self.in_features)


class _Product(torch.autograd.Function):
    """The product with a backward pass that unpacks again, so that no unpacked layer is kept in between."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, layer: PackedLinear) -> torch.Tensor:
        ctx.layer = layer
        return layer.product(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        gradient = gradients[0]
        # dL/dx (N, in) = dL/dy (N, out) @ W (out, in), summed over slices of outputs.
        rows = gradient.new_zeros((gradient.shape[0], ctx.layer.in_features))
        for outputs, weights in ctx.layer.slices():
            rows.addmm_(gradient[:, outputs], weights)
        # None for the layer itself, which has nothing to learn.
        return rows, None


class PackedEmbedding(nn.Embedding):
    """A frozen embedding with bfloat16 or float32 rows and float32 results."""

    def __init__(self, weight: torch.Tensor, padding: int | None, scale: float) -> None:
        super().__init__(weight.shape[0], weight.shape[1], padding, _weight=weight)
        self.weight.requires_grad_(False)
        self.scale = scale

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map token ids to their rows."""
        # Only the rows that are asked for become float32. Gemma multiplies them by sqrt(hidden size).
        return functional.embedding(input, self.weight, self.padding_idx).float() * self.scale


def describe(
    weight: torch.Tensor,
    scales: torch.Tensor | None,
    bias: torch.Tensor | None,
    shape: tuple[int, int],
    *,
    fast: bool = False,
) -> Linear:
    """Describe weights ``(out, in)`` to the kernels; the tensors must outlive the description.

    ``fast`` allows products in 16-bit integers (fast.h), where the processor has them.

    Raises:
        ValueError: they have a form or a width that the kernels do not take.
    """
    width_out, width_in = shape
    # bitsandbytes keeps two 4-bit codes in a byte.
    kinds = {torch.float32: F32, torch.bfloat16: BF16, torch.uint8: NF4}
    if weight.dtype not in kinds or not weight.is_contiguous() or weight.device.type != "cpu":
        raise ValueError(f"weights of {weight.dtype} on {weight.device}")
    # Eight floats fill an AVX register; NF4 needs whole blocks a row, so that none has two scales.
    if width_in % (8 if scales is None else BLOCK) or width_out % 2 or width_in > MAX_WIDTH:
        raise ValueError(f"widths of {width_in} and {width_out}")
    return Linear(
        data=weight.data_ptr(),
        scales=None if scales is None else scales.data_ptr(),
        bias=None if bias is None else bias.data_ptr(),
        kind=kinds[weight.dtype],
        width_in=width_in,
        width_out=width_out,
        fast=fast,
    )


def block_scales(
    absmax: torch.Tensor, code: torch.Tensor, nested_absmax: torch.Tensor, offset: float, nested_block: int
) -> torch.Tensor:
    """Undo the double quantization of the scales (QLoRA, section 3): one float32 per 64 weights."""
    # One outer scale for `nested_block` (256) inner ones; the last group may be a part of one.
    outer = nested_absmax.repeat_interleave(nested_block)[: absmax.numel()]
    # The inner scales are 8-bit codes around their mean, which is the offset.
    return code[absmax.flatten().int()] * outer + offset


def _library() -> Library:
    library = load_library()
    if library is None:
        raise RuntimeError("a packed layer exists only where the kernels do")
    return library


def _borrow(count: int) -> torch.Tensor:
    """A scratch buffer of this thread: fresh memory for each layer would cost more than the unpacking."""
    buffer: torch.Tensor | None = getattr(_scratch, "buffer", None)
    if buffer is None or buffer.numel() < count:
        buffer = torch.empty(count)
        _scratch.buffer = buffer
    return buffer[:count]
