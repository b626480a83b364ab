"""How many processors there are for us; torch-free, for who starts processes as for who starts threads."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Return how many cores this process may run on: its affinity where the system tells, else all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
