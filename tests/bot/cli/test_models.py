"""`strop models`: what each base takes here, and downloads that are checked first and can go on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bot.serving.model import catalogue
from bot.serving.model.catalogue import Machine
from tests.bot.cli.conftest import Strop
from tests.bot.serving.hub import Hub

GIB = 1024**3


def test_every_base_is_listed_with_what_it_takes_and_auto_is_marked_with_a_reason(strop: Strop) -> None:
    lines = strop("models").stdout.splitlines()
    listed = {
        line.split()[1] if line.startswith(("auto", "set")) else line.split()[0] for line in lines[1:-2]
    }
    assert listed == {entry.id for entry in catalogue.CATALOGUE}
    (auto,) = [line for line in lines if line.startswith("auto")]
    assert auto.split()[1] in lines[-2] and lines[-2].startswith('"auto" takes')
    assert "Apache-2.0" in auto and "GiB" in auto
    records = json.loads(strop("models", "--json").stdout)
    assert [each["auto"] is not None for each in records].count(True) == 1
    assert all(each["tokens_per_s"]["measured"] is None for each in records)


def get(tmp_path: Path, hub: str, *arguments: str, disk: str = "") -> subprocess.CompletedProcess[str]:
    """Run `strop models get` as a user does, with a hub of our own."""
    env = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    env |= {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "hub"), "STROP_HOME": str(tmp_path / "data")}
    return subprocess.run(
        [sys.executable, "-m", "bot.cli", "models", "get", *arguments],
        env=env | {"PYTHONPATH": str(Path(__file__).parents[3])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_base_is_downloaded_once_and_found_by_the_server(tmp_path: Path, tiny_source: Path) -> None:
    with Hub("owner/tiny", tiny_source) as hub:
        done = get(tmp_path, hub.url, "owner/tiny")
        assert done.returncode == 0, done.stderr
        assert 'base = "owner/tiny"' in done.stdout and "Downloading owner/tiny" in done.stderr
        # The configuration comes before the weights.
        names = [name for name, _ in hub.asked]
        assert names.index("config.json") < names.index("model.safetensors")
        asked = len(hub.asked)
        assert get(tmp_path, hub.url, "owner/tiny").returncode == 0
        assert len(hub.asked) == asked
    (weights,) = (tmp_path / "hub").rglob("snapshots/*/model.safetensors")
    assert weights.read_bytes() == (tiny_source / "model.safetensors").read_bytes()


@pytest.fixture
def large_source(tmp_path: Path, tiny_source: Path) -> Path:
    """A base with a file of weights that takes more than one piece (of 10 MB, huggingface_hub's)."""
    folder = tmp_path / "large"
    shutil.copytree(tiny_source, folder)
    (folder / "model.safetensors").write_bytes(os.urandom(24_000_000))
    return folder


def test_an_interrupted_download_goes_on_where_it_was(tmp_path: Path, large_source: Path) -> None:
    with Hub("owner/large", large_source, breaks_after=15_000_000) as hub:
        broken = get(tmp_path, hub.url, "owner/large")
        assert broken.returncode == 1
        assert "Traceback" not in broken.stderr
        (partial,) = (tmp_path / "hub").rglob("*.partial")
        kept = partial.stat().st_size
        assert 0 < kept <= 15_000_000
        hub.mend()
        hub.asked.clear()
        done = get(tmp_path, hub.url, "owner/large")
        assert done.returncode == 0, done.stderr
        assert [start for name, start in hub.asked if name == "model.safetensors"] == [kept]
    (weights,) = (tmp_path / "hub").rglob("snapshots/*/model.safetensors")
    assert weights.read_bytes() == (large_source / "model.safetensors").read_bytes()
    assert not list((tmp_path / "hub").rglob("*.partial"))


def test_what_was_damaged_on_the_way_is_not_kept(tmp_path: Path, large_source: Path) -> None:
    with Hub("owner/large", large_source, breaks_after=15_000_000) as hub:
        get(tmp_path, hub.url, "owner/large")
        (partial,) = (tmp_path / "hub").rglob("*.partial")
        partial.write_bytes(b"\0" * partial.stat().st_size)
        hub.mend()
        damaged = get(tmp_path, hub.url, "owner/large")
        assert damaged.returncode == 1 and "was damaged on the way" in damaged.stderr
        assert get(tmp_path, hub.url, "owner/large").returncode == 0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_type": "mixtral"}, "is a mixtral model; supported are"),
        (
            {"model_type": "qwen3_5", "layer_types": ["linear_attention", "full_attention"]},
            "a hybrid with linear attention",
        ),
        ({"quantization_config": {"bits": 4}}, "is quantized already"),
    ],
)
def test_an_architecture_that_is_not_supported_is_refused_before_its_weights_are_asked_for(
    tmp_path: Path, tiny_source: Path, changes: dict[str, object], sentence: str
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_source, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, **changes}))
    with Hub("owner/other", other) as hub:
        refused = get(tmp_path, hub.url, "owner/other")
        assert refused.returncode == 1
        assert sentence in refused.stderr
        assert [name for name, _ in hub.asked] == ["config.json"]


def test_a_name_that_is_neither_in_the_list_nor_an_id_is_refused(strop: Strop) -> None:
    assert "no base of `strop models`" in strop("models", "get", "nonsense", code=1).stderr
    assert "came with the installation" in strop("models", "get", "smollm2-135m-instruct").stdout


@pytest.mark.parametrize(
    ("machine", "taken"),
    [
        (Machine(1, 2 * GIB), "SmolLM2-135M-Instruct"),
        (Machine(2, 16 * GIB), "HuggingFaceTB/SmolLM2-360M-Instruct"),
        (Machine(8, 32 * GIB), "HuggingFaceTB/SmolLM2-1.7B-Instruct"),
        (Machine(64, 4 * GIB), "SmolLM2-135M-Instruct"),
        (Machine(8, 32 * GIB, 8 * GIB), "Qwen/Qwen3-1.7B"),
        (Machine(8, 32 * GIB, 12 * GIB), "Qwen/Qwen3-4B-Instruct-2507"),
        (Machine(8, 32 * GIB, 24 * GIB), "Qwen/Qwen3-8B"),
        (Machine(8, 32 * GIB, 80 * GIB), "Qwen/Qwen3-8B"),
    ],
)
def test_auto_climbs_with_the_machine(machine: Machine, taken: str) -> None:
    choice = catalogue.choose(machine)
    assert choice.entry.id == taken and choice.why
    found = catalogue.needs(choice.entry.shape, machine)
    assert catalogue.serves(found, machine) or choice.entry.is_bundled
