"""All adapters of a batch in one product.

The adapters' thin matrices stand side by side: `x @ [A1 A2 ...]` is every adapter's inner product for every
row, a mask keeps each row's own, and `[B1; B2; ...]` sums them up. The products are so thin that those which
the mask drops cost nothing beside the calls that are saved; a row's result is that of its adapter alone.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from bot.serving.engine.lora import Adapter

Masks: TypeAlias = Mapping[int, torch.Tensor]
"""For P layers with one input (B, P * R): 1 where a column is of the row's own adapter."""


@dataclass(frozen=True, slots=True)
class StackedPart:
    """What is added to linear layers that have one input: `down` (in, P * R) and an `up` (R, out) for each of
    the P layers, or None for one that no adapter changes. R is the sum of the adapters' ranks.
    """

    down: torch.Tensor
    ups: tuple[torch.Tensor | None, ...]

    def add(self, x: torch.Tensor, outs: Sequence[torch.Tensor], masks: Masks | None) -> None:
        """Add each row's own adapter to `outs` (B, out), the layers' results for `x` (B, in), in place."""
        inner = x @ self.down
        if masks is not None:
            inner.mul_(masks[len(self.ups)])
        parts = inner.chunk(len(self.ups), dim=1) if len(self.ups) > 1 else (inner,)
        for out, part, up in zip(outs, parts, self.ups, strict=True):
            if up is not None:
                out.addmm_(part, up)


class AdapterStack:
    """Some adapters, stacked for groups of layers: `parts[i]` is for the i-th of ``groups``.

    A group names the layers that share an input; ``widths`` are their (in, out) widths. The stack holds
    copies and keeps no adapter in memory; ``on_unload`` is called once one of them is gone.
    """

    def __init__(
        self,
        adapters: Sequence[Adapter],
        groups: Sequence[Sequence[str]],
        widths: dict[str, tuple[int, int]],
        on_unload: Callable[[object], None],
    ) -> None:
        self._adapters = [weakref.ref(each, on_unload) for each in adapters]
        self._ranks = [each.rank for each in adapters]
        self._like = next(iter(adapters[0].weights.values()))[0].new_empty(0)
        self._groups = groups
        self.parts = [self._stack(adapters, names, widths) for names in groups]

    def holds(self, adapters: Sequence[Adapter]) -> bool:
        """Whether it is made of these, in this order."""
        return [each() for each in self._adapters] == list(adapters)

    def masks(self, used: Sequence[Adapter | None]) -> Masks | None:
        """Return the masks of a batch's adapters, or None where all rows have the only one."""
        if len(self._adapters) == 1 and all(each is not None for each in used):
            return None
        held = [(each(), rank) for each, rank in zip(self._adapters, self._ranks, strict=True)]
        rows = [[float(adapter is own) for adapter, rank in held for _ in range(rank)] for own in used]
        mask = torch.tensor(rows, dtype=self._like.dtype).to(self._like.device, non_blocking=True)
        return {count: mask.repeat(1, count) for count in {len(names) for names in self._groups}}

    def _stack(
        self, adapters: Sequence[Adapter], names: Sequence[str], widths: dict[str, tuple[int, int]]
    ) -> StackedPart | None:
        if not any(name in adapter.weights for name in names for adapter in adapters):
            return None
        downs = [self._half(adapter, name, 0, widths) for name in names for adapter in adapters]
        ups = [
            torch.cat([self._half(adapter, name, 1, widths) for adapter in adapters])
            if any(name in adapter.weights for adapter in adapters)
            else None
            for name in names
        ]
        return StackedPart(torch.cat(downs, dim=1), tuple(ups))

    def _half(
        self, adapter: Adapter, name: str, half: int, widths: dict[str, tuple[int, int]]
    ) -> torch.Tensor:
        """Return (in, r) or (r, out) of an adapter; zeros for a layer that it leaves alone."""
        if name in adapter.weights:
            return adapter.weights[name][half]
        width_in, width_out = widths[name]
        return self._like.new_zeros((adapter.rank, width_out) if half else (width_in, adapter.rank))
