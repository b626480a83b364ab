"""A base is the same base wherever it is served; anything that an adapter depends on makes it another."""

import dataclasses
import json
from pathlib import Path

import pytest

from bot.serving.model.identity import BaseIdentity, find_mismatch, identify
from bot.serving.model.loading import read_info
from bot.serving.model.quantize import prepare_base
from tests.tiny_model import build_tiny_base

COMMIT = "cdbee75f17c01a7cc42f958dc650907174af0554"
QWEN = BaseIdentity("hub:Qwen/Qwen3-4B", COMMIT, "t" * 64)


def identity(source: Path, models: Path) -> BaseIdentity:
    return read_info(prepare_base(str(source), "", device="cpu", models_dir=models)).identity


def test_files_are_known_by_what_is_in_them(tmp_path: Path, tiny_source: Path, models_dir: Path) -> None:
    here = identity(tiny_source, models_dir)
    assert here.is_known()
    # Another folder of another name, on another machine as it were: the same base.
    assert identity(build_tiny_base(tmp_path / "elsewhere"), tmp_path / "1") == here
    other = identity(build_tiny_base(tmp_path / "other", seed=1), tmp_path / "2")
    assert (other.source, other.chat_template_hash) == (here.source, here.chat_template_hash)
    assert other.revision != here.revision


def test_a_base_that_an_earlier_version_prepared_gets_its_identity_and_keeps_its_hash(tmp_path: Path) -> None:
    source = build_tiny_base(tmp_path / "tiny")
    folder = prepare_base(str(source), "", device="cpu", models_dir=tmp_path / "models")
    file = folder / "base.json"
    written = json.loads(file.read_text())
    now = read_info(folder)
    file.write_text(json.dumps({name: value for name, value in written.items() if name != "content"}))
    assert not read_info(folder).identity.is_known()
    assert prepare_base(str(source), "", device="cpu", models_dir=tmp_path / "models") == folder
    assert read_info(folder) == now
    assert [path.name for path in folder.glob(".*")] == []


def test_a_hub_base_is_its_commit() -> None:
    assert identify(f"hub:Qwen/Qwen3-4B@{COMMIT}", "", "t" * 64) == QWEN
    assert QWEN.label == "Qwen/Qwen3-4B@cdbee75f17c0"


@pytest.mark.parametrize("field", ["source", "revision", "chat_template_hash"])
def test_whatever_differs_is_named_and_makes_another_key(field: str) -> None:
    other = dataclasses.replace(QWEN, **{field: "hub:other" if field == "source" else "f" * 64})
    assert other.key != QWEN.key
    difference = QWEN.difference(other)
    assert difference is not None
    theirs, mine = difference
    assert theirs != mine
    assert ("other" if field == "source" else "f" * 12) in theirs
    assert QWEN.difference(dataclasses.replace(QWEN)) is None


def test_an_identity_with_gaps_is_none() -> None:
    assert not identify("hub:Qwen/Qwen3-4B@", "", "t").is_known()
    assert not identify("folder:tiny@", "", "t").is_known()


@pytest.mark.parametrize(
    ("base", "revision", "other"),
    [
        ("Qwen/Qwen3-4B", "", None),
        ("Qwen/Qwen3-4B", COMMIT, None),
        ("Qwen/Qwen3-4B", "f" * 40, ("Qwen/Qwen3-4B@cdbee75f17c0", "Qwen/Qwen3-4B@ffffffffffff")),
        ("Qwen/Qwen3-8B", "", ("Qwen/Qwen3-4B@cdbee75f17c0", "Qwen/Qwen3-8B@cdbee75f17c0")),
        ("auto", "", None),
        ("/models/mine", "", None),
        ("./mine.gguf", "", None),
    ],
)
def test_a_server_with_another_base_than_the_configured_one_is_found_out(
    base: str, revision: str, other: tuple[str, str] | None
) -> None:
    assert find_mismatch(QWEN, base, revision) == other
    assert find_mismatch(BaseIdentity("files", "a" * 64, "t" * 64), base, revision) is None
