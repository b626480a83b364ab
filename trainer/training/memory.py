"""What a loaded base and what is to be learned put into the estimate of a training's memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from bot.serving.model.training_memory import Load, Widths
from trainer.data.encoding import Example
from trainer.training.adapter import compute_dtype


def widths_of(model: nn.Module) -> Widths:
    """Read the widths off a base without an adapter."""
    config: Any = model.config
    heads = int(config.num_attention_heads)
    head_width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    layers = int(config.num_hidden_layers)
    head = model.get_output_embeddings()  # type: ignore[operator]
    linears = [each for each in model.modules() if isinstance(each, nn.Linear) and each is not head]
    norms = [name for name, each in model.named_modules() if type(each).__name__.endswith("Norm")]
    of_heads = [name for name in norms if name.endswith(("q_norm", "k_norm"))]
    return Widths(
        layers=layers,
        hidden=int(config.hidden_size),
        queries=heads * head_width,
        keys=int(getattr(config, "num_key_value_heads", None) or heads) * head_width,
        inner=int(config.intermediate_size),
        norms=(len(norms) - len(of_heads)) // layers,
        head_norms=bool(of_heads),
        linears=len(linears) // layers,
        adapted=sum(each.in_features + each.out_features for each in linears),
        largest=max(each.in_features * each.out_features for each in linears),
        vocabulary=int(head.weight.shape[0]),
        scores=heads if getattr(config, "attn_logit_softcapping", None) else 0,
        number_bytes=compute_dtype(model).itemsize,
    )


def load_of(rows: Sequence[Example], replay: Sequence[Example], step_tokens: int) -> Load:
    """Measure examples; the two sides of a preference pair, which go through together, count as one."""
    return Load(
        tuple((len(each.ids), each.completion_length) for each in rows),
        tuple((len(each.ids), each.completion_length) for each in replay),
        step_tokens,
    )
