"""Are the engine's logits those of a plain forward of transformers, with and without adapters?

A plain forward in float32 says what is right; a plain one in the engine's own precision says how far that
precision strays by itself. The engine may stray as far, and a little: its sums are grouped otherwise.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from transformers import PreTrainedModel

from bot.serving.engine.gpu.decoder import GpuDecoder
from bot.serving.engine.model_runner import ModelRunner
from bot.serving.model.loading import LoadedBase, unfold
from tests.bench.gpu_check.random_base import RANK, SCALE, as_adapter, build, lora_tensors
from tests.bench.gpu_check.results import Row
from tests.bench.gpu_check.setting import Setting
from tests.bench.serving.errors import BenchError
from tests.bench.shapes import Size

# Rows of the cache that don't adjoin, as requests leave them.
ROWS = (0, 2, 3, 5)
SLOTS, CONTEXT = 6, 128
PROMPT_TOKENS, LONGER_BY, DECODED = 40, 9, 8
# Prompts are read in pieces of so many tokens.
PIECE = 16
ALLOWED = 1.25

Tensors = Mapping[str, tuple[torch.Tensor, torch.Tensor]]


def check(setting: Setting, size: Size) -> Iterator[Row]:
    """Read and decode four rows under two adapters and none, and compare each token's logits."""
    base = build(size, setting.device, in_4_bits=setting.in_4_bits)
    adapters = [None, lora_tensors(base.model, 1), lora_tensors(base.model, 2)]
    uses = (0, 1, 2, 1)
    prompts = _prompts(size)
    with torch.no_grad():
        exact = _plain(_in_float32(base), prompts, adapters, uses)
        plain = _plain(base.model, prompts, adapters, uses)
        found = _engine(base, prompts, adapters, uses)
    strays, usual = _distance(found, exact), _distance(plain, exact)
    same = [float((a.argmax(-1) == b.argmax(-1)).float().mean()) for a, b in zip(found, plain, strict=True)]
    yield Row(
        "correctness",
        size.name,
        "logits beside a float32 forward (prompt in pieces, decoding, two adapters and none)",
        f"{strays:.2%} off, a plain {setting.precision} forward {usual:.2%}; "
        f"{sum(same) / len(same):.0%} of the likeliest tokens are the same",
        passed=strays <= ALLOWED * usual,
        numbers={"off": strays, "plain_off": usual, "same": sum(same) / len(same)},
    )


def _prompts(size: Size) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    lengths = [PROMPT_TOKENS + LONGER_BY * row + DECODED for row in range(len(ROWS))]
    return [torch.randint(0, size.vocabulary, (n,), generator=generator).tolist() for n in lengths]


def _in_float32(base: LoadedBase) -> PreTrainedModel:
    model = copy.deepcopy(base.model)
    if getattr(model, "is_loaded_in_4bit", False):
        unfold(model)
    return model.float()


def _plain(
    model: PreTrainedModel, prompts: Sequence[list[int]], adapters: Sequence[Any], uses: Sequence[int]
) -> list[torch.Tensor]:
    """Return the logits (DECODED + 1, V) of each prompt's last positions, by PEFT and one whole forward."""
    found: dict[int, torch.Tensor] = {}
    for number, tensors in enumerate(adapters):
        tuned: Any = model if tensors is None else _with_peft(model, tensors)
        for place in (place for place, used in enumerate(uses) if used == number):
            ids = torch.tensor([prompts[place]], device=model.device)
            found[place] = tuned(input_ids=ids, use_cache=False).logits[0, -DECODED - 1 :].float()
        if tensors is not None:
            tuned.unload()
    return [found[place] for place in range(len(prompts))]


def _with_peft(model: PreTrainedModel, tensors: Tensors) -> Any:
    config = LoraConfig(
        r=RANK, lora_alpha=int(RANK * SCALE), target_modules="all-linear", task_type="CAUSAL_LM"
    )
    tuned = get_peft_model(model, config)
    state = {}
    for name, (down, up) in tensors.items():
        state[f"base_model.model.{name}.lora_A.weight"] = down
        state[f"base_model.model.{name}.lora_B.weight"] = up
    set_peft_model_state_dict(tuned, state)
    # In the precision in which it is served; PEFT keeps float32 for training.
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(model.dtype)
    return tuned.eval()


def _engine(
    base: LoadedBase, prompts: Sequence[list[int]], adapters: Sequence[Any], uses: Sequence[int]
) -> list[torch.Tensor]:
    runner = ModelRunner(base, SLOTS, CONTEXT, threads=1, for_gpu=True)
    if not isinstance(runner.decoder, GpuDecoder):
        raise BenchError("the engine's decoder disagrees with the model's modules, which decode instead")
    held = [
        None if tensors is None else as_adapter(str(number), tensors)
        for number, tensors in enumerate(adapters)
    ]
    used = [held[number] for number in uses]
    logits: list[list[torch.Tensor]] = []
    for row, prompt, adapter in zip(ROWS, prompts, used, strict=True):
        cut = len(prompt) - DECODED
        for start in range(0, cut, PIECE):
            last = runner.read(prompt[start : min(cut, start + PIECE)], start, row, adapter, 1)
        logits.append([last[-1].float()])
    for step in range(DECODED):
        places = [len(prompt) - DECODED + step for prompt in prompts]
        tokens = [prompt[place] for prompt, place in zip(prompts, places, strict=True)]
        for kept, each in zip(logits, runner.decode(tokens, places, ROWS, used), strict=True):
            kept.append(each.float())
    return [torch.stack(each) for each in logits]


def _distance(found: Sequence[torch.Tensor], exact: Sequence[torch.Tensor]) -> float:
    """Return how far logits lie from the right ones, as a share of their size."""
    apart = torch.stack([(a - b).norm() for a, b in zip(found, exact, strict=True)]).norm()
    return float(apart / torch.stack([each.norm() for each in exact]).norm())
