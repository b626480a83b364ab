"""Every architecture that is let in: cache, adapters and packed rows give what the plain model gives.

Each is a tiny random model beside transformers' own plain forward of the same weights.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Ministral3Config,
    Olmo2Config,
    Olmo3Config,
    Phi3Config,
    PretrainedConfig,
)

from bot.serving.engine.lora import Adapter
from bot.serving.model.shapes import MODEL_TYPES
from tests.bot.serving.builders import memory_adapter
from tests.bot.serving.engine.test_lora import SHAPE
from tests.bot.serving.native.test_native import ALL_CONFIGS, Reference
from trainer.data.encoding import Example
from trainer.training import forward

CONFIGS: dict[str, PretrainedConfig] = {
    **{config.model_type: config for config in ALL_CONFIGS.values()},
    "olmo2": Olmo2Config(**SHAPE),
    # Three layers slide, the fourth sees all.
    "olmo3": Olmo3Config(**{**SHAPE, "num_hidden_layers": 4}, sliding_window=8),
    # Beyond eight tokens its queries grow with their position.
    "ministral3": Ministral3Config(
        **SHAPE,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10_000.0,
            "factor": 16.0,
            "original_max_position_embeddings": 8,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.1,
        },
    ),
    "phi3": Phi3Config(**SHAPE, bos_token_id=None, eos_token_id=None),
}
PROMPTS = ([5, 9, 44, 17, 80, 3, 8, 61, 33, 12, 70, 7], [23, 90, 4, 15, 66, 28, 31])
NEXT = (41, 52)


def tiny(name: str) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)  # norms and biases that are not one and zero
    return model


def merged(model: Any, adapter: Adapter) -> Any:
    """The plain model with an adapter's product added to its weights."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, (down, up) in adapter.weights.items():
            model.get_submodule(name).weight += (down @ up).t()
    return model


def test_every_architecture_that_is_let_in_is_tested() -> None:
    assert CONFIGS.keys() == MODEL_TYPES


@pytest.mark.parametrize("name", CONFIGS)
def test_batch_cache_and_adapters_give_the_logits_of_the_plain_model(name: str) -> None:
    plain = tiny(name)
    engine = Reference(copy.deepcopy(plain))
    adapter = memory_adapter("champion", engine.widths, seed=1)
    adapters = [None, adapter]
    expected = [
        model(input_ids=torch.tensor([[*prompt, token]])).logits[0, -1]
        for model, prompt, token in zip((plain, merged(plain, adapter)), PROMPTS, NEXT, strict=True)
    ]
    with torch.inference_mode():
        for row, (prompt, each) in enumerate(zip(PROMPTS, adapters, strict=True)):
            # In two pieces, as long prompts are read.
            engine.run([row], [prompt[:4]], [0], [each])
            engine.run([row], [prompt[4:]], [4], [each])
        lengths = [len(prompt) for prompt in PROMPTS]
        seen = engine.run([0, 1], [[token] for token in NEXT], lengths, adapters)
    for one, other in zip(seen, expected, strict=True):
        scale = float(other.detach().abs().max())
        assert torch.allclose(one, other, atol=1e-4 * max(scale, 1.0)), (one - other).abs().max()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_row_that_is_packed_with_others_scores_as_it_does_alone(name: str) -> None:
    model = tiny(name)
    examples = [Example(tuple(prompt), start=3) for prompt in (*PROMPTS, (11, 12, 13, 14, 15))]
    with torch.inference_mode():
        packed = forward.score(model, examples).logps.split([len(each.ids) - 3 for each in examples])
        for example, found in zip(examples, packed, strict=True):
            logits = model(input_ids=torch.tensor([example.ids])).logits[0, 2:-1]
            targets = torch.tensor(example.ids[3:])
            alone = logits.float().log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
            assert torch.allclose(found, alone, atol=1e-3), (found - alone).abs().max()
