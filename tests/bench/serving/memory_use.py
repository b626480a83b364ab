"""What processes hold in memory, with pages that several share divided among them (PSS; Linux only)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """One process at one moment, in bytes: its proportional share, and its pages that others map too."""

    pss: int
    shared: int
    private: int


def read_memory_use(pid: int) -> MemoryUse:
    """Read ``/proc/<pid>/smaps_rollup`` (https://docs.kernel.org/filesystems/proc.html).

    Raises:
        OSError: no such process, another user's, or not Linux.
    """
    return parse_smaps(Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii"))


def parse_smaps(text: str) -> MemoryUse:
    """Add up the fields of a rollup; sizes in it are in KiB."""
    fields: dict[str, int] = {}
    for line in text.splitlines()[1:]:
        name, _, value = line.partition(":")
        fields[name] = int(value.split()[0]) * 1024
    return MemoryUse(
        pss=fields["Pss"],
        shared=fields["Shared_Clean"] + fields["Shared_Dirty"],
        private=fields["Private_Clean"] + fields["Private_Dirty"],
    )
