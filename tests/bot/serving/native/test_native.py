"""The kernels against the model's own modules, over every architecture that they take."""

import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from transformers import AutoModelForCausalLM, GraniteConfig, LlamaConfig, Phi3Config, SmolLM3Config

from bot.serving.engine import model_runner
from bot.serving.engine.engine import Engine, EngineOptions
from bot.serving.engine.kv_cache import CACHE_SHARE, CausalMasks, RowCache, row_bytes
from bot.serving.engine.lora import Adapter, RowPlan, wrap_linears
from bot.serving.engine.model_runner import ModelRunner
from bot.serving.engine.native_decoder import ARCHITECTURES, Decoder, UnsupportedModelError
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


@pytest.fixture
def base(tiny_folder: Path) -> LoadedBase:
    """A base that multiplies in float32 alone."""
    return load_base(tiny_folder, "cpu")


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
        again = decoder.step([5, 6, 7, 8, 9], lengths, rows, adapters).clone()
        prompt = [(5 * i) % 90 + 3 for i in range(24)]
        decoder.read(prompt[:15], 0, 4, champion, 1)
        in_pieces = decoder.read(prompt[15:], 15, 4, champion, 2)[-1].clone()
        together = (
            [*prompt[18:], *[5, 6, 7, 8, 9]],
            [*range(18, 24), *lengths],
            [*[4] * 6, *rows],
            [*[champion] * 6, *adapters],
        )
        beside_a_piece = decoder.run(*together, keep=6).clone()
        whole = reference.run([4], [prompt], [0], [champion])[0]
    assert torch.equal(seen, again)
    assert torch.allclose(beside_a_piece[1:], expected, atol=2e-5)
    assert torch.allclose(beside_a_piece[0], whole, atol=2e-5)
    assert torch.allclose(seen, expected, atol=2e-5), (seen - expected).abs().max()
    assert torch.allclose(in_pieces, whole, atol=2e-5), (in_pieces - whole).abs().max()


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


