"""Load a prepared base for the kernels: its weights mapped from the files as they are, nothing unfolded."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from bot.serving.errors import BaseRefusedError
from bot.serving.native.packed import PackedEmbedding, PackedLinear, block_scales

_STATE = ".quant_state.bitsandbytes__nf4"


def load_mapped(folder: Path, attention: str, *, fast: bool = False) -> PreTrainedModel:
    """Return the model of a prepared base with :class:`PackedLinear` layers, for the CPU.

    ``fast`` allows products in 16-bit integers. Norms and biases are float32 copies (they are small);
    embeddings and head stay bfloat16 in the file.

    Raises:
        BaseRefusedError: a weight is missing or has a form that the kernels do not take.
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = torch.float32
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    tensors = _map_files(folder)
    try:
        for name, module in list(model.named_modules()):
            _fill(model, name, module, tensors, fast=fast)
    except (KeyError, ValueError) as error:
        raise BaseRefusedError(
            f"The prepared base {folder} does not fit Strop's kernels ({error}); delete it and restart."
        ) from error
    return model


def _map_files(folder: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    try:
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, "pt") as opened:
                tensors.update({name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise BaseRefusedError(f"The weights in {folder} cannot be read: {error}") from error
    return tensors


def _fill(
    model: PreTrainedModel, name: str, module: nn.Module, tensors: dict[str, torch.Tensor], *, fast: bool
) -> None:
    """Give one module its weights; a linear layer or an embedding is replaced by its packed form."""
    if isinstance(module, nn.Linear):
        _replace(model, name, _linear(model, name, module, tensors, fast=fast))
    elif isinstance(module, nn.Embedding):
        scale = float(getattr(module, "scalar_embed_scale", 1.0))
        weight = tensors[f"{name}.weight"]
        _replace(model, name, PackedEmbedding(weight, module.padding_idx, scale))
    else:
        for key in list(module._parameters):
            value = tensors[f"{name}.{key}" if name else key].float()
            setattr(module, key, nn.Parameter(value, requires_grad=False))


def _linear(
    model: PreTrainedModel, name: str, module: nn.Linear, tensors: dict[str, torch.Tensor], *, fast: bool
) -> PackedLinear:
    key = f"{name}.weight"
    shape = (module.out_features, module.in_features)
    bias = tensors[f"{name}.bias"] if module.bias is not None else None
    if f"{key}{_STATE}" in tensors:
        return PackedLinear(tensors[key], _scales(key, tensors), shape, bias, fast=fast)
    if key not in tensors and module is model.get_output_embeddings() and model.config.tie_word_embeddings:
        key = next(f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.Embedding))
    return PackedLinear(tensors[key], None, shape, bias, fast=fast)


def _scales(key: str, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    state = json.loads(bytes(tensors[f"{key}{_STATE}"].tolist()))
    if state["quant_type"] != "nf4" or state["blocksize"] != 64 or "nested_offset" not in state:
        raise ValueError(f"{key} is not NF4 with double quantization")
    return block_scales(
        tensors[f"{key}.absmax"],
        tensors[f"{key}.nested_quant_map"],
        tensors[f"{key}.nested_absmax"],
        float(state["nested_offset"]),
        int(state["nested_blocksize"]),
    )


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
