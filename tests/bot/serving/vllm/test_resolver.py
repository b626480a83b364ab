"""vLLM's resolver serves an adapter by its id, and nothing else that lies on the disk."""

import importlib
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from bot.serving.vllm.resolver import PLUGIN, AdapterFolder
from tests.bot.serving.builders import write_adapter

BASE, TEMPLATE = "b" * 64, "c" * 64


@pytest.fixture
def folder(tmp_path: Path) -> AdapterFolder:
    return AdapterFolder(tmp_path / "adapters", BASE, TEMPLATE)


def adapter(folder: AdapterFolder, *, base: str = BASE, template: str = TEMPLATE) -> Path:
    import torch

    key = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {f"{key}.lora_A.weight": torch.zeros(4, 64), f"{key}.lora_B.weight": torch.zeros(64, 4)}
    return write_adapter(folder.adapters_dir, base_hash=base, chat_template_hash=template, tensors=tensors)


def test_an_adapter_is_found_by_its_id(folder: AdapterFolder) -> None:
    path = adapter(folder)
    assert folder.find(path.name) == path.resolve()
    assert folder.find("somebody-else") is None


def test_another_base_or_chat_template_is_refused(folder: AdapterFolder) -> None:
    assert folder.find(adapter(folder, base="d" * 64).name) is None
    assert folder.find(adapter(folder, template="d" * 64).name) is None


def tamper(path: Path) -> None:
    weights = path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")


def lose(path: Path) -> None:
    (path / "adapter_model.safetensors").unlink()


def unmanifest(path: Path) -> None:
    (path / "manifest.json").unlink()


@pytest.mark.parametrize("harm", [tamper, lose, unmanifest])
def test_an_adapter_whose_files_are_not_its_own_never_answers(
    folder: AdapterFolder, harm: Callable[[Path], None]
) -> None:
    path = adapter(folder)
    harm(path)
    assert folder.find(path.name) is None


@pytest.mark.parametrize("name", ["..", ".", "", "../adapters", "/etc", "a/b", "a\x00b", "x" * 200])
def test_a_name_that_leaves_the_folder_finds_nothing(folder: AdapterFolder, name: str) -> None:
    adapter(folder)
    assert folder.find(name) is None


def test_a_renamed_adapter_is_none(folder: AdapterFolder) -> None:
    path = adapter(folder)
    shutil.copytree(path, path.with_name("f" * len(path.name)))
    assert folder.find("f" * len(path.name)) is None


def test_it_needs_no_package_that_vllm_does_not_bring() -> None:
    script = (
        "import sys, bot.serving.vllm.resolver\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)))"
    )
    # -S: without site-packages, as an environment in which nothing of ours but Strop itself is installed.
    root = Path(__file__).parents[4]
    found = subprocess.run(
        [sys.executable, "-S", "-c", script], capture_output=True, text=True, cwd=root, check=True
    )
    assert found.stdout.strip() == "['__main__', 'bot']"


def test_vllm_finds_it_by_its_entry_point() -> None:
    project = tomllib.loads((Path(__file__).parents[4] / "pyproject.toml").read_text())["project"]
    (name, value), *others = project["entry-points"]["vllm.general_plugins"].items()
    module, function = value.split(":")
    assert (name, others) == (PLUGIN, [])
    assert callable(getattr(importlib.import_module(module), function))
