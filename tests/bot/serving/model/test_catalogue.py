"""The catalogue's shapes are those of real models, and what "auto" took once it keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from bot.serving.model import sources
from bot.serving.model.catalogue import BUNDLED, CATALOGUE, QWEN3_4B, SMOLLM2_360M, Entry, Machine, needs
from bot.serving.model.shapes import MODEL_TYPES, Shape
from bot.serving.model.sources import automatic, keep
from tests.bench.training_fit import SIZES, Shaped
from tests.fake_device import shaped_base
from trainer.training.memory import widths_of

GIB = 1024**3
SMALL, LARGE = Machine(1, 2 * GIB), Machine(2, 16 * GIB)


def config(shape: Shape, layers: int = 2) -> Any:
    return AutoConfig.for_model(
        shape.model_type,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        head_dim=shape.head_width,
        vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.tied,
        pad_token_id=0,
    )


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.id)
def test_a_shape_says_what_a_model_of_it_would(entry: Entry) -> None:
    two = config(entry.shape)
    assert widths_of(shaped_base(two)) == Shape.of(two.to_dict()).widths(2)


@pytest.mark.parametrize("kind", sorted(MODEL_TYPES))
def test_every_supported_architecture_is_measured_by_its_configuration(kind: str) -> None:
    widths = (64, 4, 2, 16, 128, 96)
    shape = Shape(kind, 2, *widths, tied=False)
    attention = "eager" if kind == "gemma2" else "sdpa"
    model = shaped_base(config(shape), attention=attention)
    assert widths_of(model) == shape.widths(2)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: size.name)
def test_the_catalogue_and_the_table_of_cards_agree(size: Any) -> None:
    shaped, shape = Shaped.of(size), Shape.of(size.config().to_dict())
    assert shape.widths(2) == shaped.widths
    assert shape.counts.linear == shaped.counts.linear
    assert shape.counts.other == pytest.approx(shaped.counts.other, rel=0.01)
    assert shape.cache_bytes(8 * 2048, 2) == pytest.approx(shaped.cache_bytes, rel=0.02)


def test_a_base_of_which_nothing_was_measured_has_no_speed() -> None:
    assert needs(QWEN3_4B.shape, Machine(8, 32 * GIB, 24 * GIB)).tokens_per_s is None
    slow, fast = (needs(SMOLLM2_360M.shape, LARGE, speed=speed).tokens_per_s for speed in (1.0, 2.0))
    assert slow and fast == pytest.approx(2 * slow)


def test_auto_keeps_what_it_took_on_a_kind_of_machine(tmp_path: Path) -> None:
    first = automatic(SMALL, tmp_path)
    assert first.entry == BUNDLED
    keep(first, SMALL, tmp_path)
    later = automatic(LARGE, tmp_path)
    assert later.entry == BUNDLED
    assert SMOLLM2_360M.id in later.why and "model.base" in later.why
    # A GPU is another kind of machine.
    assert automatic(Machine(8, 32 * GIB, 24 * GIB), tmp_path).entry.id == "Qwen/Qwen3-8B"


@pytest.mark.parametrize("record", ["", "[]", '{"base": "gone/base", "device": "cpu"}'])
def test_a_record_that_says_nothing_is_none(tmp_path: Path, record: str) -> None:
    (tmp_path / sources.CHOICE_FILE).write_text(record)
    assert automatic(LARGE, tmp_path).entry == SMOLLM2_360M


def test_a_deployment_from_before_keeps_the_base_that_it_has(tmp_path: Path, tiny_folder: Path) -> None:
    info = json.loads((tiny_folder / "base.json").read_text())
    (tmp_path / "prepared").mkdir()
    record = {**info, "source": "gguf:SmolLM2-135M-Instruct@"}
    (tmp_path / "prepared" / "base.json").write_text(json.dumps(record))
    assert automatic(LARGE, tmp_path).entry == BUNDLED
    assert sources.prepared_hashes(tmp_path, BUNDLED.id) == [info["hash"]]
    gpu = Machine(8, 32 * GIB, 24 * GIB)
    assert automatic(gpu, tmp_path).entry.id == "Qwen/Qwen3-8B"
    (tmp_path / "prepared" / "base.json").write_text(
        json.dumps({**info, "source": f"hub:{QWEN3_4B.id}@{QWEN3_4B.revision}"})
    )
    assert automatic(gpu, tmp_path).entry == QWEN3_4B


def test_a_playground_without_a_gpu_needs_no_download(tmp_path: Path) -> None:
    assert automatic(LARGE, tmp_path, playground=True).entry == BUNDLED
