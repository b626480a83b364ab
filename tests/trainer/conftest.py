from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.trainer import loop

# Imported where it is used: tests that need no model load no model library.
if TYPE_CHECKING:
    from bot.serving.model.loading import LoadedBase


@pytest.fixture
def base(tiny_folder: Path) -> LoadedBase:
    """The tiny model loaded for training."""
    from bot.serving.model.loading import load_base

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
