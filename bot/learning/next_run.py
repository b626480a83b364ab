"""Where the next training run stands: what it still needs, and when it starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bot.charts.status_chart import Need
from bot.language.durations import time_to_come
from bot.language.texts import mark, tr
from storage.db.clock import now_ms

_PHASES = {
    "snapshot": mark("Snapshot"),
    "train": mark("Training"),
    "evaluate": mark("Evaluation"),
    "decide": mark("Decision"),
    "swap": mark("Swap"),
}


@dataclass(frozen=True, slots=True)
class Outlook:
    """The loop at a glance, and when its clock starts the next run (None: never)."""

    glance: dict[str, Any]
    due_ms: int | None
    min_new_ratings: int
    trainer_alive: bool

    @property
    def running(self) -> Need | None:
        """The phase that a run is in, in percent; None while no run is on."""
        run = self.glance["run"]
        if run is None or run["state"] != "running":
            return None
        return Need(tr(_PHASES.get(run["phase"], _PHASES["snapshot"])), round(run["progress"] * 100), 100)


def needs(outlook: Outlook) -> list[Need]:
    """Return what a run needs; new ratings only where they start one."""
    (liked, min_liked), (raters, min_raters) = (
        outlook.glance["needs"]["liked"],
        outlook.glance["needs"]["raters"],
    )
    found = [Need(tr("Liked or corrected"), liked, min_liked), Need(tr("Raters"), raters, min_raters)]
    if outlook.min_new_ratings:
        new = outlook.glance["ratings"]["new_since_run"]
        found.append(Need(tr("New ratings"), new, outlook.min_new_ratings))
    return found


def next_run(outlook: Outlook, *, stamped: bool = False) -> str:
    """Say when the next run starts; `stamped` adds the time as each reader's Discord shows it."""
    run, after = outlook.glance["run"], outlook.min_new_ratings
    if run is not None:
        return tr("it is on") if run["state"] == "running" else tr("it waits for the trainer")
    if not outlook.trainer_alive:
        return tr("when the trainer is back; it is not running")
    if outlook.due_ms is None:
        return tr("after {count} new ratings", count=after) if after else tr("only when /retrain asks for it")
    time = time_to_come((outlook.due_ms - now_ms()) / 60_000)
    if stamped:
        time = f"{time} (<t:{outlook.due_ms // 1000}:f>)"
    if not after:
        return tr("by the clock in {time}", time=time)
    return tr("by the clock in {time}, or after {count} new ratings", time=time, count=after)
