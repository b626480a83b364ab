"""What a run takes, estimated from the base's shape and this machine before any run has shown it."""

from __future__ import annotations

from bot.diagnostics.machine import this_machine
from bot.serving.model import catalogue
from bot.serving.model.catalogue import Workload
from storage.config import Config
from storage.learning.dry_run import Forecast


def workload(config: Config) -> Workload:
    """Return what the configuration asks of a base."""
    return Workload(
        context_tokens=config.model.context_tokens,
        slots=config.model.slots,
        rank=config.trainer.rank,
        epochs=config.trainer.epochs or catalogue.USUAL_EPOCHS,
        train_minutes=config.trainer.max_train_minutes,
        judge_minutes=config.gate.generation_minutes,
    )


def run_estimate(config: Config, *bases: str) -> Forecast | None:
    """Return what a run of the first known of these bases takes; None where none is in the catalogue."""
    entry = next(filter(None, map(catalogue.find, filter(None, bases))), None)
    if entry is None:
        return None
    found = catalogue.needs(entry.shape, this_machine(config.model.device), workload(config))
    seconds = None if found.run_minutes is None else found.run_minutes * 60
    return Forecast(seconds, found.train_bytes)
