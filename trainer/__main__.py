"""`python -m trainer [--config PATH]`: the schedule, the queue of runs, and the chores around them."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import structlog

from storage.config import Config, load_config
from storage.db.database import Database
from storage.errors import ConfigError, StorageError
from storage.feedback import duels
from storage.learning import checkpoints, runs, trials
from storage.privacy import consent, file_scrubbing
from storage.process import home, logs
from storage.process.locks import TRAINER_LOCK, AlreadyRunningError, ProcessLock
from trainer.model_server import client_for
from trainer.schedule import retention
from trainer.schedule.queue import RunQueue
from trainer.schedule.recovery import ChampionKeeper, reconcile
from trainer.schedule.scheduler import Schedule, scopes

log = structlog.get_logger()

EXIT_CONFIGURATION = 2
TICK_S = 1.0
VOTES_S = 2.0
ERASURES_S = 60.0
CHAMPIONS_S = 5.0
RETENTION_S = 3600.0
ALREADY = "A trainer already works on this data folder (process {pid}): two would train the same runs."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the trainer until SIGTERM or SIGINT; return the exit code (2: bad configuration, or not alone)."""
    parser = argparse.ArgumentParser(prog="strop trainer", description=__doc__)
    parser.add_argument(
        "--config", type=Path, default=None, help="the configuration file (default: strop.toml)"
    )
    path: Path | None = parser.parse_args(arguments).config
    logs.configure("trainer")
    # APScheduler tells of every job that it runs, several a minute; its warnings and errors matter.
    logging.getLogger("apscheduler").setLevel(logging.WARNING)
    try:
        config = load_config(path, os.environ)
        with (
            ProcessLock(config.run / TRAINER_LOCK).acquire(ALREADY),
            Database.open_patiently(config.database) as database,
        ):
            if warning := home.network_warning(config.data):
                log.warning(warning)
            Trainer(database, config, path).run()
    except (ConfigError, AlreadyRunningError) as error:
        print(error, file=sys.stderr)
        return EXIT_CONFIGURATION
    except StorageError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


class Trainer:
    """Puts the parts together: reconcile once, then the queue in this thread and chores in others."""

    def __init__(self, database: Database, config: Config, config_path: Path | None) -> None:
        self._database = database
        self._config = config
        self._config_path = config_path
        self._stop = threading.Event()
        self._keeper = ChampionKeeper(database, config)
        self._queue = RunQueue(
            database,
            self._command,
            owner=f"trainer-{os.getpid()}",
            at_once=config.trainer.parallel_runs,
            nice=config.trainer.nice,
        )

    def run(self) -> None:
        """Work until a signal asks to stop; the present run then goes back into the queue."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop.set())
        reconcile(self._database, self._config)
        schedule = Schedule(self._database, self._config.trainer)
        schedule.start()
        try:
            schedule.every(CHAMPIONS_S, self._keep_champions, "champions")
            schedule.every(VOTES_S, self._settle_votes, "votes")
            schedule.every(ERASURES_S, self._complete_erasures, "erasures")
            schedule.every(RETENTION_S, self._remove_outdated_adapters, "retention")
            log.info("trainer.started", next_run_ms=schedule.next_run_ms())
            while not self._stop.wait(TICK_S):
                self._queue.tick()
        finally:
            self._queue.stop()
            schedule.shutdown()
        log.info("trainer.stopped")

    def _command(self, run: runs.Run) -> list[str]:
        where = [] if self._config_path is None else ["--config", str(self._config_path.absolute())]
        module = "trainer.experiment" if "experiment" in run.settings else "trainer.run"
        return [sys.executable, "-m", module, *where, "--run", run.id]

    def _keep_champions(self) -> None:
        async def check() -> None:
            async with client_for(self._config) as client:
                await self._keeper.check(client)

        asyncio.run(check())

    def _remove_outdated_adapters(self) -> None:
        keep_days = self._config.trainer.keep_refused_days
        retention.remove_outdated(self._database, self._config.adapters, keep_days)

    def _complete_erasures(self) -> None:
        file_scrubbing.complete_pending(self._database, self._config.data)
        # Prompts may be withdrawn in other ways than by a refusal: a channel is closed, a setting changed.
        reference = self._config.discord.training_permission_reference
        if self._database.read(duels.open_prompts):
            self._database.write(lambda db: consent.close_withdrawn(db, reference))
        checkpoints.remove_leftover(self._database, self._config.runs)

    def _settle_votes(self) -> None:
        waiting = self._database.read(
            lambda db: any(runs.awaiting_votes(db, scope) for scope in scopes(db, self._config.trainer))
        )
        watched = self._database.read(trials.open_trials)
        if not waiting and not watched:
            return
        # Imported only when there is something to decide: a trainer that waits needs little memory.
        from trainer.gate import pending_decisions

        pending_decisions.settle_votes(self._database, self._config)
        pending_decisions.settle_holdbacks(self._database, self._config)


if __name__ == "__main__":
    sys.exit(main())