@pytest.fixture(scope="module", params=["native", "x86-64-v3"])
def kernels(request: pytest.FixtureRequest) -> Iterator[library.Library]:
    """The kernels for this processor, and for one with AVX2 alone."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param != "native":
            if platform.machine() != "x86_64":
                pytest.skip("another processor")
            patch.setattr(library, "FLAGS", ((*library.OPTIMISE, f"-march={request.param}", "-pthread"),))
        library.load_library.cache_clear()
        loaded = library.load_library()
        assert loaded is not None
        if request.param != "native":
            assert loaded.integers is library.Integers.AVX2
        yield loaded
    library.load_library.cache_clear()


def random_layer(width_in: int, width_out: int, *, fast: bool, seed: int = 0) -> PackedLinear:
    """A layer of random 4-bit codes; the same seed gives the same weights."""
    dice = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (width_in * width_out // 2, 1), dtype=torch.uint8, generator=dice)
    scales = torch.rand(width_in * width_out // 64, generator=dice) + 0.5
    return PackedLinear(codes, scales, (width_out, width_in), torch.ones(width_out), fast=fast)


# 18 outputs fill no whole register, 1,600 inputs no whole chunk, 19 rows no whole tile.
@pytest.mark.parametrize(("width_in", "width_out"), [(64, 16), (192, 18), (1600, 48)])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8, 19, 48])
def test_integer_products_are_the_float_products_to_three_digits(
    kernels: library.Library, width_in: int, width_out: int, rows: int
) -> None:
    x = torch.randn(rows, width_in, generator=torch.Generator().manual_seed(rows))
    x[:, 5] *= 1000.0  # an outlier rounds its own block alone
    exact = random_layer(width_in, width_out, fast=False)(x)
    fast = random_layer(width_in, width_out, fast=True)(x)
    assert torch.allclose(fast, exact, atol=5e-4 * float(exact.abs().max()))
    in_integers = rows <= 3 or (kernels.integers is library.Integers.AVX512_VNNI and width_out % 16 == 0)
    if kernels.integers and in_integers:
        assert not torch.equal(fast, exact)


@pytest.mark.parametrize("rows", [1, 8])
def test_the_largest_sums_fit_their_integers(kernels: library.Library, rows: int) -> None:
    layer = random_layer(128, 16, fast=True)
    layer.weight.data.fill_(255)  # the code of 1.0
    layer.scales.fill_(1.0)  # type: ignore[operator]
    seen = layer(torch.full((rows, 128), -3.0))
    assert torch.allclose(seen, torch.full_like(seen, 1.0 - 3.0 * 128), rtol=1e-4)
    assert torch.equal(layer(torch.zeros(rows, 128)), torch.ones(rows, 16))


def test_a_base_says_what_it_multiplies_in(kernels: library.Library, tiny_folder: Path) -> None:
    assert load_base(tiny_folder, "cpu").arithmetic == "float32"
    named = {
        library.Integers.NONE: "float32",
        library.Integers.AVX2: "16-bit integers (AVX2)",
        library.Integers.AVX512_VNNI: "16-bit integers (AVX512-VNNI)",
    }
    assert load_base(tiny_folder, "cpu", precision="fast").arithmetic == named[kernels.integers]


def test_a_fast_step_says_what_the_exact_model_says(kernels: library.Library, tiny_folder: Path) -> None:
    """The divergence per token is a millionth of what the 4-bit weights themselves cost."""
    exact = Reference(load_base(tiny_folder, "cpu").model)
    fast = Reference(load_base(tiny_folder, "cpu", precision="fast").model)
    decoder = Decoder(fast.model, fast.cache)
    rows = list(range(6))
    with torch.inference_mode():
        for reference in (exact, fast):
            for row in rows:
                reference.run([row], [[7 * row + i for i in range(3, 23)]], [0], [None])
        expected = torch.log_softmax(exact.run(rows, [[9 + row] for row in rows], [20] * 6, [None] * 6), -1)
        for count in (1, 3, 6):
            step = decoder.step([9 + row for row in rows[:count]], [20] * count, rows[:count], [None] * count)
            seen = torch.log_softmax(step, -1)
            divergence = (expected[:count].exp() * (expected[:count] - seen)).sum(-1)
            assert float(divergence.max()) < 1e-5


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


@pytest.mark.parametrize("reason", ["large keys", "other modules"])
def test_a_cache_that_has_to_be_of_32_bits_after_all_has_only_the_rows_that_fit(
    reason: str, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load_base(tiny_folder, "cpu", precision="fast")
    if base.cache_dtype != torch.float16:
        pytest.skip("no integer products")
    if reason == "large keys":
        base.model.model.layers[1].input_layernorm.weight.data *= 1e5
    else:
        right = Decoder.step
        monkeypatch.setattr(Decoder, "step", lambda *args: right(*args) + 0.5)
    room = 2.5 * row_bytes(base.model.config, 128, torch.float32) / CACHE_SHARE
    monkeypatch.setattr(model_runner, "available_bytes", lambda _: room)
    engine = Engine(base, EngineOptions(context_tokens=128, slots=4, threads=1))
    cache = engine.runner.cache
    assert (cache.dtype, len(cache.keys[0])) == (torch.float32, 2)
    assert engine._rows.free() == 2


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


def cache_in_16_bits(model: Any) -> RowCache:
    return RowCache(model.config, 6, 60, torch.float16, CPU, torch.float32)


@pytest.mark.parametrize("name", ALL_CONFIGS)
def test_a_step_over_keys_in_16_bits_gives_the_logits_of_the_models_modules(name: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(ALL_CONFIGS[name]).eval()
    reference = Reference(model)
    halved = cache_in_16_bits(model)
    decoder = Decoder(model, halved)
    rows, lengths = [0, 3, 1], [33, 20, 5]
    logits = []
    with torch.inference_mode():
        for cache in (reference.cache, halved):
            reference.cache = cache
            for row, length in zip(rows, lengths, strict=True):
                reference.run([row], [[(7 * row + i) % 90 + 3 for i in range(length)]], [0], [None])
            logits.append(reference.run(rows, [[5], [6], [7]], lengths, [None] * 3))
        seen = decoder.step([5, 6, 7], lengths, rows, [None] * 3)
    exact, expected = logits
    largest = float(exact.abs().max())
    # The two may round a key differently where their last digits of float32 differ.
    assert torch.allclose(seen, expected, atol=2e-4 * largest), (seen - expected).abs().max() / largest
    assert torch.allclose(seen, exact, atol=2e-3 * largest), (seen - exact).abs().max() / largest
    assert not torch.equal(expected, exact)


@pytest.mark.parametrize("size", [1e-9, 1e-7, 1e-5, 1e-2, 1.0, 1e3, 1e5])
def test_the_kernels_round_keys_to_the_nearest_float16(base: LoadedBase, size: float) -> None:
    """Also tiny ones, which have few digits left, and ones beyond the largest, which they become."""
    base.model.model.layers[0].input_layernorm.weight.data *= size
    whole = RowCache(base.model.config, 6, 60, torch.float32, CPU)
    halved = cache_in_16_bits(base.model)
    for cache in (whole, halved):
        Decoder(base.model, cache).read(list(range(3, 40)), 0, 0, None, 1)
    largest = torch.finfo(torch.float16).max
    assert torch.equal(halved.keys[0], whole.keys[0].clamp(-largest, largest).to(torch.float16))
    assert whole.keys[0].any()
    assert bool((halved.keys[0].abs() == largest).any()) == (size == 1e5)


def test_keys_are_kept_in_16_bits_where_products_are_fast_and_keys_fit(tiny_folder: Path) -> None:
    exact = load_base(tiny_folder, "cpu")
    assert ModelRunner(exact, 1, 32, 1).cache.dtype == torch.float32
    fast = load_base(tiny_folder, "cpu", precision="fast")
    has_integers = fast.arithmetic != "float32"
    assert ModelRunner(fast, 1, 32, 1).cache.dtype == (torch.float16 if has_integers else torch.float32)
    again = load_base(tiny_folder, "cpu", precision="fast")
    again.model.model.layers[1].input_layernorm.weight.data *= 1e5
    assert ModelRunner(again, 1, 32, 1).cache.dtype == torch.float32
