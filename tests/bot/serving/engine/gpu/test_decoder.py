"""The decode step of few operator calls against the model's own modules, and how many calls it makes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, Qwen3Config

from bot.serving.engine.gpu.decoder import ARCHITECTURES, GpuDecoder
from bot.serving.engine.kv_cache import RowCache
from bot.serving.engine.lora import Adapter, RowPlan, wrap_linears
from bot.serving.engine.native_decoder import UnsupportedModelError
from tests.bot.serving.builders import memory_adapter
from tests.bot.serving.engine.test_lora import SHAPE
from tests.bot.serving.native.test_native import ALL_CONFIGS, Reference
from tests.fake_device import fake_device, shaped_base

NAMES = [name for name, config in ALL_CONFIGS.items() if config.model_type in ARCHITECTURES]
# Of a base of 36 layers, whatever the number of adapters.
MOST_CALLS = 2500


def test_every_architecture_that_it_takes_is_tested() -> None:
    assert {ALL_CONFIGS[name].model_type for name in NAMES} == ARCHITECTURES


def tiny(name: str) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(ALL_CONFIGS[name]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)  # norms and biases that are not one and zero
    return model


def partial(adapter: Adapter, kinds: tuple[str, ...]) -> Adapter:
    """An adapter that changes some of the layers only."""
    weights = {name: pair for name, pair in adapter.weights.items() if name.endswith(kinds)}
    return Adapter(adapter.name, weights, adapter.rank)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [[2, 3, 4], [0, 3, 1, 5, 2], [4]], ids=["adjoining", "anywhere", "one"])
def test_a_step_gives_the_logits_of_the_models_modules(name: str, rows: list[int]) -> None:
    reference = Reference(tiny(name))
    decoder = GpuDecoder(reference.model, reference.cache, reference.widths)
    champion = memory_adapter("champion", reference.widths, seed=1)
    # One name for two adapters: it may come to mean other weights while the first ones are in use.
    candidate = partial(memory_adapter("champion", reference.widths, seed=2), ("v_proj", "down_proj"))
    lengths = [12, 20, 1, 33, 7][: len(rows)]  # a window of eight slides
    batches: list[list[Adapter | None]] = [
        [None] * 5,
        [champion] * 5,
        [None, champion, candidate, champion, None],
        [candidate] * 5,
    ]
    for batch in batches:
        adapters = batch[: len(rows)]
        with torch.inference_mode():
            for row, length, adapter in zip(rows, lengths, adapters, strict=True):
                reference.run([row], [[(7 * row + i) % 90 + 3 for i in range(length)]], [0], [adapter])
            seen = decoder.step([5, 6, 7, 8, 9][: len(rows)], lengths, rows, adapters).clone()
            tokens = [[token] for token in (5, 6, 7, 8, 9)[: len(rows)]]
            expected = reference.run(rows, tokens, lengths, adapters)
        assert torch.allclose(seen, expected, atol=2e-5), (seen - expected).abs().max()


def test_it_goes_on_from_what_it_has_written_itself() -> None:
    reference = Reference(tiny("qwen3"))
    decoder = GpuDecoder(reference.model, reference.cache, reference.widths)
    prompts = [[5, 9, 44, 17, 80], [23, 90, 4]]
    following = [[7, 8, 9], [10, 11, 12]]
    with torch.inference_mode():
        for row, prompt in zip((1, 4), prompts, strict=True):
            reference.run([row], [prompt], [0], [None])
        for step in range(3):
            lengths = [len(prompt) + step for prompt in prompts]
            seen = decoder.step([each[step] for each in following], lengths, [1, 4], [None, None])
        for found, prompt, more in zip(seen, prompts, following, strict=True):
            reference.plan.groups = []
            plain = reference.model(input_ids=torch.tensor([[*prompt, *more]])).logits[0, -1]
            assert torch.allclose(found, plain, atol=2e-5)


def test_rows_between_the_decoding_ones_keep_what_they_hold() -> None:
    reference = Reference(tiny("llama"))
    decoder = GpuDecoder(reference.model, reference.cache, reference.widths)
    with torch.inference_mode():
        for row in range(3):
            reference.run([row], [[row + 3, row + 4, row + 5]], [0], [None])
        before = [each[:, 1].clone() for each in (reference.cache.all_keys, reference.cache.all_values)]
        decoder.step([9, 9], [3, 3], [0, 2], [None, None])
    after = [each[:, 1] for each in (reference.cache.all_keys, reference.cache.all_values)]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_a_model_that_it_does_not_take_is_named() -> None:
    model = AutoModelForCausalLM.from_config(ALL_CONFIGS["gemma"]).eval()
    reference = Reference(model)
    with pytest.raises(UnsupportedModelError, match="gemma"):
        GpuDecoder(model, reference.cache, reference.widths)


class Calls(TorchDispatchMode):
    """Counts calls of operators, as a step makes them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.by_name: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.by_name[str(func)] += 1
        return func(*args, **(kwargs or {}))

    @property
    def count(self) -> int:
        """Return all calls but the questions on which device a tensor lies, which fake tensors answer."""
        return sum(count for name, count in self.by_name.items() if "prim.device" not in name)


def fake_adapter(name: str, widths: dict[str, tuple[int, int]]) -> Adapter:
    weights = {
        module: tuple(
            torch.empty(shape, dtype=torch.bfloat16, device="cuda:0") for shape in ((wide, 8), (8, out))
        )
        for module, (wide, out) in widths.items()
    }
    return Adapter(name, weights, 8)  # type: ignore[arg-type]


def test_a_step_of_36_layers_takes_few_calls_with_any_number_of_adapters() -> None:
    two, four, six = (calls_of_a_step(layers) for layers in (2, 4, 6))
    # Each layer takes the same calls: few, whose fake tensors take little time, tell of many.
    assert all(four[each] - two[each] == six[each] - four[each] > 0 for each in two)
    of_36 = {each: six[each] + (36 - 6) * (six[each] - four[each]) // 2 for each in six}
    assert max(of_36.values()) <= MOST_CALLS, of_36
    assert of_36[8, 7] == of_36[2, 7]


def calls_of_a_step(layers: int) -> dict[tuple[int, int], int]:
    """The calls by the number of adapters and the last row's place."""
    model = shaped_base(Qwen3Config(**{**SHAPE, "num_hidden_layers": layers})).eval()
    calls = {}
    with fake_device(model, "cuda:0"), torch.inference_mode():
        cache = RowCache(model.config, 12, 64, torch.bfloat16, torch.device("cuda:0"))
        widths = wrap_linears(model, RowPlan())
        decoder = GpuDecoder(model, cache, widths)
        adapters = [fake_adapter(str(number), widths) for number in range(8)]
        for count in (0, 1, 2, 8):
            used = [adapters[row % count] if count else None for row in range(8)]
            for rows in (range(8), (0, 1, 2, 3, 5, 7, 9, 11)):
                decoder.step([9] * 8, [40] * 8, list(rows), used)
                with Calls() as counted:
                    logits = decoder.step([9] * 8, [40] * 8, list(rows), used)
                calls[count, rows[-1]] = counted.count
        assert (logits.shape, logits.device) == ((8, 96), torch.device("cuda:0"))
    return calls


def test_an_unloaded_adapter_leaves_the_stack_with_its_weights() -> None:
    reference = Reference(tiny("llama"))
    decoder = GpuDecoder(reference.model, reference.cache, reference.widths)
    adapter = memory_adapter("champion", reference.widths, seed=1)
    with torch.inference_mode():
        decoder.step([5], [0], [0], [adapter])
    assert decoder._stack is not None
    del adapter
    assert decoder._stack is None
