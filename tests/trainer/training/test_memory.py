"""What a training will need, and what is said where it would not fit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bot.serving.model.loading import LoadedBase, load_base
from storage.config_sections import TrainerConfig
from tests.trainer import interrupted
from trainer.data.encoding import Example
from trainer.errors import MemoryShortError
from trainer.training import challenger, memory
from trainer.training.adapter import add_adapter
from trainer.training.memory import Shape
from trainer.training.objectives import Plan

# SmolLM2-135M with 192 of 768 tokens predicted: 30 layers of seven linear ones.
SHAPE = Shape(
    inputs=30 * (4 * 576 + 2 * 576 + 1536),
    outputs=30 * (2 * 576 + 2 * 192 + 2 * 1536 + 576),
    layers=210,
    vocabulary=49152,
    rank=16,
    tokens=768,
    predicted=192,
    replayed=0,
)


def test_a_shape_is_read_off_the_model_and_the_examples(base: LoadedBase) -> None:
    examples = [Example(ids=(3,) * 30, start=20), Example(ids=(3,) * 50, start=10), Example((3,) * 9, 8)]
    shape = memory.shape_of(base.model, 4, 60, examples, [Example((3,) * 12, 5)])
    assert (shape.layers, shape.vocabulary, shape.tokens, shape.replayed) == (14, 416, 60, 7)
    # The second example, whose completion is longest, and no other beside it.
    assert shape.predicted == 40
    parameters = add_adapter(base.model, TrainerConfig(rank=4)).get_nb_trainable_parameters()[0]
    assert shape.adapter_bytes == parameters * 16


def test_what_fits_is_let_through_and_a_longer_row_than_a_forward_counts(base: LoadedBase) -> None:
    memory.require(SHAPE, SHAPE.needed_bytes, TrainerConfig())
    long = memory.shape_of(base.model, 4, 60, [Example((3,) * 200, 100)])
    assert (long.tokens, long.predicted) == (200, 100)


@pytest.mark.parametrize("share", [0.9, 0.6, 0.45])
def test_what_does_not_fit_names_both_figures_and_settings_that_do(share: float) -> None:
    available = int(SHAPE.needed_bytes * share)
    with pytest.raises(MemoryShortError) as raised:
        memory.require(SHAPE, available, TrainerConfig())
    text = str(raised.value)
    figures = [float(figure) for figure in re.findall(r"([\d.]+) GB", text)]
    assert figures == [round(SHAPE.needed_bytes / 1e9, 1), round(available / 1e9, 1)]
    named = {key: int(value) for key, value in re.findall(r"trainer\.(\w+) = (\d+)", text)}
    tokens = min(named["batch_tokens"], named.get("max_length", 10_000))
    smaller = memory._at(SHAPE, tokens, named.get("rank", SHAPE.rank))
    assert memory.replace(SHAPE, **smaller).needed_bytes <= available


def test_a_base_too_large_for_any_setting_says_so() -> None:
    with pytest.raises(MemoryShortError, match=r"choose a smaller \[model\] base"):
        memory.require(SHAPE, 1_000_000, TrainerConfig())


def test_a_training_that_would_not_fit_ends_before_it_begins(tiny_folder: Path, tmp_path: Path) -> None:
    base = load_base(tiny_folder, "cpu", "train")
    with pytest.raises(MemoryShortError):
        challenger.train_challenger(
            base,
            interrupted.SNAPSHOT,
            interrupted.REPLAY,
            Plan("sft"),
            interrupted.SETTINGS,
            work=tmp_path,
            adapters_dir=tmp_path / "adapters",
            memory_bytes=1_000_000,
        )
    assert list(tmp_path.iterdir()) == []
    assert not any("lora" in name for name, _ in base.model.named_parameters())
