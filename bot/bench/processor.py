"""What a process had of the processors, by Linux: on a busy machine most of any time is waiting for one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Turns:
    """For how long a process's threads computed, and stood ready without a processor, in seconds."""

    computed_s: float = 0.0
    waited_s: float = 0.0

    def __sub__(self, earlier: Turns) -> Turns:
        return Turns(self.computed_s - earlier.computed_s, self.waited_s - earlier.waited_s)

    def __add__(self, other: Turns) -> Turns:
        return Turns(self.computed_s + other.computed_s, self.waited_s + other.waited_s)


def turns_of(process_id: int) -> Turns:
    """Read it for all threads that live now; nothing where the system doesn't tell."""
    total = Turns()
    for file in Path(f"/proc/{process_id}/task").glob("*/schedstat"):
        try:
            computed_ns, waited_ns, _ = file.read_text(encoding="utf-8").split()
        except (OSError, ValueError):
            continue  # A thread that ended this moment.
        total += Turns(int(computed_ns) / 1e9, int(waited_ns) / 1e9)
    return total
