"""Which device a training runs on, and how much of its memory is free; the driver's answers are faked."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bot.serving.gpu_claim import is_claimed
from bot.serving.model.loading import (
    INFO_FILE,
    BaseInfo,
    available_bytes,
    choose_execution,
    load_base,
    read_info,
    write_info,
)
from bot.serving.model.memory import NF4_BYTES_PER_WEIGHT, ParameterCounts
from storage.config import Config
from storage.config_sections import ModelConfig, ServerConfig, TrainerConfig
from trainer.run import repeat
from trainer.training import gpu

GB = 10**9


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver's answers about a card with 2 GB free of 8, and a second one with 20 free of 24."""
    sizes = {0: (2 * GB, 8 * GB), 1: (20 * GB, 24 * GB)}

    def mem_get_info(device: torch.device | None = None) -> tuple[int, int]:
        return sizes[torch.device(device).index or 0 if device is not None else 0]

    monkeypatch.setattr(torch.cuda, "mem_get_info", mem_get_info)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 * GB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2 * GB)


@pytest.mark.usefixtures("two_gpus")
def test_memory_is_read_from_the_device_that_is_named() -> None:
    assert available_bytes("cuda") == available_bytes("cuda:0") == 2 * GB
    assert available_bytes("cuda:1") == 20 * GB


@pytest.mark.usefixtures("two_gpus")
def test_room_is_what_is_free_with_what_torch_keeps_or_the_share_less_what_it_holds() -> None:
    assert gpu.room("cuda:1", 1.0) == 21 * GB
    assert gpu.room("cuda:1", 0.5) == 10 * GB
    assert gpu.room("cuda:0", 1.0) == 3 * GB


@pytest.mark.usefixtures("two_gpus")
def test_a_base_counts_its_4_bit_weights_once_on_a_gpu() -> None:
    counts = ParameterCounts(linear=3_600_000_000, other=400_000_000)
    assert counts.cuda_bytes() < 3.5 * GB < counts.packed_bytes()
    assert counts.packed_bytes() - counts.cuda_bytes() == int(NF4_BYTES_PER_WEIGHT * counts.linear)
    fits_once = BaseInfo("a", "", "", "", "qwen3", 4096, 2 * GB, 100_000_000, {})
    assert choose_execution(fits_once, "cuda:0")[0] == "packed"


def test_quantizing_on_a_gpu_needs_little_main_memory_whatever_the_size_of_the_base() -> None:
    counts = ParameterCounts(linear=3_600_000_000, other=400_000_000)
    assert counts.prepare_bytes() > 10 * GB > 3 * GB > counts.prepare_on_gpu_bytes()


def test_a_base_that_is_written_in_pieces_is_read_as_one(tiny_folder: Path, tmp_path: Path) -> None:
    pieces = tmp_path / "pieces"
    shutil.copytree(tiny_folder, pieces)
    tensors = load_file(pieces / "model.safetensors")
    (pieces / "model.safetensors").unlink()
    for number in range(2):
        piece = {name: tensors[name] for name in sorted(tensors)[number::2]}
        save_file(piece, pieces / f"model-0000{number}.safetensors", {"format": "pt"})
    files = {file.name: file.stat().st_size for file in pieces.iterdir() if file.name != INFO_FILE}
    write_info(pieces, dataclasses.replace(read_info(tiny_folder), files=files))
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        logits = [
            load_base(folder, "cpu", execution="mapped").model(input_ids=ids).logits
            for folder in (tiny_folder, pieces)
        ]
    assert torch.equal(*logits)


@pytest.mark.parametrize(
    ("trains", "serves", "expected"),
    [
        ("auto", "auto", "auto"),
        ("auto", "cuda:1", "cuda:1"),
        ("cpu", "cuda", "cpu"),
        ("cuda:1", "cpu", "cuda:1"),
    ],
)
def test_a_training_runs_where_the_model_is_served_unless_it_has_a_device_of_its_own(
    trains: str, serves: str, expected: str
) -> None:
    assert gpu.device_for(TrainerConfig(device=trains), ModelConfig(device=serves)) == expected


def test_two_adapters_lie_as_far_apart_as_their_weights(tmp_path: Path) -> None:
    for name, value in (("one", 3.0), ("same", 3.0), ("other", 3.3)):
        (tmp_path / name).mkdir()
        weights = {"a": torch.full((4, 2), value), "b": torch.full((3,), value)}
        save_file(weights, tmp_path / name / "adapter_model.safetensors")
    assert repeat.distance(tmp_path / "one", tmp_path / "same") == 0
    assert repeat.distance(tmp_path / "one", tmp_path / "other") == pytest.approx(0.1)


def test_a_run_takes_the_card_of_a_vllm_only_where_that_is_configured(tmp_path: Path) -> None:
    run_dir = Config(home=tmp_path).run
    run_dir.mkdir(parents=True)
    announced = {"base_url": "http://127.0.0.1:1", "secret": "s", "pid": 1, "engine": "vllm", "asleep": True}
    (run_dir / "server.json").write_text(json.dumps(announced))
    for sleeps, address, expected in (
        (True, "", True),
        (False, "", False),
        (True, "http://127.0.0.1:1", False),
    ):
        config = Config(
            home=tmp_path,
            trainer=TrainerConfig(server_sleeps=sleeps),
            server=ServerConfig(base_url=address),
        )
        with gpu.own_card(config, lambda: None) as alone:
            assert (alone, is_claimed(run_dir)) == (expected, expected)
        assert not is_claimed(run_dir)
