"""Which form a training takes in the memory that is there, and what is said where none fits."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bot.serving.model.training_memory import Form, Load, Widths
from storage.config_sections import TrainerConfig
from trainer.errors import MemoryShortError
from trainer.training import fitting
from trainer.training.fitting import Task
from trainer.training.objectives import Plan

# Imported where it is used: most of these tests need no model library.
if TYPE_CHECKING:
    from trainer.training.challenger import Challenger

# Qwen3-4B by its published widths.
WIDTHS = Widths(
    layers=36,
    hidden=2560,
    queries=4096,
    keys=1024,
    inner=9728,
    norms=2,
    head_norms=True,
    linears=7,
    adapted=36 * (3 * 2560 + 4096 + 2 * 2560 + 9728 + 4096 + 2 * 1024 + 2560 + 2 * 9728 + 2560),
    largest=2560 * 9728,
    vocabulary=151_936,
    scores=0,
    number_bytes=2,
)
LOAD = Load(((512, 128),) * 40, ((256, 64),) * 40, 2048)
TASK = Task(WIDTHS, LOAD, TrainerConfig(), "cuda")


def test_memory_in_plenty_takes_all_of_a_step_at_once() -> None:
    assert fitting.choose(TASK, 10**12) == Form(2048)


def test_less_memory_takes_smaller_forwards_and_only_then_computes_activations_again() -> None:
    forms = list(TASK.forms())
    assert forms == [Form(n, again) for again in (False, True) for n in (2048, 1024, 512)]
    for form in forms:
        assert fitting.choose(TASK, TASK.estimate_bytes(form)) == form or form.recompute
    assert fitting.choose(TASK, TASK.estimate_bytes(Form(512)) - 1).recompute


def test_the_operators_size_is_the_most_that_is_taken() -> None:
    asked = replace(TASK, settings=TrainerConfig(batch_tokens=1024))
    assert fitting.choose(asked, 10**12) == Form(1024)
    assert fitting.choose(asked, asked.estimate_bytes(Form(512))) == Form(512)


def test_a_cpu_takes_768_tokens_where_they_fit() -> None:
    assert fitting.choose(replace(TASK, device="cpu"), 10**12) == Form(768)


def test_a_repeat_takes_its_originals_forwards_or_none() -> None:
    repeat = replace(TASK, settings=TrainerConfig(batch_tokens=2048), exactly=True)
    assert [form.batch_tokens for form in repeat.forms()] == [2048, 2048]
    with pytest.raises(MemoryShortError, match="; free memory"):
        fitting.choose(repeat, repeat.estimate_bytes(Form(2048, recompute=True)) - 1)


@pytest.mark.parametrize("share", [0.9, 0.7, 0.5])
def test_what_fits_in_no_form_names_both_figures_and_settings_that_do(share: float) -> None:
    least = min(TASK.estimate_bytes(form) for form in TASK.forms())
    available = int(least * share)
    with pytest.raises(MemoryShortError) as raised:
        fitting.choose(TASK, available)
    figures = [float(figure) for figure in re.findall(r"([\d.]+) GB", str(raised.value))]
    assert figures == [round(least / 1e9, 1), round(available / 1e9, 1)]
    named = {key: int(value) for key, value in re.findall(r"trainer\.(\w+) = (\d+)", str(raised.value))}
    assert named
    smaller = replace(
        TASK,
        load=LOAD.limit_length(named.get("max_length", 512)),
        settings=TrainerConfig(rank=named.get("rank", 16)),
    )
    fitting.choose(smaller, available)


def test_a_base_too_large_for_any_setting_says_so() -> None:
    with pytest.raises(MemoryShortError, match=r"choose a smaller \[model\] base"):
        fitting.choose(TASK, 1_000_000)


def train(folder: Path, taken: int) -> Challenger:
    from bot.serving.model.loading import load_base
    from tests.trainer import interrupted
    from trainer.training import challenger

    base = load_base(interrupted_base(folder), "cpu", "train")
    work = folder / "work"
    work.mkdir()
    return challenger.train_challenger(
        base,
        interrupted.SNAPSHOT,
        interrupted.REPLAY,
        Plan("sft"),
        interrupted.SETTINGS.model_copy(update={"epochs": 1}),
        work=work,
        adapters_dir=folder / "adapters",
        claim=lambda choose: choose(taken)[0],
    )


def interrupted_base(folder: Path) -> Path:
    return Path((folder / "base.txt").read_text())


@pytest.fixture
def place(tiny_folder: Path, tmp_path: Path) -> Path:
    (tmp_path / "base.txt").write_text(str(tiny_folder))
    return tmp_path


def test_a_training_that_would_not_fit_ends_before_it_begins(place: Path) -> None:
    with pytest.raises(MemoryShortError):
        train(place, 2**62)
    assert list((place / "work").iterdir()) == []


def test_the_card_says_how_large_the_forwards_were(place: Path) -> None:
    trained = train(place, 0)
    card = json.loads((trained.folder / "card.json").read_text())
    assert card["settings"]["batch_tokens"] == 768
