"""The systemd units, judged by systemd's own tools without being run."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from bot.cli.launch.supervisor import PERMANENT_EXITS

DEPLOY = Path(__file__).parent.parent.parent / "deploy"
UNITS = sorted(DEPLOY.glob("*.service"))
GPU_UNITS = [unit for unit in UNITS if unit.stem != "strop-bot"]
# systemd-analyze counts in tenths: 2.0.
MOST_EXPOSURE = 20

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )


def settings(unit: Path) -> dict[str, list[str]]:
    """Directive -> its values in order; comments and section names are dropped."""
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        if line and not line.startswith(("#", "[")):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def test_there_is_one_unit_for_everything_and_one_for_each_process() -> None:
    expected = ["strop-bot.service", "strop-serve.service", "strop-trainer.service", "strop.service"]
    assert [unit.name for unit in UNITS] == expected


@needs_systemd
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_is_exposed_at_most_2_of_10(unit: Path) -> None:
    result = analyze("security", "--offline=true", "--no-pager", f"--threshold={MOST_EXPOSURE}", unit)
    assert result.returncode == 0, result.stdout + result.stderr


@needs_systemd
@pytest.mark.parametrize("unit", GPU_UNITS, ids=lambda unit: unit.name)
def test_a_unit_stays_that_tight_with_the_gpu_drop_in(unit: Path, tmp_path: Path) -> None:
    dropped_in = tmp_path / unit.name
    dropped_in.write_text(unit.read_text() + (DEPLOY / "gpu.conf").read_text())
    result = analyze("security", "--offline=true", "--no-pager", f"--threshold={MOST_EXPOSURE}", dropped_in)
    assert result.returncode == 0, result.stdout + result.stderr


@needs_systemd
def test_systemd_finds_nothing_wrong_but_that_strop_is_not_installed_there() -> None:
    result = analyze("verify", "--man=no", *UNITS)
    complaints = [line for line in result.stderr.splitlines() if line.startswith("strop")]
    assert [line for line in complaints if "/opt/strop/.venv/bin/strop is not executable" not in line] == []


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_no_unit_runs_as_root_or_carries_a_secret(unit: Path) -> None:
    found = settings(unit)
    assert found["User"] == ["strop"]
    assert not any("DISCORD_TOKEN=" in value for value in found["Environment"])
    assert found["LoadCredential"] == ["discord-token:/etc/strop/discord-token"]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_every_unit_leaves_time_to_drain_and_comes_back(unit: Path) -> None:
    found = settings(unit)
    assert found["Restart"] == ["on-failure"]
    assert int(found["TimeoutStopSec"][0]) > 10
    assert found["KillMode"] == ["mixed"]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_no_unit_restarts_what_a_restart_cannot_cure(unit: Path) -> None:
    [codes] = settings(unit)["RestartPreventExitStatus"]
    assert {int(code) for code in codes.split()} == PERMANENT_EXITS
