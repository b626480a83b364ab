"""What a run's process takes is measured: processor time of children too, and energy across a wrap."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from trainer.placement.process_figures import EnergyMeter, ProcessMeter


def package(powercap: Path, name: str, energy_uj: int) -> None:
    folder = powercap / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "energy_uj").write_text(f"{energy_uj}\n")
    (folder / "max_energy_range_uj").write_text("10000000\n")


def test_processor_time_counts_children_and_memory_is_in_bytes(tmp_path: Path) -> None:
    with ProcessMeter(tmp_path) as meter:
        busy = "import time\nwhile time.process_time() < 0.5: pass"
        subprocess.run([sys.executable, "-c", busy], check=True)
        took = meter.figures()
    assert 0.4 < took.cpu_s < 5 and took.seconds >= 0.4
    assert 10e6 < took.peak_bytes < 50e9
    assert took.energy_j is None, "this machine does not say"


def test_energy_is_summed_over_packages_and_across_the_wrap(tmp_path: Path) -> None:
    package(tmp_path, "intel-rapl:0", 9_000_000)
    package(tmp_path, "intel-rapl:1", 1_000_000)
    package(tmp_path, "intel-rapl:0:0", 0)
    with EnergyMeter(tmp_path) as meter:
        package(tmp_path, "intel-rapl:0", 2_000_000)
        package(tmp_path, "intel-rapl:1", 1_500_000)
        package(tmp_path, "intel-rapl:0:0", 9_000_000)
        assert meter.joules == 3.5, "3 J across the wrap and 0.5 J; a part of a package is not counted twice"


def test_energy_that_may_not_be_read_is_absent(tmp_path: Path) -> None:
    (tmp_path / "intel-rapl:0").mkdir()
    with EnergyMeter(tmp_path) as meter:
        assert meter.joules is None
