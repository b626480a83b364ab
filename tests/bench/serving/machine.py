"""Where a figure comes from: processor, cores, instruction sets, versions, and how fast memory is read."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import torch

from bot.serving.model.processors import usable_cores
from trainer.training.forward import torch_threads

# What 4-bit and bf16 kernels choose by.
_FLAGS = (
    "neon",
    "asimddp",
    "bf16",
    "i8mm",
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
)
_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")
# Far larger than any cache.
READ_BYTES = 512 * 1024**2


@dataclass(frozen=True, slots=True)
class Machine:
    """The hardware that a run used: instruction sets that matter here, and the load average of other work."""

    processor: str
    cores: int
    flags: tuple[str, ...]
    memory_gb: float
    load: float
    gpu: str = ""


@dataclass(frozen=True, slots=True)
class Versions:
    """What was compared: Strop's commit and the packages of every environment by name."""

    strop: str
    python: str
    packages: dict[str, str] = field(default_factory=dict)


def describe_machine() -> Machine:
    """Read the machine's description."""
    fields = _cpu_fields()
    present = set((fields.get("flags") or fields.get("Features") or "").split())
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(
        processor=_processor(fields),
        cores=usable_cores(),
        flags=tuple(flag for flag in _FLAGS if flag in present),
        memory_gb=round(pages / 1e9, 1),
        load=round(os.getloadavg()[0], 2),
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else "",
    )


def describe_versions() -> Versions:
    """Read the versions of what runs in this process."""
    packages = {name: metadata.version(name) for name in _PACKAGES}
    return Versions(_commit(), platform.python_version(), packages)


def read_bandwidth(repeats: int = 5) -> float:
    """Return bytes per second at which one core reads a large buffer, by the fastest of three ways.

    Which plain reduction keeps up with the memory differs between processors.
    """
    buffer = torch.ones(READ_BYTES // 4)
    ways: tuple[Callable[[], object], ...] = (lambda: torch.dot(buffer, buffer), buffer.sum, buffer.max)
    times = []
    with torch_threads(1):
        for way in ways:
            way()
            times.append(statistics.median(_timed(way) for _ in range(repeats)))
    return READ_BYTES / min(times)


def _timed(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def _processor(fields: dict[str, str]) -> str:
    """Name the processor; a virtual machine often hides its model, so family and model come along."""
    name = fields.get("model name") or platform.processor() or platform.machine()
    family, model = fields.get("cpu family"), fields.get("model")
    return f"{name} (family {family}, model {model})" if family and model else name


def _cpu_fields() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _commit() -> str:
    """Return the checkout's short commit, with ``+`` where files differ from it; the version elsewhere."""
    root = Path(__file__).resolve().parents[3]
    try:
        shown = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10.0,
        )
    except (OSError, subprocess.SubprocessError):
        return metadata.version("strop")
    return shown.stdout.strip()
