from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bot.serving.model.loading import LoadedBase, load_base
from tests.trainer import loop


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def base(tiny_folder: Path) -> LoadedBase:
    """The tiny model loaded for training."""
    return load_base(tiny_folder, "cpu", "train")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_source: Path, tiny_folder: Path) -> Iterator[Path]:
    """The home of a running model server; tests put fresh databases beside it."""
    home = tmp_path_factory.mktemp("home")
    # A copy: what a run keeps of its base beside it is this module's alone.
    shutil.copytree(tiny_folder, home / "models" / tiny_folder.name)
    process = loop.serve(loop.configured(home, tiny_source))
    yield home
    loop.stop(process)
