from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bot.serving.model.loading import LoadedBase, load_base


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def base(tiny_folder: Path) -> LoadedBase:
    """The tiny model loaded for training."""
    return load_base(tiny_folder, "cpu", "train")
