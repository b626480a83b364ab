"""Serving and training on a GPU that is not there: every operation finds its tensors on one device.

Fake tensors lie on ``cuda:0`` and hold no numbers, so that walks end where a number is asked for. What this
cannot show is that the numbers are right, and how long they take.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoTokenizer, LlamaConfig, PretrainedConfig, Qwen3Config

from bot.serving.engine.engine import Engine, EngineOptions
from bot.serving.engine.events import JobOptions, SamplingOptions
from bot.serving.engine.gpu.decoder import GpuDecoder
from bot.serving.engine.gpu.sampling import choose
from bot.serving.engine.lora import Adapter
from bot.serving.engine.request import Job
from bot.serving.engine.sampling import Sampler
from bot.serving.model.loading import BaseInfo, LoadedBase
from storage.config_sections import TrainerConfig
from tests.fake_device import fake_device, shaped_base
from tests.tiny_model import build_tiny_tokenizer
from trainer.data.encoding import Example, PreferenceExample
from trainer.training import forward
from trainer.training.adapter import add_adapter, recompute_activations
from trainer.training.terms import BaseLogits, Dpo, Kto, Replay, Supervised, Term, backward_of

DEVICE = "cuda:0"
WIDTHS = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_hidden_layers": 2,
    "max_position_embeddings": 512,
    "eos_token_id": 0,
}
CONFIGS = [LlamaConfig(**WIDTHS), Qwen3Config(**WIDTHS)]


@pytest.fixture(params=CONFIGS, ids=lambda config: config.model_type)
def config(request: pytest.FixtureRequest) -> PretrainedConfig:
    found: PretrainedConfig = request.param
    return found


@pytest.fixture
def engine(config: PretrainedConfig, tmp_path: Path) -> Iterator[Engine]:
    """Our engine on a base as CUDA holds it; its thread is not started."""
    build_tiny_tokenizer().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    info = BaseInfo("shaped", "", "", "", config.model_type, 512, 1, 1, {})
    model = shaped_base(config).eval()
    with fake_device(model, DEVICE), torch.no_grad():
        base = LoadedBase(model, tokenizer, info, tmp_path, DEVICE, "packed")
        # A decoder is compared with the modules before it serves, for which fake tensors have no numbers.
        engine = Engine(base, EngineOptions(context_tokens=256, slots=4, for_gpu=False))
        engine.runner.decoder = GpuDecoder(base.model, engine.runner.cache, engine.widths)
        yield engine


def adapter(engine: Engine, name: str) -> Adapter:
    weights = {
        module: (
            torch.empty(wide, 8, dtype=torch.bfloat16, device=DEVICE),
            torch.empty(8, out, dtype=torch.bfloat16, device=DEVICE),
        )
        for module, (wide, out) in engine.widths.items()
    }
    return Adapter(name, weights, 8)


def test_a_prompt_is_read_and_decoded_beside_others_with_other_adapters(engine: Engine) -> None:
    one, two = adapter(engine, "one"), adapter(engine, "two")
    read = engine.runner.read([5, 6, 7, 8], 0, 1, one, 1)
    assert (read.shape, read.device, read.dtype) == ((1, 512), torch.device(DEVICE), torch.bfloat16)
    decoded = engine.runner.decode([9, 9, 9], [4, 4, 4], [0, 1, 3], [one, None, two])
    assert (decoded.shape, decoded.device) == ((3, 512), torch.device(DEVICE))
    engine.runner.decoder = None
    by_modules = engine.runner.decode([9, 9, 9], [4, 4, 4], [0, 1, 3], [one, None, two])
    assert (by_modules.shape, by_modules.device) == ((3, 512), torch.device(DEVICE))


def test_tokens_are_chosen_on_the_gpu_up_to_their_one_copy(engine: Engine) -> None:
    logits = engine.runner.decode([9] * 3, [4] * 3, [0, 1, 3], [None] * 3)
    options = [
        SamplingOptions(top_p=0.9, repetition_penalty=1.2),
        SamplingOptions(temperature=0.0),
        SamplingOptions(top_k=5, min_p=0.1),
    ]
    seen = [[3, 4], None, None]
    with Copies() as copies, pytest.raises(DataDependentOutputException):
        choose(logits, [Drawn(each) for each in options], seen)
    assert copies.to_host == 1


class Drawn(Sampler):
    """Draws the same number always: fake tensors have none to draw."""

    def draw(self) -> float:
        return 0.5


class Copies(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts how often numbers are asked for that lie on the GPU: each time the host waits for it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.to_host = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        asked = "_local_scalar_dense" in str(func) or "_to_copy" in str(func)
        result = None if "_local_scalar_dense" in str(func) else func(*args, **(kwargs or {}))
        on_gpu = isinstance(args[0], torch.Tensor) and args[0].device.type == "cuda" if args else False
        if asked and on_gpu and (result is None or result.device.type == "cpu"):
            self.to_host += 1
        return func(*args, **(kwargs or {})) if result is None else result


def test_a_prompt_is_scored_up_to_its_first_number(engine: Engine) -> None:
    logits = engine.runner.read([5, 6, 7, 8], 0, 0, None, 4)
    job = Job([5, 6, 7, 8], JobOptions(score=True), sink=lambda _: None, tokenizer=build_tiny_tokenizer())
    with pytest.raises(DataDependentOutputException):
        job.take_scores(logits, 4)


def test_tensors_on_two_devices_would_be_noticed(engine: Engine) -> None:
    with pytest.raises(RuntimeError, match=r"(?i)device"):
        engine.runner._model.get_input_embeddings().weight + torch.ones(512, 128)


def steps() -> list[tuple[Term, tuple[int, ...]]]:
    rows = [Example(tuple(range(3, 20 + n)), 9, liked=n % 2 == 0) for n in range(4)]
    pairs = [PreferenceExample(rows[0], rows[1]), PreferenceExample(rows[2], rows[3])]
    return [
        (Supervised(rows, 60), (0, 1, 2, 3)),
        (Replay(BaseLogits(rows), 0.3, 60), (0, 1)),
        (Kto(rows, 0.1, 60), (0, 1, 2, 3)),
        (Dpo(pairs, 0.1, 0.3, 60), (0, 1)),
    ]


@pytest.mark.parametrize("recompute", [False, True])
def test_a_training_step_of_every_term_has_all_on_the_gpu(
    config: PretrainedConfig, recompute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = shaped_base(config)
    with torch.device("meta"):
        model: nn.Module = add_adapter(base, TrainerConfig(rank=4))
    recompute_activations(base, recompute)
    losses: list[torch.Tensor] = []

    def differentiate(model: nn.Module, loss: torch.Tensor) -> float:
        losses.append(loss)
        # A build of torch without CUDA has no autograd engine for its devices: there the walk ends here.
        if torch.backends.cuda.is_built():
            loss.backward()  # type: ignore[no-untyped-call]
        return 0.0

    monkeypatch.setattr("trainer.training.forward.accumulate", differentiate)
    with fake_device(model, DEVICE):
        for term, chosen in steps():
            with torch.no_grad():
                term.prepare(model.eval(), [chosen], None)
            backward_of(model.train(), [(term, chosen)], 0)
        assert {loss.device for loss in losses} == {torch.device(DEVICE)}
        assert all(loss.requires_grad for loss in losses)
        with torch.no_grad():
            assert forward.totals(model, [Example((3, 4, 5), 1)], 60).device == torch.device(DEVICE)
