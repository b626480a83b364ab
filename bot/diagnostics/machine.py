"""What this machine has, asked without a model library: memory, disks, a GPU, installed packages."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from importlib import metadata, util
from pathlib import Path

from bot.serving.model.catalogue import Machine
from bot.serving.model.memory import total_main_memory
from bot.serving.model.processors import usable_cores

GIB = 1024**3
# Where the system doesn't say how much there is.
UNKNOWN_MEMORY = 8 * GIB


def installed_version(name: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        # A source folder on the path has no metadata but would be imported all the same.
        return "unknown version" if util.find_spec(name.replace("-", "_")) else None


def installed_packages() -> set[str]:
    """Return the names of all installed packages, in lower case."""
    return {str(found.metadata["Name"] or "").lower() for found in metadata.distributions()}


def first_gpu(which: Callable[[str], str | None] = shutil.which) -> tuple[str, int] | None:
    """Return name and memory in bytes of the first GPU, without loading torch."""
    program = which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
        name, _, mebibytes = answer.splitlines()[0].rpartition(",")
        return name.strip(), int(mebibytes) * 1024**2
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def this_machine(device: str) -> Machine:
    """Return what a base can run on here; with `device` "cpu" a GPU doesn't count."""
    gpu = first_gpu() if device != "cpu" else None
    memory = total_main_memory() or UNKNOWN_MEMORY
    return Machine(usable_cores(), memory, gpu[1] if gpu else 0)


def nearest_existing(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def block_device(folder: Path) -> Path | None:
    """Return the block device under a folder as sysfs knows it, or None where there is none to see."""
    number = folder.stat().st_dev
    device = Path(f"/sys/dev/block/{number >> 8 & 0xFFF}:{number & 0xFF | number >> 12 & 0xFFF00}")
    return device.resolve() if device.exists() else None


def is_encrypted(device: Path) -> bool:
    """Whether the device or one that it is built on is dm-crypt."""
    if any(line.startswith("CRYPT-") for line in _lines(device / "dm" / "uuid")):
        return True
    slaves = device / "slaves"
    return slaves.is_dir() and any(is_encrypted(slave.resolve()) for slave in slaves.iterdir())


def size_text(size_bytes: int) -> str:
    """Return a size as people read it."""
    return f"{size_bytes / GIB:.1f} GiB" if size_bytes >= GIB / 10 else f"{size_bytes / 1024**2:.1f} MiB"
