from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bot.serving.model.loading import LoadedBase, load_base
from bot.serving.model.quantize import prepare_base
from tests.tiny_model import build_tiny_base


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unquantized tiny model."""
    return build_tiny_base(tmp_path_factory.mktemp("source") / "tiny")


@pytest.fixture(scope="session")
def tiny_folder(tiny_source: Path, models_dir: Path) -> Path:
    """The tiny model in 4 bits, as the server and the trainer load it."""
    return prepare_base(str(tiny_source), "", device="cpu", models_dir=models_dir)


@pytest.fixture
def base(tiny_folder: Path) -> LoadedBase:
    """The tiny model loaded for training."""
    return load_base(tiny_folder, "cpu", "train")
