"""What a run's process takes: time, processor time, memory, and energy where the machine counts it."""

from __future__ import annotations

import resource
import sys
import threading
import time
from pathlib import Path

from storage.learning.evaluations import ProcessFigures

# Running sums of microjoules, one for each processor package; a part of a package ("intel-rapl:0:1") is in
# its sum already. https://docs.kernel.org/power/powercap/powercap.html
POWERCAP = Path("/sys/class/powercap")
PACKAGES = "*-rapl:[0-9]"
# The sum starts again from 0 after about an hour under load: it has to be read more often than that.
READ_EVERY_S = 60.0
# getrusage(2) counts the resident memory in KiB on Linux and in bytes on macOS.
RSS_UNIT = 1 if sys.platform == "darwin" else 1024


class EnergyMeter:
    """Sums up what the processors use while it runs; `joules` is None where they don't say."""

    def __init__(self, powercap: Path = POWERCAP) -> None:
        self._packages = sorted(powercap.glob(PACKAGES))
        self._last = self._read()
        self._used_uj = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="energy", daemon=True)

    def __enter__(self) -> EnergyMeter:
        if self._last:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    @property
    def joules(self) -> float | None:
        """What was used since the start."""
        if not self._last:
            return None
        self._add()
        return self._used_uj / 1e6

    def _loop(self) -> None:
        while not self._stop.wait(READ_EVERY_S):
            self._add()

    def _add(self) -> None:
        with self._lock:
            now = self._read()
            for package, (energy, whole) in now.items():
                before = self._last.get(package, (energy, whole))[0]
                self._used_uj += energy - before if energy >= before else energy + whole - before
            self._last = now or self._last

    def _read(self) -> dict[Path, tuple[int, int]]:
        """Return each package's sum and where it starts again; empty where one may not be read."""
        try:
            return {
                package: tuple(
                    int((package / name).read_text(encoding="ascii"))
                    for name in ("energy_uj", "max_energy_range_uj")
                )  # type: ignore[misc]
                for package in self._packages
            }
        except (OSError, ValueError):
            return {}


class ProcessMeter:
    """Measures this process and its children from the moment that it is entered."""

    def __init__(self, powercap: Path = POWERCAP) -> None:
        self._energy = EnergyMeter(powercap)
        self._began_s = time.monotonic()
        self._cpu_before_s = _cpu_s()

    def __enter__(self) -> ProcessMeter:
        self._energy.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._energy.__exit__()

    def figures(self) -> ProcessFigures:
        """Return what it took so far; the peak is the process's since its start."""
        energy = self._energy.joules
        return ProcessFigures(
            seconds=round(time.monotonic() - self._began_s, 1),
            cpu_s=round(_cpu_s() - self._cpu_before_s, 1),
            peak_bytes=max(each.ru_maxrss for each in _usages()) * RSS_UNIT,
            gpu_peak_bytes=_gpu_peak_bytes(),
            energy_j=None if energy is None else round(energy, 1),
        )


def _usages() -> tuple[resource.struct_rusage, resource.struct_rusage]:
    return resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)


def _cpu_s() -> float:
    return sum(each.ru_utime + each.ru_stime for each in _usages())


def _gpu_peak_bytes() -> int | None:
    """Return the most that tensors held on the GPU; None where nothing was computed on one."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return int(torch.cuda.max_memory_allocated())
