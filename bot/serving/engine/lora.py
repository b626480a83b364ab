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

MAX_RANK = 256
KEY_PREFIX = "base_model.model."

# PEFT's configuration keys that change the maths, with the only values that this layer implements. Keys that
# are in neither set are refused when they are set to anything.
_REQUIRED_VALUES: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", None),
    "bias": ("none",),
    "fan_in_fan_out": (False,),
}
_HARMLESS = frozenset(
    (
        *_REQUIRED_VALUES,
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "inference_mode",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_alpha",
        "lora_dropout",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "r",
        "revision",
        "target_modules",
        "use_rslora",
    )
)
# Initialisations that rewrite the base: such an adapter is wrong on the base that is served.
_BASE_CHANGING = frozenset(("pissa", "olora", "loftq", "corda"))


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
    for module, (down, up) in _pair_up(name, tensors).items():
        _check_shapes(name, module, down, up, rank, widths)
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
    name = manifest.adapter_id
    config: dict[str, Any] = json.loads(read_file(manifest, CONFIG))
    for key, allowed in _REQUIRED_VALUES.items():
        if config.get(key, allowed[0]) not in allowed:
            raise AdapterRefusedError(f"Adapter {name}: {key} = {config[key]!r} is not supported.")
    for key, value in config.items():
        if key not in _HARMLESS and value not in (None, False, {}, [], "", 0):
            raise AdapterRefusedError(f"Adapter {name}: {key} = {value!r} is not supported.")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().split("_niter")[0] in _BASE_CHANGING:
        raise AdapterRefusedError(f"Adapter {name}: init_lora_weights = {start!r} changes the base.")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= MAX_RANK:
        raise AdapterRefusedError(f"Adapter {name}: rank {rank!r} is not between 1 and {MAX_RANK}.")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha):
        raise AdapterRefusedError(f"Adapter {name}: lora_alpha {alpha!r} is not a number.")
    return config


def _scale(config: Mapping[str, Any]) -> float:
    """LoRA scales by alpha / r, rank-stabilised LoRA by alpha / sqrt(r) (https://arxiv.org/abs/2312.03732)."""
    rank = float(config["r"])
    return float(config["lora_alpha"]) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _pair_up(name: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Match each ``lora_A`` with its ``lora_B`` by module name."""
    halves: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        module, separator, half = key.removeprefix(KEY_PREFIX).rpartition(".lora_")
        if not separator or half not in ("A.weight", "B.weight") or not key.startswith(KEY_PREFIX):
            raise AdapterRefusedError(f"Adapter {name}: tensor {key} is not a LoRA weight.")
        halves.setdefault(module, {})[half[0]] = tensor
    if not halves:
        raise AdapterRefusedError(f"Adapter {name} holds no weights.")
    for module, pair in halves.items():
        if len(pair) != 2:
            raise AdapterRefusedError(f"Adapter {name}: {module} has only one of lora_A and lora_B.")
    return {module: (pair["A"], pair["B"]) for module, pair in halves.items()}


def _check_shapes(
    name: str,
    module: str,
    down: torch.Tensor,
    up: torch.Tensor,
    rank: int,
    widths: Mapping[str, tuple[int, int]],
) -> None:
    if module not in widths:
        raise AdapterRefusedError(f"Adapter {name}: the base has no linear layer {module}.")
    width_in, width_out = widths[module]
    if tuple(down.shape) != (rank, width_in) or tuple(up.shape) != (width_out, rank):
        raise AdapterRefusedError(
            f"Adapter {name}: {module} has shapes {tuple(down.shape)} and {tuple(up.shape)}, "
            f"not {(rank, width_in)} and {(width_out, rank)}."
        )
    for tensor in (down, up):
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            raise AdapterRefusedError(f"Adapter {name}: {module} holds values that are not finite numbers.")
