"""A LoRA adapter as a GGUF file, as llama.cpp and what builds on it load one beside a base's own file.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (adapter metadata); tensor names by the
`gguf` package. llama.cpp adds alpha / rank * B A to the tensor `NAME` for each pair `NAME.lora_a` (rank, in)
and `NAME.lora_b` (out, rank).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import torch
from safetensors.torch import load_file

from bot.serving.errors import AdapterRefusedError
from bot.serving.model.adapter_files import CONFIG, WEIGHTS
from bot.serving.model.lora.config import check_lora_config, pair_halves

# The engine's architectures, by transformers' name and llama.cpp's. Mistral's is Llama's there.
ARCHITECTURES = {
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "granite": "granite",
    "llama": "llama",
    "ministral3": "mistral3",
    "mistral": "llama",
    "olmo2": "olmo2",
    "olmo3": "olmo2",
    "phi3": "phi3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "smollm3": "smollm3",
}
# Where llama.cpp turns neighbouring values of a head (its "normal" RoPE), and transformers the two halves:
# its files hold the rows of queries and keys in another order.
_NEIGHBOURS = frozenset(("granite", "llama", "mistral3", "smollm3"))


def write_lora_gguf(adapter: Path, base_config: Mapping[str, Any], target: Path) -> None:
    """Write an adapter folder as a GGUF file in float32. `base_config` is the `config.json` of its base.

    Raises AdapterRefusedError where llama.cpp doesn't have the architecture or one of the layers.
    """
    config = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
    check_lora_config(adapter.name, config)
    architecture = _architecture(base_config)
    pairs = pair_halves(adapter.name, load_file(adapter / WEIGHTS))
    writer = gguf.GGUFWriter(target, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_name(adapter.name)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, _alpha(config))
    names = tensor_names(architecture, int(base_config["num_hidden_layers"]))
    for module, (down, up) in sorted(pairs.items()):
        name = names.get_name(module)
        if name is None:
            raise AdapterRefusedError(
                "Adapter {adapter}: llama.cpp has no tensor for {module}.",
                adapter=adapter.name,
                module=module,
            )
        rows = reorder_rows(up.float(), name, architecture, base_config)
        for half, tensor in (("lora_a", down.float()), ("lora_b", rows)):
            writer.add_tensor(f"{name}.weight.{half}", tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensor_names(architecture: str, layers: int) -> gguf.TensorNameMap:
    """Return the map from transformers' names to llama.cpp's, of a model with so many layers."""
    by_name = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
    return gguf.get_tensor_name_map(by_name[architecture], layers)


def reorder_rows(
    rows: torch.Tensor, name: str, architecture: str, base_config: Mapping[str, Any]
) -> torch.Tensor:
    """Return a projection's rows (out, ...) in the order in which llama.cpp's files hold them."""
    if architecture not in _NEIGHBOURS or not name.endswith(("attn_q", "attn_k")):
        return rows
    heads = int(base_config["num_attention_heads"])
    if name.endswith("attn_k"):
        heads = int(base_config.get("num_key_value_heads") or heads)
    return interleave_rotary(rows, heads)


def interleave_rotary(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Put the rows (out, ...) of each head's two halves beside each other: 0, half, 1, half + 1."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.transpose(1, 2).reshape(rows.shape)


def _architecture(base_config: Mapping[str, Any]) -> str:
    kind = str(base_config.get("model_type"))
    known = ARCHITECTURES.get(kind)
    if known is None or known not in gguf.MODEL_ARCH_NAMES.values():
        raise AdapterRefusedError(
            "There is no GGUF form of a {kind} model: export the PEFT folder instead.", kind=kind
        )
    return known


def _alpha(config: Mapping[str, Any]) -> float:
    """Return the alpha that gives PEFT's scale when llama.cpp divides it by the rank."""
    alpha = float(config["lora_alpha"])
    return alpha * math.sqrt(float(config["r"])) if config.get("use_rslora") else alpha
