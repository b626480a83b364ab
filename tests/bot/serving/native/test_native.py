"""The kernels against the model's own modules, over every architecture that they take."""

from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from transformers import AutoModelForCausalLM, GraniteConfig, LlamaConfig, Phi3Config, SmolLM3Config

from bot.serving.engine.engine import Engine, EngineOptions
from bot.serving.engine.kv_cache import CausalMasks, RowCache
from bot.serving.engine.lora import Adapter, RowPlan, wrap_linears
from bot.serving.engine.native_decoder import ARCHITECTURES, Decoder, UnsupportedModelError, fastest_threads
from bot.serving.model.loading import LoadedBase, load_base
from bot.serving.model.quantize import prepare_base
from bot.serving.native import library
from bot.serving.native.packed import PackedLinear
from tests.bot.serving.builders import Caller, memory_adapter
from tests.bot.serving.engine.test_engine import GREEDY, PROMPT
from tests.bot.serving.engine.test_lora import CONFIGS, SHAPE
from tests.tiny_model import build_tiny_tokenizer

ALL_CONFIGS = {
    **CONFIGS,
    "granite": GraniteConfig(
        **SHAPE,
        embedding_multiplier=3.0,
        residual_multiplier=0.3,
        attention_multiplier=0.2,
        logits_scaling=2.0,
    ),
    "smollm3": SmolLM3Config(**SHAPE),
    "llama3 rope": LlamaConfig(
        **SHAPE,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ),
}
CPU = torch.device("cpu")


def test_every_architecture_of_the_kernels_is_tested() -> None:
    assert {config.model_type for config in ALL_CONFIGS.values()} == ARCHITECTURES


class Reference:
    """A model with its adapters, run through its own modules."""

    def __init__(self, model: Any, rows: int = 6, tokens: int = 60) -> None:
        self.model = model
        self.plan = RowPlan()
        self.widths = wrap_linears(model, self.plan)
        self.cache = RowCache(model.config, rows, tokens, torch.float32, CPU)
        self._masks = CausalMasks(model.config)

    def run(
        self, rows: list[int], tokens: list[list[int]], first: list[int], adapters: list[Adapter | None]
    ) -> torch.Tensor:
        positions = torch.tensor(first)[:, None] + torch.arange(len(tokens[0]))
        span = int(positions.max()) + 1
        self.cache.select(rows, positions, span)
        self.plan.assign(adapters, CPU)
        logits: torch.Tensor = self.model(
            input_ids=torch.tensor(tokens),
            attention_mask=self._masks.build(positions, span, torch.float32),
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        ).logits
        return logits[:, -1]


@pytest.mark.parametrize("name", ALL_CONFIGS)
def test_a_step_gives_the_logits_of_the_models_modules(name: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(ALL_CONFIGS[name]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)  # norms and biases that are not one and zero
    reference = Reference(model)
    decoder = Decoder(model, reference.cache)
    champion = memory_adapter("champion", reference.widths, seed=1)
    candidate = memory_adapter("candidate", reference.widths, seed=2)
    adapters = [None, champion, candidate, champion, None]
    rows, lengths = [0, 3, 1, 5, 2], [12, 20, 1, 33, 7]  # a window of eight slides; rows lie anywhere
    with torch.inference_mode():
        for row, length, adapter in zip(rows, lengths, adapters, strict=True):
            reference.run([row], [[(7 * row + i) % 90 + 3 for i in range(length)]], [0], [adapter])
        seen = decoder.step([5, 6, 7, 8, 9], lengths, rows, adapters).clone()
        expected = reference.run(rows, [[5], [6], [7], [8], [9]], lengths, adapters)
        again = decoder.step([5, 6, 7, 8, 9], lengths, rows, adapters)
    assert torch.equal(seen, again)
    assert torch.allclose(seen, expected, atol=2e-5), (seen - expected).abs().max()


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 8, 13])
def test_a_row_gives_the_same_logits_whatever_stands_beside_it(base: LoadedBase, batch: int) -> None:
    reference = Reference(base.model, rows=batch)
    decoder = Decoder(base.model, reference.cache)
    with torch.inference_mode():
        for row in range(batch):
            reference.run([row], [[row + 3, row + 4, row + 5]], [0], [None])
        rows = list(range(batch))
        together = decoder.step([9 + row for row in rows], [3] * batch, rows, [None] * batch).clone()
        alone = [decoder.step([9 + row], [3], [row], [None])[0].clone() for row in rows]
    assert torch.allclose(together, torch.stack(alone), atol=1e-4)


def test_a_model_that_the_kernels_do_not_take_is_named_and_still_served() -> None:
    fused = Phi3Config(**SHAPE)  # one module for q, k and v
    model = AutoModelForCausalLM.from_config(fused).eval()
    with pytest.raises(UnsupportedModelError, match="phi3"):
        Decoder(model, Reference(model).cache)
    dynamic = LlamaConfig(
        **SHAPE, rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    )
    model = AutoModelForCausalLM.from_config(dynamic).eval()
    with pytest.raises(UnsupportedModelError, match="dynamic rotary"):
        Decoder(model, Reference(model).cache)


