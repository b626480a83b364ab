"""Our training on a card: tokens a second and memory, beside the estimate and beside PEFT and TRL."""

from __future__ import annotations

import importlib.util
import itertools
import math
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from bot.serving.model.training_memory import Form
from storage.config_sections import TrainerConfig
from tests.bench.gpu_check.random_base import build
from tests.bench.gpu_check.results import Row
from tests.bench.gpu_check.setting import Setting
from tests.bench.shapes import Size
from tests.bench.trl_side import trl_trainer
from trainer.data.encoding import Example
from trainer.training import fitting, gpu, phases
from trainer.training.adapter import add_adapter, recompute_activations
from trainer.training.fitting import Task
from trainer.training.memory import load_of, widths_of

RATE = 2e-4
SETTINGS = TrainerConfig(sft_learning_rate=RATE, epochs=1)
GIB = 1024**3
PADDING = -100


def measure(setting: Setting, size: Size) -> Iterator[Row]:
    """Train the same rows by Strop, by a plain loop over PEFT, and by TRL."""
    yield _strop(setting, size)
    yield _peft(setting, size)
    if importlib.util.find_spec("trl") is None:
        yield Row("training", size.name, "TRL", reason="trl is not installed")
    else:
        yield _trl(setting, size)


def train_for_ever(setting: Setting, size: Size) -> None:
    """Train until the process is ended; one line on standard output says that it is under way."""
    base = build(size, setting.device, in_4_bits=setting.in_4_bits)
    rows = examples(setting, size)
    model = add_adapter(base.model, SETTINGS)
    for turn in itertools.count():
        _train(model, rows, setting.row_tokens * SETTINGS.sft_batch_size)
        if turn == 0:
            print("training", flush=True)


def examples(setting: Setting, size: Size) -> list[Example]:
    """Return rows of random tokens, as long as rows may be."""
    dice = random.Random(0)
    start = setting.row_tokens - setting.completion_tokens
    return [
        Example(tuple(dice.randrange(size.vocabulary) for _ in range(setting.row_tokens)), start)
        for _ in range(setting.rows)
    ]


def _strop(setting: Setting, size: Size) -> Row:
    base = build(size, setting.device, in_4_bits=setting.in_4_bits)
    rows = examples(setting, size)
    load = load_of(rows, (), SETTINGS.sft_batch_size * setting.row_tokens)
    task = Task(widths_of(base.model), load, SETTINGS, setting.device)
    form = fitting.choose(task, gpu.room(setting.device, 1.0))
    recompute_activations(base.model, form.recompute)
    held = _allocated(setting)
    model = add_adapter(base.model, SETTINGS)
    _train(model, rows[: SETTINGS.sft_batch_size], form.batch_tokens)
    took = _train(model, rows, form.batch_tokens)
    return _row(setting, size, _named(form), took, held, task.estimate_bytes(form))


def _named(form: Form) -> str:
    how = ", activations computed again" if form.recompute else ""
    return f"Strop, {form.batch_tokens} tokens at once{how}"


def _train(model: Any, rows: Sequence[Example], batch_tokens: int) -> float:
    settings = phases.SftSettings(
        RATE, 1, SETTINGS.sft_batch_size, 0.0, SETTINGS.seed, batch_tokens=batch_tokens
    )
    return phases.train_sft(model, rows, [], settings).seconds


def _peft(setting: Setting, size: Size) -> Row:
    """The loop that everybody writes first: padded batches, the loss that transformers computes."""
    base = build(size, setting.device, in_4_bits=setting.in_4_bits)
    rows = examples(setting, size)
    held = _allocated(setting)
    config = LoraConfig(
        r=SETTINGS.rank, lora_alpha=SETTINGS.alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    model = get_peft_model(base.model, config).train()
    optimiser = torch.optim.AdamW((each for each in model.parameters() if each.requires_grad), lr=RATE)

    def step(batch: Sequence[Example]) -> None:
        ids = torch.tensor([each.ids for each in batch], device=setting.device)
        labels = ids.clone()
        for row, each in enumerate(batch):
            labels[row, : each.start] = PADDING
        loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        loss.item()

    size_of_batch = SETTINGS.sft_batch_size
    step(rows[:size_of_batch])
    started = time.monotonic()
    for at in range(0, len(rows), size_of_batch):
        step(rows[at : at + size_of_batch])
    return _row(setting, size, "a plain loop over PEFT", time.monotonic() - started, held)


def _trl(setting: Setting, size: Size) -> Row:
    base = build(size, setting.device, in_4_bits=setting.in_4_bits)
    held = _allocated(setting)
    model = add_adapter(base.model, SETTINGS)
    model.train()
    rows = examples(setting, size)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trl_trainer(model, base.tokenizer, rows, SETTINGS, folder, on_cpu=not setting.on_gpu)
        started = time.monotonic()
        trainer.train()
        return _row(setting, size, "TRL", time.monotonic() - started, held)


def _allocated(setting: Setting) -> int:
    """Return what the base takes, and count the peak from here."""
    if not setting.on_gpu:
        return 0
    torch.cuda.reset_peak_memory_stats(setting.device)
    return torch.cuda.memory_allocated(setting.device)


def _row(
    setting: Setting, size: Size, side: str, seconds: float, held: int, estimate: int | None = None
) -> Row:
    rate = setting.rows * setting.row_tokens / seconds
    peak = torch.cuda.max_memory_allocated(setting.device) - held if setting.on_gpu else math.nan
    reserved = torch.cuda.max_memory_reserved(setting.device) - held if setting.on_gpu else math.nan
    memory = f"{peak / GIB:.1f} GiB beside the base, {reserved / GIB:.1f} with what torch keeps"
    if not setting.on_gpu:
        memory = "memory not measured: CUDA alone counts it"
    estimated = "" if estimate is None else f"; estimated {estimate / GIB:.1f} GiB"
    return Row(
        "training",
        size.name,
        f"{side}, {setting.precision} base",
        f"{rate:.0f} tokens/s; {memory}{estimated}",
        numbers={"rate": rate, "peak": peak, "reserved": reserved, "estimate": float(estimate or 0)},
    )
