"""How long a process computed, by Linux: on a busy machine most of any time is waiting for a processor."""

from __future__ import annotations

from pathlib import Path


def computed_s(process_id: int) -> float:
    """Return the seconds that the threads computed which live now; 0.0 where the system doesn't tell."""
    total_ns = 0
    for file in Path(f"/proc/{process_id}/task").glob("*/schedstat"):
        try:
            total_ns += int(file.read_text(encoding="utf-8").split()[0])
        except (OSError, ValueError, IndexError):
            continue  # A thread that ended this moment.
    return total_ns / 1e9