def test_packed_layers_hold_the_bases_values(tiny_folder: Path) -> None:
    mapped = load_base(tiny_folder, "cpu", execution="mapped").model
    packed = load_base(tiny_folder, "cpu", execution="packed").model
    compared = 0
    for name, module in packed.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            exact = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state).float()
            layer = mapped.get_submodule(name)
            assert isinstance(layer, PackedLinear)
            ours = torch.cat([weights.clone() for _, weights in layer.slices()])
            # bitsandbytes rounds each product of code and scale to bfloat16.
            assert torch.allclose(ours, exact, rtol=2**-8, atol=1e-6)
            compared += 1
    assert compared == 14


@pytest.mark.parametrize("rows", [1, 3, 4, 9, 47, 48, 100])
def test_a_packed_product_is_the_product_with_its_values(base: LoadedBase, rows: int) -> None:
    layer = base.model.model.layers[0].mlp.down_proj
    weights = torch.cat([part.clone() for _, part in layer.slices()])
    x = torch.randn(rows, layer.in_features, generator=torch.Generator().manual_seed(rows))
    assert torch.allclose(layer(x), x @ weights.t(), atol=1e-5)


@pytest.mark.parametrize("rows", [3, 60])
def test_the_backward_pass_of_a_packed_layer_is_the_transposed_product(base: LoadedBase, rows: int) -> None:
    layer = base.model.model.layers[0].mlp.gate_proj
    weights = torch.cat([part.clone() for _, part in layer.slices()])
    x = torch.randn(2, rows, layer.in_features, requires_grad=True)
    gradient = torch.randn(2, rows, layer.out_features)
    layer(x).backward(gradient)
    assert x.grad is not None
    assert torch.allclose(x.grad, gradient @ weights, atol=1e-5)


def test_the_weights_stay_in_the_file(base: LoadedBase) -> None:
    """Mapped pages are shared between processes; a copy would not be."""
    layer = base.model.model.layers[0].mlp.gate_proj
    address = layer.weight.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(part, 16) for part in line.split()[0].split("-"))
        if first <= address < last:
            assert line.endswith("model.safetensors")
            return
    pytest.fail("the weights lie nowhere")


def test_without_a_compiler_the_weights_are_unfolded_and_the_server_says_so(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library.shutil, "which", lambda _: None)
    library.load_library.cache_clear()
    try:
        assert library.load_library() is None
        base = load_base(tiny_folder, "cpu")
        assert base.execution == "dense"
        engine = Engine(base, EngineOptions(context_tokens=128, slots=2))
        engine.start()
        assert Caller(engine, base).run(PROMPT, max_tokens=5, sampling=GREEDY).completion_tokens > 0
        engine.stop()
    finally:
        library.load_library.cache_clear()


def test_kernels_that_disagree_with_the_model_do_not_serve(
    base: LoadedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda *args: right(*args) + 0.5)
    engine = Engine(base, EngineOptions(context_tokens=128, slots=2))
    assert engine.runner.decoder is None


def test_the_number_of_threads_is_measured(base: LoadedBase, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(base.model, Reference(base.model).cache)
    # Two threads are twice as fast as one, four no faster than two.
    seconds = {1: 1.0, 2: 0.5, 4: 0.49}
    monkeypatch.setattr(
        "bot.serving.engine.native_decoder._step_seconds", lambda _, threads: seconds[threads]
    )
    assert fastest_threads(decoder, 4) == 2
    monkeypatch.undo()
    assert fastest_threads(decoder, 1) == 1


FAMILIES: dict[str, Any] = {
    **{name: ALL_CONFIGS[name] for name in ("qwen2", "qwen3", "gemma2", "gemma3", "granite", "smollm3")},
    "phi3": Phi3Config(**SHAPE, bos_token_id=None, eos_token_id=None),
    "untied": LlamaConfig(**SHAPE, tie_word_embeddings=False, attention_bias=True),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_the_same_logits_mapped_and_unfolded(name: str, tmp_path: Path) -> None:
    config = type(FAMILIES[name])(**{**FAMILIES[name].to_dict(), "vocab_size": 416})
    torch.manual_seed(1)
    source = tmp_path / "source"
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(source)
    build_tiny_tokenizer().save_pretrained(source)
    folder = prepare_base(str(source), "", device="cpu", models_dir=tmp_path / "models")
    ids = torch.tensor([list(range(5, 45))])
    with torch.inference_mode():
        mapped = load_base(folder, "cpu", execution="mapped").model(input_ids=ids).logits
        dense = load_base(folder, "cpu", execution="dense").model(input_ids=ids).logits
    # They differ by the bfloat16 rounding of each unfolded weight.
    assert torch.allclose(mapped, dense, atol=2e-2 * float(dense.abs().max()))
    assert not torch.equal(mapped, dense)
