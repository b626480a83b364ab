import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bot.serving.errors import AdapterRefusedError
from bot.serving.model.adapter_files import read_file, verify, write_manifest
from tests.bot.serving.builders import lora_config, lora_tensors, write_adapter

BASE, TEMPLATE = "b" * 64, "c" * 64
WIDTHS = {"model.layers.0.self_attn.q_proj": (64, 64)}


@pytest.fixture
def adapters_dir(tmp_path: Path) -> Path:
    return tmp_path / "adapters"


@pytest.fixture
def folder(adapters_dir: Path) -> Path:
    return write_adapter(
        adapters_dir, base_hash=BASE, chat_template_hash=TEMPLATE, tensors=lora_tensors(WIDTHS)
    )


def check(folder: Path, adapters_dir: Path) -> None:
    verify(folder, adapters_dir=adapters_dir, base_hash=BASE, chat_template_hash=TEMPLATE)


def refusal(folder: Path, adapters_dir: Path) -> str:
    with pytest.raises(AdapterRefusedError) as refused:
        check(folder, adapters_dir)
    return str(refused.value)


def test_a_whole_folder_is_accepted_with_its_name_as_id(folder: Path, adapters_dir: Path) -> None:
    manifest = verify(folder, adapters_dir=adapters_dir, base_hash=BASE, chat_template_hash=TEMPLATE)
    assert manifest.adapter_id == folder.name
    assert folder.name.startswith("a") and len(folder.name) == 16
    assert manifest.config == lora_config()


def test_equal_content_has_an_equal_id(tmp_path: Path) -> None:
    tensors = lora_tensors(WIDTHS)
    first = write_adapter(tmp_path / "1" / "a", base_hash=BASE, chat_template_hash=TEMPLATE, tensors=tensors)
    second = write_adapter(tmp_path / "2" / "a", base_hash=BASE, chat_template_hash=TEMPLATE, tensors=tensors)
    assert first.name == second.name


def test_extra_facts_come_back_and_are_part_of_the_id(tmp_path: Path) -> None:
    ids = set()
    for run in ("r1", "r2"):
        work = tmp_path / run
        work.mkdir()
        (work / "adapter_config.json").write_text("{}")
        (work / "adapter_model.safetensors").write_bytes(b"x")
        adapter_id = write_manifest(
            work, base_hash=BASE, chat_template_hash=TEMPLATE, extra={"run": run, 1: (2, 3)}
        )
        final = work.rename(tmp_path / adapter_id)
        manifest = verify(final, adapters_dir=tmp_path, base_hash=BASE, chat_template_hash=TEMPLATE)
        assert manifest.extra == {"run": run, "1": [2, 3]}
        ids.add(adapter_id)
    assert len(ids) == 2


def change_weights(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))


def add_pickle(folder: Path) -> None:
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({"a": 1}))


def add_unlisted(folder: Path) -> None:
    (folder / "notes.txt").write_text("hello")


def add_folder(folder: Path) -> None:
    (folder / "checkpoint").mkdir()


def remove_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def remove_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def link_weights(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    shutil.move(weights, folder.parent / "elsewhere")
    weights.symlink_to(folder.parent / "elsewhere")


def make_weights_a_pipe(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    os.mkfifo(folder / "adapter_model.safetensors")


def edit_manifest(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["extra"]["rehearsal"] = False
    (folder / "manifest.json").write_text(json.dumps(manifest))


def break_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("[" * 100_000)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (change_weights, "does not have the hash"),
        (add_pickle, "pickled code"),
        (add_unlisted, "not in its manifest"),
        (add_folder, "not a plain file"),
        (remove_weights, "has no adapter_model.safetensors"),
        (remove_manifest, "has no manifest.json"),
        (link_weights, "not a plain file"),
        (make_weights_a_pipe, "not a plain file"),
        (edit_manifest, "does not match its manifest"),
        (break_manifest, "not valid JSON"),
    ],
)
def test_a_changed_folder_is_refused_with_the_reason(
    folder: Path, adapters_dir: Path, damage: Callable[[Path], None], reason: str
) -> None:
    damage(folder)
    assert reason in refusal(folder, adapters_dir)


def test_a_renamed_folder_is_refused(folder: Path, adapters_dir: Path) -> None:
    assert "does not match" in refusal(folder.rename(adapters_dir / "a000000000000000"), adapters_dir)


def test_another_base_is_refused(folder: Path, adapters_dir: Path) -> None:
    with pytest.raises(AdapterRefusedError, match="trained on base"):
        verify(folder, adapters_dir=adapters_dir, base_hash="d" * 64, chat_template_hash=TEMPLATE)


def test_another_chat_template_is_refused(folder: Path, adapters_dir: Path) -> None:
    with pytest.raises(AdapterRefusedError, match="chat template"):
        verify(folder, adapters_dir=adapters_dir, base_hash=BASE, chat_template_hash="d" * 64)


def test_paths_outside_the_adapters_folder_are_refused(
    folder: Path, adapters_dir: Path, tmp_path: Path
) -> None:
    outside = tmp_path / folder.name
    shutil.copytree(folder, outside)
    assert "not a folder directly inside" in refusal(outside, adapters_dir)
    assert "'..'" in refusal(adapters_dir / ".." / folder.name, adapters_dir)
    assert "not a folder directly inside" in refusal(adapters_dir, adapters_dir)
    assert "no adapter folder" in refusal(adapters_dir / "missing", adapters_dir)


def test_a_link_in_the_adapters_folder_is_refused(folder: Path, adapters_dir: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    shutil.move(folder, outside)
    folder.symlink_to(outside)
    assert "is a link" in refusal(folder, adapters_dir)


def test_a_relative_name_is_looked_up_in_the_adapters_folder(folder: Path, adapters_dir: Path) -> None:
    check(Path(folder.name), adapters_dir)


def test_a_file_swapped_after_the_check_is_refused_when_read(folder: Path, adapters_dir: Path) -> None:
    manifest = verify(folder, adapters_dir=adapters_dir, base_hash=BASE, chat_template_hash=TEMPLATE)
    change_weights(folder)
    with pytest.raises(AdapterRefusedError, match="changed after it was checked"):
        read_file(manifest, "adapter_model.safetensors")


def test_a_pickle_is_refused_before_a_manifest_is_written(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    torch.save({}, tmp_path / "adapter_model.bin")
    with pytest.raises(AdapterRefusedError, match="pickled"):
        write_manifest(tmp_path, base_hash=BASE, chat_template_hash=TEMPLATE, extra={})
