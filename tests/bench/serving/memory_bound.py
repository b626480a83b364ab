"""How many tokens a second the memory would allow if arithmetic and everything else were free.

Every weight is read once a step, and every stream's keys and values: tokens a second are at most
``streams * bandwidth / (weight bytes + streams * context * bytes of keys and values a token)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, PretrainedConfig

from bot.serving.model.loading import BaseInfo, LoadedBase
from bot.serving.model.memory import NF4_BYTES_PER_WEIGHT

BF16_BYTES = 2


@dataclass(frozen=True, slots=True)
class BytesPerStep:
    """What one decode step reads: weights once, keys and values once for each stream and token."""

    weights: float
    kv_per_token: float

    def ceiling(self, bandwidth: float, streams: int, context: int) -> float:
        """Return tokens per second at ``bandwidth`` bytes per second, all streams together."""
        return streams * bandwidth / (self.weights + streams * context * self.kv_per_token)


def nf4_bytes(info: BaseInfo, folder: Path) -> BytesPerStep:
    """Return what the 4-bit form needs: NF4 linear layers, the head and the cache in bfloat16."""
    config = AutoConfig.from_pretrained(folder)
    head = config.vocab_size * config.hidden_size * BF16_BYTES
    linear = info.linear_parameters * NF4_BYTES_PER_WEIGHT
    return BytesPerStep(linear + head, _kv_values(config) * BF16_BYTES)


def held_bytes(base: LoadedBase) -> BytesPerStep:
    """Return what the loaded base reads as it is held: each tensor once, but no mere lookup table."""
    looked_up = base.model.get_input_embeddings()
    seen: dict[int, int] = {}
    for module in base.model.modules():
        # Of the embedding a step reads a row; where it is the head's table too, the head counts it.
        if module is not looked_up:
            seen.update((tensor.data_ptr(), tensor.nbytes) for tensor in _tensors(module))
    return BytesPerStep(sum(seen.values()), _kv_values(base.model.config) * base.cache_dtype.itemsize)


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    """Return the module's own tensors, with the scales of a bitsandbytes weight."""
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    state = getattr(getattr(module, "weight", None), "quant_state", None)
    nested = getattr(state, "state2", None)
    scales = [getattr(state, "absmax", None), getattr(nested, "absmax", None)]
    return [*tensors, *(scale for scale in scales if isinstance(scale, torch.Tensor))]


def _kv_values(config: PretrainedConfig) -> int:
    """Return how many numbers one token's keys and values are, over all layers."""
    heads = int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * int(config.num_hidden_layers) * heads * int(width)
