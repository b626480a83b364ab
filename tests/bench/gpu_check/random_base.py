"""A base of a size with random weights, and adapters for it: nothing is downloaded, nothing is on disk."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from bot.serving.engine.lora import Adapter
from bot.serving.model.loading import BaseInfo, LoadedBase
from tests.bench.serving.workload import UP_SIZE
from tests.bench.shapes import Size
from tests.tiny_model import CHAT_TEMPLATE, build_tiny_tokenizer

RANK, SCALE = 16, 2.0
# The final norm is so much larger than in a fresh model: distributions are then as sharp as a trained one's.
SHARPNESS = 6.0


def has_bitsandbytes() -> bool:
    """Whether weights can be held in 4 bits here."""
    return importlib.util.find_spec("bitsandbytes") is not None


def build(size: Size, device: str, *, in_4_bits: bool) -> LoadedBase:
    """Return a base as CUDA holds it, in 4 bits or in bfloat16 throughout."""
    config = size.config()
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.model.norm.weight.data.mul_(SHARPNESS)
    model.requires_grad_(False).eval()
    head = model.get_output_embeddings()
    linear = sum(
        each.weight.numel() for each in model.modules() if isinstance(each, nn.Linear) and each is not head
    )
    other = sum(each.numel() for each in model.parameters()) - linear
    if in_4_bits:
        _quantize(model, device)
    length = config.max_position_embeddings
    info = BaseInfo(
        f"random-{size.name}", "", "0" * 64, "0" * 64, config.model_type, length, linear, other, {}
    )
    return LoadedBase(model, wide_tokenizer(size.vocabulary), info, Path(), device, "packed")


def wide_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Return the tests' tokenizer with so many tokens, most of which no text contains."""
    tiny = build_tiny_tokenizer()
    state = json.loads(tiny.backend_tokenizer.to_str())
    state["model"]["vocab"] |= {f"word{token}": token for token in range(len(tiny), vocabulary)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        bos_token=tiny.bos_token,
        eos_token=tiny.eos_token,
        pad_token=tiny.pad_token,
        unk_token=tiny.unk_token,
        chat_template=CHAT_TEMPLATE,
    )


def lora_tensors(model: PreTrainedModel, seed: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return PEFT's A (r, in) and B (out, r) for every linear layer but the head, by module name."""
    head = model.get_output_embeddings()
    linears = [
        (name, each)
        for name, each in model.named_modules()
        if isinstance(each, nn.Linear) and each is not head
    ]
    device = model.get_input_embeddings().weight.device
    generator = torch.Generator(device).manual_seed(seed)
    return {
        name: (
            torch.randn(RANK, each.in_features, generator=generator, device=device)
            / math.sqrt(each.in_features),
            torch.randn(each.out_features, RANK, generator=generator, device=device) * UP_SIZE,
        )
        for name, each in linears
    }


def as_adapter(name: str, tensors: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> Adapter:
    """Return the adapter as the engine holds it."""
    weights = {
        module: (
            down.t().contiguous().to(torch.bfloat16),
            (SCALE * up.t()).contiguous().to(torch.bfloat16),
        )
        for module, (down, up) in tensors.items()
    }
    return Adapter(name, weights, RANK, name)


def _quantize(model: PreTrainedModel, device: str) -> None:
    """Hold the linear layers in NF4 with double quantization, as a prepared base has them."""
    import bitsandbytes as bnb

    head = model.get_output_embeddings()
    for name, each in list(model.named_modules()):
        if not isinstance(each, nn.Linear) or each is head:
            continue
        packed = bnb.nn.Linear4bit(
            each.in_features,
            each.out_features,
            bias=False,
            compute_dtype=torch.bfloat16,
            compress_statistics=True,
            quant_type="nf4",
            device="meta",
        )
        packed.weight = bnb.nn.Params4bit(
            each.weight.data.cpu(),
            requires_grad=False,
            compress_statistics=True,
            quant_type="nf4",
            module=packed,
        ).to(device)
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, packed.eval())
    model.is_loaded_in_4bit = True
