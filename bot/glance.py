"""The loop in words: what /status shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from storage import overview

PHASES = {
    "snapshot": "Snapshot of the rated replies",
    "train": "Training the challenger",
    "evaluate": "Evaluating on held-out conversations",
    "decide": "Deciding",
    "swap": "Swapping",
    "votes": "Blind votes",
}
"""The phases of a run in order, as people read them."""

_LIMIT = 1900


def status_lines(
    glance: dict[str, Any], *, server: str, trainer_alive: bool, recovered: int, more: Sequence[str] = ()
) -> str:
    """Return the loop at a glance with the state of the other processes, within one Discord message."""
    lines = [overview.status_text(glance)]
    if recovered:
        lines.append(f"Recovered: {recovered} ratings that were given while I was away")
    lines += more
    lines.append(f"Model server: {server}")
    lines.append(f"Trainer: {'running' if trainer_alive else 'not running; runs wait until it is back'}")
    return "\n".join(lines)[:_LIMIT]


def duration(seconds: float) -> str:
    """Return a time span as people say it."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
