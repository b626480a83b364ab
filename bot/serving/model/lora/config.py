"""Which of PEFT's LoRA configurations the engine implements (torch-free)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from bot.serving.errors import AdapterRefusedError

MAX_RANK = 256
KEY_PREFIX = "base_model.model."

# PEFT's configuration keys that change the maths, with the only values that the engine implements. Keys that
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


def check_lora_config(name: str, config: Mapping[str, Any]) -> None:
    """Check that a configuration is plain LoRA.

    Raises:
        AdapterRefusedError: it asks for something else (DoRA, biases, PiSSA, per-layer ranks), by name.
    """
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


def check_lora_pair(
    name: str,
    module: str,
    down: tuple[int, ...],
    up: tuple[int, ...],
    rank: int,
    widths: Mapping[str, tuple[int, int]],
) -> None:
    """Check the shapes of `lora_A` (r, in) and `lora_B` (out, r) against the base's (in, out) widths.

    Raises:
        AdapterRefusedError: the base has no such layer, or one of other widths.
    """
    if module not in widths:
        raise AdapterRefusedError(f"Adapter {name}: the base has no linear layer {module}.")
    width_in, width_out = widths[module]
    if down != (rank, width_in) or up != (width_out, rank):
        raise AdapterRefusedError(
            f"Adapter {name}: {module} has shapes {down} and {up}, "
            f"not {(rank, width_in)} and {(width_out, rank)}."
        )


def pair_halves(name: str, keys: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Match each `lora_A` with its `lora_B` by module name, whatever the values are.

    Raises:
        AdapterRefusedError: a key is no LoRA weight, or one of a pair is missing.
    """
    halves: dict[str, dict[str, Any]] = {}
    for key, value in keys.items():
        module, separator, half = key.removeprefix(KEY_PREFIX).rpartition(".lora_")
        if not separator or half not in ("A.weight", "B.weight") or not key.startswith(KEY_PREFIX):
            raise AdapterRefusedError(f"Adapter {name}: tensor {key} is not a LoRA weight.")
        halves.setdefault(module, {})[half[0]] = value
    if not halves:
        raise AdapterRefusedError(f"Adapter {name} holds no weights.")
    for module, pair in halves.items():
        if len(pair) != 2:
            raise AdapterRefusedError(f"Adapter {name}: {module} has only one of lora_A and lora_B.")
    return {module: (pair["A"], pair["B"]) for module, pair in halves.items()}
