"""Two communities' runs at the same time, by the real trainer and one model server; one of them is killed.

It trains twice on two cores: `make test-scale`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlite_utils

from storage.config import load_config
from storage.db import sql
from storage.db.database import Database
from storage.learning import adapters, checkpoints, runs
from storage.learning.runs import Run
from tests.trainer import loop
from trainer.run.memory_claims import FOLDER, MemoryClaims

pytestmark = [pytest.mark.scale, pytest.mark.timeout(3600)]
PATIENCE_S = 1800.0
GUILDS = (100, 101)
SETTINGS = """
[model]
base = "{base}"
device = "cpu"
context_tokens = 512
slots = 4
[chat]
context_tokens = 256
system_prompt = "{system}"
[server]
port = 0
[trainer]
parallel_runs = 2
interval_hours = 0
min_new_ratings = 0
min_liked = 3
min_raters = 2
rank = 4
alpha = 8
epochs = 30
max_length = 160
ranked_replies = 96
checkpoint_seconds = 1e-9
[gate]
max_prompts = 16
max_new_tokens = 8
bootstrap = 200
generation_minutes = 0.5
"""


class Trainer:
    """`python -m trainer`, its database, and the runs of both communities."""

    def __init__(self, database: Database, process: subprocess.Popen[bytes]) -> None:
        self.database, self._process = database, process

    def enqueue(self) -> list[str]:
        def work(db: sqlite_utils.Database) -> list[str]:
            scopes = [f"guild:{guild}" for guild in GUILDS]
            made = [runs.enqueue(db, scope=each, trigger="manual", requested_by="test") for each in scopes]
            return [run.id for run in made]

        return self.database.write(work)

    def run(self, run_id: str) -> Run:
        return self.database.read(lambda db: runs.expect(db, run_id))

    def until(self, condition: Callable[[], object]) -> None:
        """Wait; fails where a run has failed meanwhile."""
        ends_at = time.monotonic() + PATIENCE_S
        while not condition():
            assert self._process.poll() is None and time.monotonic() < ends_at
            assert not self.database.read(
                lambda db: sql.many(db, "SELECT error FROM runs WHERE state = 'failed'")
            )
            time.sleep(0.05)

    def process_of(self, run_id: str) -> int | None:
        """The process of a run, by its command line."""
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().split(b"\0")
            except OSError:
                continue
            if b"trainer.run" in words and run_id.encode() in words:
                return int(path.parent.name)
        return None


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def trainer(home: Path, tmp_path: Path, tiny_source: Path) -> Iterator[Trainer]:
    file = tmp_path / "strop.toml"
    file.write_text(SETTINGS.format(base=tiny_source, system=loop.SYSTEM))
    environment = {**os.environ, "STROP_HOME": str(home)}
    config = load_config(file, environment)
    server = loop.serve(config)
    with Database.open(config.database) as database, (tmp_path / "trainer.log").open("wb") as log:
        for guild in GUILDS:
            database.write(lambda db, guild=guild: loop.community(db, 40, guild=guild))
        command = [sys.executable, "-m", "trainer", "--config", str(file)]
        process = subprocess.Popen(command, env=environment, stderr=log, stdout=log)
        yield Trainer(database, process)
        loop.stop(process)
    loop.stop(server)


def test_two_communities_train_at_once_and_each_ends_with_its_own_adapter(
    trainer: Trainer, home: Path
) -> None:
    config_run = home / "playground" / "run"
    # Somebody claims all the memory that there is: both wait for it, and say so.
    other = MemoryClaims(config_run, "other", lambda: None)
    other.claim("cpu", lambda taken: (None, 2**60))
    ids = trainer.enqueue()
    waits = "waiting for memory that another run needs"
    trainer.until(lambda: all(trainer.run(run_id).note == waits for run_id in ids))
    assert all(trainer.run(run_id).state == "running" for run_id in ids)
    other.release()

    killed, undisturbed = ids
    checkpoint = home / "playground" / "runs" / killed / checkpoints.FILE
    trainer.until(checkpoint.exists)
    pid = trainer.process_of(killed)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    trainer.until(lambda: trainer.process_of(killed) not in (None, pid))
    trainer.until(lambda: all(trainer.run(each).state not in ("queued", "running") for each in ids))
    for run_id, guild in zip(ids, GUILDS, strict=True):
        ended = trainer.run(run_id)
        assert ended.outcome in ("votes", "refused", "promoted"), (ended.message, ended.error)
        made = trainer.database.read(lambda db, ended=ended: adapters.get(db, ended.adapter_id or ""))
        assert made is not None and made.scope == f"guild:{guild}"
    first, second = (trainer.run(each) for each in ids)
    assert first.adapter_id != second.adapter_id
    assert first.started_ms is not None and second.finished_ms is not None
    assert trainer.run(undisturbed).attempts == 1
    assert list((config_run / FOLDER).glob("*.json")) == []
