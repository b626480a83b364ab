"""Estimate what a base needs, and what this machine has, before anything large is allocated (torch-free)."""

from __future__ import annotations

import contextlib
import ctypes
from dataclasses import dataclass
from pathlib import Path

# NF4 with double quantization: 4 bits a weight, 8 bits of scale per 64 weights, 32 bits per 256 scales.
NF4_BYTES_PER_WEIGHT = 0.5 + 1 / 64 + 4 / (64 * 256)
# The interpreter, torch, the tokenizer and activations of one prefill chunk.
PROCESS_BYTES = 400 * 1024**2
# A GPU's 4-bit weights are written in files of this size: no more of them is in main memory at a time.
PIECE_BYTES = 1_000_000_000
# What the driver, a context of CUDA and its libraries take of a card, for each process that uses it.
CONTEXT_BYTES = 600_000_000
# An engine's buffers and recorded graphs on a GPU, beside weights and cache.
ENGINE_BYTES = 1_000_000_000
_CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)


@dataclass(frozen=True, slots=True)
class ParameterCounts:
    """How many weights are quantized (``linear``) and how many stay (embeddings, norms, head)."""

    linear: int
    other: int

    def prepare_bytes(self) -> int:
        """Peak while quantizing on a CPU: the bfloat16 weights beside their 4-bit form."""
        return PROCESS_BYTES + 2 * (self.linear + self.other) + int(NF4_BYTES_PER_WEIGHT * self.linear)

    def prepare_on_gpu_bytes(self) -> int:
        """Peak in main memory while a GPU quantizes: weights pass one by one, the result leaves in pieces.

        A piece is copied from the GPU, and once more as it is written.
        """
        return PROCESS_BYTES + 2 * PIECE_BYTES

    def dense_bytes(self) -> int:
        """Peak while unfolding the 4-bit weights once to float32."""
        return PROCESS_BYTES + 4 * (self.linear + self.other) + int(NF4_BYTES_PER_WEIGHT * self.linear)

    def mapped_bytes(self) -> int:
        """The 4-bit weights and the bfloat16 rest once, in pages that processes share."""
        return PROCESS_BYTES + 2 * self.other + int(NF4_BYTES_PER_WEIGHT * self.linear)

    def cuda_bytes(self) -> int:
        """The 4-bit weights once and the rest in bf16, in the memory of a GPU."""
        return self.mapped_bytes()

    def packed_bytes(self) -> int:
        """The 4-bit weights twice (the CPU kernel copies them while it packs) and the rest in bf16."""
        return PROCESS_BYTES + 2 * self.other + int(2 * NF4_BYTES_PER_WEIGHT * self.linear)


def return_freed() -> None:
    """Give memory that was freed back to the system, which glibc alone does late."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def available_main_memory() -> int:
    """Return the main memory that a new allocation may use, honouring a container's limit."""
    limits = [_available_in_system(), *(_available_in_cgroup(limit, used) for limit, used in _CGROUPS)]
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else 2**62


def total_main_memory() -> int | None:
    """Return the main memory of this machine, or a container's limit; None where nobody says."""
    limits = [_meminfo("MemTotal"), *(_limit_of_cgroup(limit) for limit, _ in _CGROUPS)]
    return min((limit for limit in limits if limit is not None), default=None)


def _available_in_system() -> int | None:
    return _meminfo("MemAvailable")


def _meminfo(name: str) -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        fields = {line.split(":")[0]: line.split(":")[1].split()[0] for line in lines if ":" in line}
        return int(fields[name]) * 1024
    except (OSError, KeyError, IndexError, ValueError):
        return None


def _limit_of_cgroup(limit: Path) -> int | None:
    try:
        total = int(limit.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return total if total < 2**60 else None


def _available_in_cgroup(limit: Path, used: Path) -> int | None:
    """The cgroup's count includes reclaimable file pages, so this errs on the safe side by its cache."""
    try:
        total = limit.read_text(encoding="ascii").strip()
        if total == "max" or int(total) >= 2**60:
            return None
        stat = (limit.parent / "memory.stat").read_text(encoding="ascii").split()
        counts = dict(zip(stat[::2], stat[1::2], strict=False))
        reclaimable = int(counts.get("inactive_file", 0)) + int(counts.get("active_file", 0))
        return int(total) - int(used.read_text(encoding="ascii")) + reclaimable
    except (OSError, ValueError):
        return None


def format_gb(size_bytes: int) -> str:
    """Write a size for a person."""
    return f"{size_bytes / 1e9:.1f} GB"
