"""A leased run: which steps it takes, and how it ended, whatever happens in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import sqlite_utils
import structlog

from bot.serving.errors import ServingError
from storage.config import Config
from storage.db.database import Database
from storage.errors import RunNotActiveError, StorageError
from storage.learning import checkpoints, evaluations, runs, unregistered_adapters
from storage.learning.runs import Run
from storage.sentences import Sentence
from trainer.errors import NotYetError, RunCancelledError, TrainerError
from trainer.placement.process_figures import ProcessMeter
from trainer.report import adapter_card
from trainer.run.heartbeat import Heartbeat
from trainer.run.judge import Judge
from trainer.run.repeat import Repeat
from trainer.run.settings import with_overrides
from trainer.run.steps import RunSteps

log = structlog.get_logger()

# Runs of another kind than training, judging and swapping, by the setting that asks for them.
KINDS: dict[str, type[RunSteps]] = {"repeat": Repeat, "judge": Judge}

FAULT = Sentence("The run failed because of a bug in the trainer; its log says where.")


def execute(
    database: Database, config: Config, run_id: str, *, steps: Callable[..., RunSteps] | None = None
) -> Run:
    """Take a leased run from snapshot to swap and record how it ended, and what it took.

    What goes wrong is written to the run's row as one sentence; only storage errors are raised. `steps` makes
    another kind of run (the benchmark's saboteurs): it takes the arguments of RunSteps.
    """
    run = database.read(lambda db: runs.expect(db, run_id))
    log.info("run.begins", run_id=run.id, scope=run.scope, trigger=run.trigger)
    with ProcessMeter() as meter:
        _take_steps(database, config, run, steps)
        took = meter.figures()
        database.write(lambda db: evaluations.record_process(db, run.id, took))
    ended = database.read(lambda db: runs.expect(db, run.id))
    if ended.state not in ("queued", "running"):
        checkpoints.remove(config.runs / run.id)
    adapter_card.write(database, config, run.id)
    log.info(
        "run.done",
        run_id=run.id,
        outcome=ended.outcome,
        adapter_id=ended.adapter_id,
        message=ended.message,
        **asdict(took),
    )
    return ended


def _take_steps(database: Database, config: Config, run: Run, steps: Callable[..., RunSteps] | None) -> None:
    try:
        with Heartbeat(database, run.id, run.lease_owner or "") as heartbeat:
            kind = steps or next((each for key, each in KINDS.items() if key in run.settings), RunSteps)
            kind(database, with_overrides(config, run.settings), run, heartbeat).all()
    except RunCancelledError as error:
        log.info("run.cancelled", run_id=run.id, message=str(error))
    except NotYetError as error:
        message = Sentence.of(error)
        _finish(database, run, lambda db: runs.finish(db, run.id, outcome="not_yet", message=message))
    except (TrainerError, ServingError) as error:
        _fail(database, run, Sentence.of(error), error)
    except StorageError:
        raise
    except Exception as error:  # the process's boundary: the run's row must say that it failed
        log.exception("run failed", run_id=run.id)
        _fail(database, run, FAULT, error)
    finally:
        _clear_interim(database, config, run.id)


def _clear_interim(database: Database, config: Config, run_id: str) -> None:
    """Remove what the run served while it trained and did not register."""
    known = database.read(lambda db: {str(row["id"]) for row in db.query("select id from adapters")})
    unregistered_adapters.remove(config.runs / run_id, config.adapters, known)


def _finish(database: Database, run: Run, work: Callable[[sqlite_utils.Database], object]) -> None:
    """Write a run's end unless somebody ended it first."""
    try:
        database.write(work)
    except RunNotActiveError as error:
        log.info("run.over_already", run_id=run.id, message=str(error))


def _fail(database: Database, run: Run, sentence: Sentence, error: Exception) -> None:
    if sentence.endswith((".", "!", "?")):
        message = Sentence("{before} The champion was not changed.", before=sentence)
    else:
        message = Sentence("{before}. The champion was not changed.", before=sentence)
    technical = f"{type(error).__name__}: {error}"[:2000]
    _finish(database, run, lambda db: runs.fail(db, run.id, error=technical, message=message))
