"""A trainer whose model server is on another machine prepares that base for itself, and trains no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from bot.serving.model.loading import read_info
from bot.serving.protocol import BaseDescription
from storage.config import Config, load_config
from tests.tiny_model import build_tiny_base
from trainer.errors import TrainingError
from trainer.placement.base import local_folder


def served(tiny_folder: Path, folder: str) -> BaseDescription:
    info = read_info(tiny_folder)
    return BaseDescription("tiny", hash=info.hash, folder=folder, identity=info.identity)


def configured(tmp_path: Path, base: Path, url: str = "http://gpu.invalid:8602") -> Config:
    file = tmp_path / "strop.toml"
    file.write_text(f'[model]\nbase = "{base}"\n[server]\nbase_url = "{url}"\n')
    return load_config(file, {"STROP_HOME": str(tmp_path / "data")})


def test_a_base_on_another_machine_is_prepared_here(
    tmp_path: Path, tiny_source: Path, tiny_folder: Path
) -> None:
    config = configured(tmp_path, tiny_source)
    folder = local_folder(served(tiny_folder, "/elsewhere/models/abc"), config, "cpu")
    assert folder.parent == config.models
    assert read_info(folder).hash == read_info(tiny_folder).hash
    assert local_folder(served(tiny_folder, "/elsewhere/models/abc"), config, "cpu") == folder


def test_another_base_is_not_trained_in_its_place(tmp_path: Path, tiny_folder: Path) -> None:
    config = configured(tmp_path, build_tiny_base(tmp_path / "other", seed=1))
    with pytest.raises(TrainingError, match=r"set model\.base and model\.revision to what it serves"):
        local_folder(served(tiny_folder, "/elsewhere/models/abc"), config, "cpu")


@pytest.mark.parametrize("url", ["", "http://127.0.0.1:8601"])
def test_the_files_of_a_server_on_this_machine_are_used_as_they_are(
    tmp_path: Path, tiny_folder: Path, url: str
) -> None:
    config = configured(tmp_path, tmp_path / "unused", url)
    assert local_folder(served(tiny_folder, str(tiny_folder)), config, "cpu") == tiny_folder
    assert not config.models.exists()
