"""The hazards of serving and training on one 4-bit base, reproduced, or the mechanism that keeps them away.

Hazards 1 and 2 show only on CPUs with AVX512-BF16, where bitsandbytes repacks weights; elsewhere the tests
hold what the protection rests on: no state_dict on the serving path, double quantization, packing off in
training.
Hazard 3 (a global adapter switch) is in test_engine.py: a swap in mid-reply, mixed adapters in one batch.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from bot.serving.engine.engine import Engine, EngineOptions
from bot.serving.engine.events import SamplingOptions
from bot.serving.engine.lora import read_adapter
from bot.serving.model.loading import LoadedBase, load_base
from tests.bot.serving.builders import Caller, lora_tensors, write_adapter

GREEDY = SamplingOptions(temperature=0.0)
IDS = torch.arange(40, 72)[None]
PACKS = bool(bnb.functional.has_avx512bf16())


def loss(model: Any) -> float:
    with torch.inference_mode():
        return float(model(input_ids=IDS, labels=IDS).loss)


def layers(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, bnb.nn.Linear4bit)]


@pytest.fixture
def packed(tiny_folder: Path) -> LoadedBase:
    return load_base(tiny_folder, "cpu", "serve", execution="packed")


class Calls(list[str]):
    """Asks every module to report when its state is read, through torch's own hook."""

    def watch(self, model: nn.Module) -> None:
        for module in model.modules():
            module.register_state_dict_pre_hook(lambda module, *_: self.append(type(module).__name__))


def test_hazard_1_the_watch_sees_a_state_dict_call(packed: LoadedBase) -> None:
    calls = Calls()
    calls.watch(packed.model)
    packed.model.state_dict()
    assert "Linear4bit" in calls


def test_hazard_1_serving_loading_and_swapping_adapters_never_reads_the_state(
    packed: LoadedBase, tmp_path: Path
) -> None:
    engine = Engine(packed, EngineOptions(context_tokens=64, slots=2))
    calls = Calls()
    calls.watch(packed.model)
    engine.start()
    before = loss_of_row(engine, packed)
    try:
        for seed in (1, 2):
            folder = write_adapter(
                tmp_path / str(seed) / "adapters",
                base_hash=packed.info.hash,
                chat_template_hash=packed.info.chat_template_hash,
                tensors=lora_tensors(engine.widths, seed=seed),
            )
            engine.loaded_adapters.add(
                read_adapter(
                    folder.name,
                    folder,
                    adapters_dir=folder.parent,
                    base_hash=packed.info.hash,
                    chat_template_hash=packed.info.chat_template_hash,
                    widths=engine.widths,
                    dtype=packed.dtype,
                    device="cpu",
                )
            )
            Caller(engine, packed).run([5, 6, 7], folder.name, max_tokens=3, sampling=GREEDY)
            engine.loaded_adapters.remove(folder.name)
        assert loss_of_row(engine, packed) == before
    finally:
        engine.stop()
    assert calls == []


def loss_of_row(engine: Engine, base: LoadedBase) -> tuple[float, ...] | None:
    return Caller(engine, base).run(IDS[0].tolist(), score=True).scores


def test_hazard_1_every_layer_is_double_quantized(packed: LoadedBase) -> None:
    assert layers(packed.model)
    assert all(layer.weight.quant_state.nested for layer in layers(packed.model))


def test_hazard_1_reading_the_state_of_a_packed_base_changes_it_only_where_layers_are_repacked(
    packed: LoadedBase,
) -> None:
    before = loss(packed.model)
    states = [layer.weight.quant_state for layer in layers(packed.model)]
    assert all(getattr(state, "packing_format_for_cpu", False) for state in states) == PACKS
    packed.model.state_dict()
    if PACKS:
        assert loss(packed.model) != before  # the hazard itself
    else:
        assert loss(packed.model) == before


@pytest.mark.parametrize("execution", ["mapped", "packed", "dense"])
def test_hazard_2_gradients_flow_after_an_evaluation_in_training(tiny_folder: Path, execution: Any) -> None:
    base = load_base(tiny_folder, "cpu", "train", execution=execution)
    assert all(not layer.support_avx512bf16_for_cpu for layer in layers(base.model))
    assert bool(layers(base.model)) == (execution == "packed")
    tuned = get_peft_model(base.model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    tuned.eval()
    loss(tuned)
    tuned.train()
    tuned(input_ids=IDS, labels=IDS).loss.backward()
    norms = {
        name: float(parameter.grad.norm())
        for name, parameter in tuned.named_parameters()
        if "lora_B" in name and parameter.grad is not None
    }
    assert len(norms) == 14
    assert all(norm > 0 for norm in norms.values()), norms


def test_hazard_2_a_base_for_serving_passes_no_gradient_where_layers_are_repacked(packed: LoadedBase) -> None:
    loss(packed.model)
    embedded = packed.model.get_input_embeddings()(IDS).detach().requires_grad_(True)
    first = layers(packed.model)[0]
    repacked = bool(getattr(first.weight.quant_state, "packing_format_for_cpu", False))
    assert repacked == PACKS
    out = first(embedded.to(torch.bfloat16))
    # A repacked layer may pass zeros back, or not be in the graph at all.
    gradient = None
    if out.requires_grad:
        (gradient,) = torch.autograd.grad(out.float().sum(), embedded, allow_unused=True)
    passes = gradient is not None and bool(gradient.abs().sum() > 0)
    assert passes == (not repacked)


def test_hazard_4_the_server_stops_openmp_from_spinning_before_torch_is_imported() -> None:
    code = (
        "import os, sys, runpy, io\n"
        "sys.stdin = io.StringIO('{}')\n"
        "try: runpy.run_module('bot.serving', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules\n"
        "print(os.environ['OMP_WAIT_POLICY'], os.environ['GOMP_SPINCOUNT'])\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["passive", "0"]


def test_hazard_5_computation_is_in_bfloat16(packed: LoadedBase) -> None:
    assert {layer.compute_dtype for layer in layers(packed.model)} == {torch.bfloat16}


def test_hazard_7_dense_and_packed_weights_hold_the_same_values(
    tiny_folder: Path, packed: LoadedBase
) -> None:
    dense = load_base(tiny_folder, "cpu", execution="dense").model
    for name, module in packed.model.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            values = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            assert torch.equal(values.float(), dense.get_submodule(name).weight)
    assert loss(dense) == pytest.approx(loss(packed.model), abs=2e-2)


def test_hazard_9_the_package_that_fetches_native_code_is_not_installed() -> None:
    assert importlib.util.find_spec("kernels") is None
