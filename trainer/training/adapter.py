"""The adapter that a training tunes: LoRA beside a frozen base, and what is kept for a backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_layers import GradientCheckpointingLayer

from storage.config_sections import TrainerConfig


class RoundingLinear(nn.Linear):
    """A linear layer that keeps float32 weights and multiplies in the precision of its input."""

    def forward(self, input: Tensor) -> Tensor:
        """Map `input` (..., in) to (..., out); the weight's gradient is float32."""
        return functional.linear(input, self.weight.to(input.dtype))


def add_adapter(model: nn.Module, settings: TrainerConfig) -> PeftModel:
    """Put a fresh LoRA adapter with float32 weights on every linear layer but the output head.

    Beside a bfloat16 base it multiplies in bfloat16, as it will be served; PEFT would keep a float32 copy of
    every layer's input for it, 30 % of all that a backward pass needs (EXPERIMENTS, 20).
    """
    torch.manual_seed(settings.seed)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        bias="none",
        task_type="CAUSAL_LM",
    )
    peft_model = get_peft_model(model, config)
    # In bfloat16 most updates of a small learning rate round to nothing (LEARNING: pitfalls).
    for parameter in peft_model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if compute_dtype(model) != torch.float32:
        _multiply_in_the_precision_of_the_base(peft_model)
    return peft_model


def compute_dtype(model: nn.Module) -> torch.dtype:
    """Return the precision in which a loaded base multiplies: bfloat16 on CUDA, float32 on a CPU."""
    dtype = getattr(model.config, "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def recompute_activations(model: nn.Module, wanted: bool) -> None:
    """Keep only each decoder layer's input for the backward pass, and compute the rest of it again.

    The gradients are the same to the bit, a step takes about a third longer.
    """
    if wanted:
        # There is no dropout, and so no random state to bring back.
        options = {"use_reentrant": False, "preserve_rng_state": False}
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)  # type: ignore[operator]
    else:
        model.activation_checkpointing_disable()  # type: ignore[operator]


@contextmanager
def giving_way(model: nn.Module, give_way: Callable[[], None]) -> Iterator[None]:
    """Call `give_way` before each decoder layer, forward and backward; it may take its time.

    A forward of 768 tokens takes seconds on a CPU, a layer of it a tenth of one.
    """

    def before(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        give_way()
        if inputs and isinstance(inputs[0], Tensor) and inputs[0].requires_grad:
            # The gradient of a layer's input is there once the layer's backward pass is done.
            inputs[0].register_hook(lambda gradient: give_way())  # type: ignore[no-untyped-call]

    with ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, GradientCheckpointingLayer):
                hooks.callback(module.register_forward_pre_hook(before).remove)
        yield


def _multiply_in_the_precision_of_the_base(model: PeftModel) -> None:
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.cast_input_dtype_enabled = False
            for factors in (layer.lora_A, layer.lora_B):
                for name, factor in factors.items():
                    factors[name] = _rounding(factor)


def _rounding(linear: nn.Linear) -> RoundingLinear:
    with torch.device("meta"):
        made = RoundingLinear(linear.in_features, linear.out_features, bias=False)
    made.weight = linear.weight
    return made
