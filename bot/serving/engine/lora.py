"""LoRA adapters beside a frozen base: read, checked and applied per row of a batch.

Adapters are read straight from safetensors and never become part of the model, so serving calls neither
PEFT's ``load_adapter``/``set_adapter`` (which switch every request in flight) nor ``state_dict()`` (which
unpacks and damages bitsandbytes' packed weights). Each wrapped layer computes ``base(x) + scale * B(A(x))``
for the rows that the current :class:`RowPlan` gives to an adapter. The maths:
https://arxiv.org/abs/2106.09685
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import nn
from transformers import PreTrainedModel

from bot.serving.errors import AdapterRefusedError
from bot.serving.model.adapter_files import CONFIG, WEIGHTS, Manifest, read_file, verify
from bot.serving.model.lora.config import check_lora_config, check_lora_pair, pair_halves


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Adapter:
    """Weights in memory: module name -> (A transposed ``(in, r)``, B transposed and scaled ``(r, out)``).

    ``content`` is the hash of what they were read from: a caller may give one name to other weights later.
    """

    name: str
    weights: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    rank: int
    content: str = ""


@dataclass(slots=True)
class RowPlan:
    """Which rows of the coming forward pass use which adapter; only the engine thread touches it.

    ``groups`` pairs an adapter with row indices ``(n,)``, or with None where it has all rows.
    """

    groups: list[tuple[Adapter, torch.Tensor | None]] = field(default_factory=list)

    def assign(self, adapters: Sequence[Adapter | None], device: torch.device) -> None:
        """Group the batch's rows by adapter; None is the bare base."""
        rows: dict[int, list[int]] = {}
        for row, adapter in enumerate(adapters):
            if adapter is not None:
                rows.setdefault(id(adapter), []).append(row)
        self.groups = []
        for indices in rows.values():
            adapter = adapters[indices[0]]
            if adapter is not None:
                everyone = len(indices) == len(adapters)
                self.groups.append((adapter, None if everyone else torch.tensor(indices, device=device)))


class LoraLinear(nn.Module):
    """A linear layer of the base that adds each row's own adapter."""

    def __init__(self, base: nn.Module, name: str, plan: RowPlan) -> None:
        super().__init__()
        self.base = base
        self.name = name
        self._plan = plan

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``x`` of shape (B, T, in) to (B, T, out)."""
        out: torch.Tensor = self.base(x)
        for adapter, rows in self._plan.groups:
            pair = adapter.weights.get(self.name)
            if pair is None:
                continue
            # down (in, r), up (r, out) with the scale folded in: two thin products instead of one (in, out).
            down, up = pair
            if rows is None:
                out = out + (x.to(down.dtype) @ down @ up).to(out.dtype)
            else:
                # (n, T, in) -> (n, T, out) for this adapter's rows only; other rows keep the base's output.
                delta = (x.index_select(0, rows).to(down.dtype) @ down @ up).to(out.dtype)
                out = out.index_add(0, rows, delta)
        return out


def wrap_linears(model: PreTrainedModel, plan: RowPlan) -> dict[str, tuple[int, int]]:
    """Wrap every linear layer but the output head; return the (in, out) widths by module name."""
    head = model.get_output_embeddings()
    widths: dict[str, tuple[int, int]] = {}
    for name, module in list(model.named_modules()):
        # Linear4bit is a subclass of nn.Linear.
        if isinstance(module, nn.Linear) and module is not head:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, LoraLinear(module, name, plan))
            widths[name] = (module.in_features, module.out_features)
    return widths


def read_adapter(
    name: str,
    folder: Path,
    *,
    adapters_dir: Path,
    base_hash: str,
    chat_template_hash: str,
    widths: Mapping[str, tuple[int, int]],
    dtype: torch.dtype,
    device: str,
) -> Adapter:
    """Verify an adapter folder and return its weights, ready to be used.

    Raises:
        AdapterRefusedError: a file check failed, or the weights do not fit the base; the text says why.
    """
    manifest = verify(
        folder, adapters_dir=adapters_dir, base_hash=base_hash, chat_template_hash=chat_template_hash
    )
    config = check_config(manifest)
    try:
        tensors = load_safetensors(read_file(manifest, WEIGHTS))
    except (SafetensorError, ValueError, OverflowError) as error:
        raise AdapterRefusedError(f"Adapter {name}: {WEIGHTS} is not a valid safetensors file.") from error
    rank = int(config["r"])
    scale = _scale(config)
    weights: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for module, (down, up) in pair_halves(name, tensors).items():
        check_lora_pair(name, module, tuple(down.shape), tuple(up.shape), rank, widths)
        _check_values(name, module, down, up)
        weights[module] = (
            down.to(torch.float32).t().contiguous().to(device=device, dtype=dtype),
            (up.to(torch.float32).t() * scale).contiguous().to(device=device, dtype=dtype),
        )
    return Adapter(name, weights, rank, manifest.adapter_id)


def check_config(manifest: Manifest) -> dict[str, Any]:
    """Return PEFT's configuration if it is plain LoRA.

    Raises:
        AdapterRefusedError: it asks for something else (DoRA, biases, PiSSA, per-layer ranks), by name.
    """
    config: dict[str, Any] = json.loads(read_file(manifest, CONFIG))
    check_lora_config(manifest.adapter_id, config)
    return config


def _scale(config: Mapping[str, Any]) -> float:
    """LoRA scales by alpha / r, rank-stabilised LoRA by alpha / sqrt(r) (https://arxiv.org/abs/2312.03732)."""
    rank = float(config["r"])
    return float(config["lora_alpha"]) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _check_values(name: str, module: str, *halves: torch.Tensor) -> None:
    for tensor in halves:
        # A sum of float64 is finite only if all are, and takes a tenth of the time of looking at each.
        if not tensor.is_floating_point() or not math.isfinite(float(tensor.sum(dtype=torch.float64))):
            raise AdapterRefusedError(f"Adapter {name}: {module} holds values that are not finite numbers.")
