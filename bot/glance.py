"""The loop in words: what /status and /adapters show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bot.retelling import retell
from bot.texts import mark, number, tr
from storage import overview
from storage.adapters import Adapter

PHASES = {
    "snapshot": mark("Snapshot of the rated replies"),
    "train": mark("Training the challenger"),
    "evaluate": mark("Evaluating on held-out conversations"),
    "decide": mark("Deciding"),
    "swap": mark("Swapping"),
    "votes": mark("Blind votes"),
}
"""The phases of a run in order, as people read them."""

_LIMIT = 1900


def status_lines(glance: dict[str, Any], *, server: str, trainer_alive: bool, recovered: int) -> str:
    """Return the loop at a glance with the state of the other processes, within one Discord message."""
    lines = [retell(overview.status_text(glance))]
    if recovered:
        lines.append(tr("Recovered: {count} ratings that were given while I was away", count=recovered))
    lines.append(tr("Model server: {state}", state=server))
    lines.append(
        tr("Trainer: running") if trainer_alive else tr("Trainer: not running; runs wait until it is back")
    )
    return "\n".join(lines)[:_LIMIT]


def adapter_lines(
    listing: Sequence[Adapter], champion: str | None, history: Sequence[Mapping[str, Any]], *, total: int
) -> str:
    """Return one line an adapter: which answers, its state, its score against the champion of its time."""
    if not listing:
        return tr("There are no adapters yet: the base model answers. `/retrain` trains the first one.")
    scores = {entry["adapter_id"]: entry for entry in history if entry.get("adapter_id")}
    lines = [
        tr("The base model answers.")
        if champion is None
        else tr("Adapter `{adapter}` answers.", adapter=champion)
    ]
    for adapter in listing:
        bullet = "▶" if adapter.id == champion else "•"
        rehearsed = tr(", rehearsal") if adapter.rehearsal else ""
        score = _score(scores.get(adapter.id))
        when = f"<t:{adapter.created_ms // 1000}:R>"
        lines.append(f"{bullet} `{adapter.id}` {tr(adapter.state)}{rehearsed}{score}, {when}")
    if total > len(listing):
        lines.append(tr("… and {count} older ones", count=total - len(listing)))
    return "\n".join(lines)[:_LIMIT]


def duration(seconds: float) -> str:
    """Return a time span as people say it."""
    if seconds < 90:
        return tr("{count} s", count=max(1, round(seconds)))
    if seconds < 5400:
        return tr("{count} min", count=round(seconds / 60))
    return tr("{count} h", count=number(seconds / 3600, ".1f"))


def _score(entry: Mapping[str, Any] | None) -> str:
    if entry is None or entry.get("value") is None:
        return ""
    interval = ""
    if entry.get("low") is not None and entry.get("high") is not None:
        interval = tr(
            " ({low} to {high})", low=number(entry["low"], "+.2f"), high=number(entry["high"], "+.2f")
        )
    return f", {number(entry['value'], '+.2f')}{interval}"
