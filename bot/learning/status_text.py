"""The loop in words: what /status shows."""

from __future__ import annotations

from collections.abc import Sequence

from bot.language.sentences import translate
from bot.language.texts import mark, tr
from storage.learning import loop_status
from storage.learning.loop_status import LoopStatus

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


def status_lines(
    status: LoopStatus, *, server: str, trainer_alive: bool, recovered: int, more: Sequence[str] = ()
) -> str:
    """Return where the loop stands, with the state of the other processes, within one Discord message."""
    lines = [translate(line) for line in loop_status.status_lines(status)]
    if recovered:
        lines.append(tr("Recovered: {count} ratings that were given while I was away", count=recovered))
    lines += more
    lines.append(tr("Model server: {state}", state=server))
    lines.append(
        tr("Trainer: running") if trainer_alive else tr("Trainer: not running; runs wait until it is back")
    )
    return "\n".join(lines)[:_LIMIT]
