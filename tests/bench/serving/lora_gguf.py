"""Write an adapter folder as a GGUF file, as llama.cpp reads LoRA.

The format: https://github.com/ggml-org/llama.cpp/blob/master/convert_lora_to_gguf.py
"""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from bot.serving.model.adapter_files import CONFIG, WEIGHTS

ARCHITECTURE = "llama"
_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_lora_gguf(adapter: Path, base: Path, target: Path) -> None:
    """Convert the adapter folder of a Llama base to a GGUF file at ``target``."""
    config = AutoConfig.from_pretrained(base)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    writer = gguf.GGUFWriter(target, ARCHITECTURE)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    alpha = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))["lora_alpha"]
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(alpha))
    for key, tensor in load_file(adapter / WEIGHTS).items():
        name, half = gguf_name(key)
        kind = name.split(".")[2]
        if half == "lora_b" and kind in heads:
            tensor = interleave_rotary(tensor, heads[kind])
        writer.add_tensor(f"{name}.{half}", tensor.to(torch.float32).contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(key: str) -> tuple[str, str]:
    """Return llama.cpp's tensor name of a PEFT key, and ``lora_a`` or ``lora_b``.

    Raises:
        KeyError: a layer that llama.cpp names otherwise.
    """
    module, _, half = key.removeprefix("base_model.model.model.layers.").rpartition(".lora_")
    layer, _, part = module.partition(".")
    return f"blk.{layer}.{_NAMES[part]}.weight", {"A.weight": "lora_a", "B.weight": "lora_b"}[half]


def interleave_rotary(up: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder a projection's rows (out, r): llama.cpp rotates neighbours, transformers rotates halves."""
    out, rank = up.shape
    return up.reshape(heads, 2, out // heads // 2, rank).transpose(1, 2).reshape(out, rank)
