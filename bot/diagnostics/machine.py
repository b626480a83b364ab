"""What this machine has, asked without a model library: memory, disks, a GPU, installed packages."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from importlib import metadata, util
from pathlib import Path

GIB = 1024**3


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


def memory_limit() -> int | None:
    """Return the bytes that this process may use: the machine's memory or the container's limit."""
    meminfo = _lines(Path("/proc/meminfo"))
    limits = [int(line.split()[1]) * 1024 for line in meminfo if line.startswith("MemTotal:")]
    for path in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        limits += [int(line) for line in _lines(path) if line.strip().isdigit()]
    return min(limits, default=None)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


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
