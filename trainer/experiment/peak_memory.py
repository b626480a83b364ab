"""The most memory that a training has taken: of this process, or of the GPU that it trains on."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")
# Writing 5 there sets the peak back to what is resident now (proc_pid_clear_refs(5)).
CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class PeakMemory:
    """Measured from :meth:`begin` on."""

    @classmethod
    def begin(cls) -> PeakMemory:
        """Forget the peaks of before; where the system forbids it the process's own peak counts whole."""
        with contextlib.suppress(OSError):
            CLEAR.write_text("5", encoding="ascii")
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        return cls()

    def mib(self) -> int:
        """Return the peak since then: the GPU's where it was used, else the process's (0: not known)."""
        if torch.cuda.is_available() and (used := torch.cuda.max_memory_allocated()):
            return round(used / 2**20)
        try:
            lines = STATUS.read_text(encoding="ascii").splitlines()
        except OSError:
            return 0
        found = next((line.split()[1] for line in lines if line.startswith("VmHWM:")), "0")
        return round(int(found) / 1024)
