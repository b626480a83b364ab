"""Where the next training run stands: what it still needs, and when it starts."""

from __future__ import annotations

from dataclasses import dataclass

from bot.charts.status_chart import Need
from bot.language.durations import time_to_come
from bot.language.texts import mark, tr
from storage.db.clock import now_ms
from storage.learning.loop_status import LoopStatus

_PHASES = {
    "snapshot": mark("Snapshot"),
    "train": mark("Training"),
    "evaluate": mark("Evaluation"),
    "decide": mark("Decision"),
    "swap": mark("Swap"),
}


@dataclass(frozen=True, slots=True)
class Outlook:
    """Where the loop stands, and when its clock starts the next run (None: never)."""

    status: LoopStatus
    due_ms: int | None
    min_new_ratings: int
    trainer_alive: bool

    @property
    def running(self) -> Need | None:
        """The phase that a run is in, in percent; None while no run is on."""
        run = self.status.run
        if run is None or run.state != "running":
            return None
        return Need(tr(_PHASES.get(run.phase or "", _PHASES["snapshot"])), round(run.progress * 100), 100)


def needs(outlook: Outlook) -> list[Need]:
    """Return what a run needs; new ratings only where they start one."""
    ready = outlook.status.ready
    found = [
        Need(tr("Liked or corrected"), ready.liked, ready.min_liked),
        Need(tr("Raters"), ready.raters, ready.min_raters),
    ]
    if outlook.min_new_ratings:
        found.append(Need(tr("New ratings"), outlook.status.new_ratings, outlook.min_new_ratings))
    return found


def next_run(outlook: Outlook, *, stamped: bool = False) -> str:
    """Say when the next run starts; `stamped` adds the time as each reader's Discord shows it."""
    run, after = outlook.status.run, outlook.min_new_ratings
    if run is not None:
        return tr("one is on now") if run.state == "running" else tr("one waits for the trainer")
    if not outlook.trainer_alive:
        return tr("when the trainer is back; it is not running")
    if outlook.due_ms is None:
        return tr("after {count} new ratings", count=after) if after else tr("only when /retrain asks for it")
    time = time_to_come((outlook.due_ms - now_ms()) / 60_000)
    if stamped:
        time = f"{time} (<t:{outlook.due_ms // 1000}:f>)"
    if not outlook.status.new_ratings:
        # The clock starts no run that would repeat the last one; the sample's ratings don't count either.
        time = tr("{time} if somebody rates before then", time=time)
    if not after:
        return tr("by the clock in {time}", time=time)
    return tr("by the clock in {time}, or after {count} new ratings", time=time, count=after)
