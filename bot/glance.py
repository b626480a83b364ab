"""The loop in words: what /status and /adapters show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from storage import overview
from storage.adapters import Adapter

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


def status_lines(glance: dict[str, Any], *, server: str, trainer_alive: bool, recovered: int) -> str:
    """Return the loop at a glance with the state of the other processes, within one Discord message."""
    lines = [overview.status_text(glance)]
    if recovered:
        lines.append(f"Recovered: {recovered} ratings that were given while I was away")
    lines.append(f"Model server: {server}")
    lines.append(f"Trainer: {'running' if trainer_alive else 'not running; runs wait until it is back'}")
    return "\n".join(lines)[:_LIMIT]


def adapter_lines(
    listing: Sequence[Adapter], champion: str | None, history: Sequence[Mapping[str, Any]], *, total: int
) -> str:
    """Return one line an adapter: which answers, its state, its score against the champion of its time."""
    if not listing:
        return "There are no adapters yet: the base model answers. `/retrain` trains the first one."
    scores = {entry["adapter_id"]: entry for entry in history if entry.get("adapter_id")}
    lines = ["The base model answers." if champion is None else f"Adapter `{champion}` answers."]
    for adapter in listing:
        mark = "▶" if adapter.id == champion else "•"
        rehearsed = ", rehearsal" if adapter.rehearsal else ""
        score = _score(scores.get(adapter.id))
        lines.append(
            f"{mark} `{adapter.id}` {adapter.state}{rehearsed}{score}, <t:{adapter.created_ms // 1000}:R>"
        )
    if total > len(listing):
        lines.append(f"… and {total - len(listing)} older ones")
    return "\n".join(lines)[:_LIMIT]


def duration(seconds: float) -> str:
    """Return a time span as people say it."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _score(entry: Mapping[str, Any] | None) -> str:
    if entry is None or entry.get("value") is None:
        return ""
    interval = ""
    if entry.get("low") is not None and entry.get("high") is not None:
        interval = f" ({entry['low']:+.2f} to {entry['high']:+.2f})"
    return f", {entry['value']:+.2f}{interval}"
