"""Whole runs of the real trainer on a real Ray cluster: one is cancelled, of one a worker is killed.

Needs an environment with Ray: `make test-scale`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from storage.config import Config, load_config
from storage.db.database import Database
from storage.learning import adapters, checkpoints, runs
from storage.learning.runs import Run
from tests.trainer import loop
from tests.trainer.loop import SCOPE, SYSTEM
from tests.trainer.placement.test_ray import Cluster

pytestmark = [pytest.mark.scale, pytest.mark.timeout(3600)]
PATIENCE_S = 1800.0
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
where = "ray"
ray_address = "ray://127.0.0.1:{port}"
ray_workers = 2
ray_models = "{models}"
interval_hours = 0
min_new_ratings = 0
min_liked = 3
min_raters = 2
rank = 4
alpha = 8
max_length = 160
checkpoint_seconds = 1e-9
[gate]
max_prompts = 16
max_new_tokens = 8
bootstrap = 200
generation_minutes = 0.5
"""


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "5" * 64)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    started = Cluster()
    yield started
    started.kill()
    shutil.rmtree(started.folder, ignore_errors=True)


class Trainer:
    """`python -m trainer` and its database."""

    def __init__(self, config: Config, database: Database, process: subprocess.Popen[bytes]) -> None:
        self.config, self.database, self._process = config, database, process

    def queued(self, **settings: Any) -> str:
        return self.database.write(
            lambda db: (
                runs.enqueue(
                    db, scope=SCOPE, trigger="manual", requested_by="test", settings={"trainer": settings}
                ).id
            )
        )

    def run(self, run_id: str) -> Run:
        return self.database.read(lambda db: runs.expect(db, run_id))

    def until(self, condition: Callable[[], object]) -> None:
        ends_at = time.monotonic() + PATIENCE_S
        while not condition():
            assert self._process.poll() is None and time.monotonic() < ends_at
            time.sleep(0.1)

    def has_trained(self, run_id: str) -> bool:
        """Whether a checkpoint of the cluster's has come back; fails where the run is over before."""
        run = self.run(run_id)
        assert run.state in ("queued", "running"), (run.message, run.error)
        return (self.config.runs / run_id / checkpoints.FILE).exists()


@pytest.fixture
def trainer(cluster: Cluster, tmp_path: Path, tiny_source: Path, tiny_folder: Path) -> Iterator[Trainer]:
    """A trainer with a model server and a rated community, all of them real processes."""
    file, home = tmp_path / "strop.toml", tmp_path / "data"
    file.write_text(
        SETTINGS.format(base=tiny_source, system=SYSTEM, port=cluster.port, models=tiny_folder.parent)
    )
    environment = {**os.environ, "STROP_HOME": str(home)}
    config = load_config(file, environment)
    shutil.copytree(tiny_folder, config.models / tiny_folder.name)
    server = loop.serve(config)
    with Database.open(config.database) as database:
        database.write(lambda db: loop.community(db, 40))
        log = (tmp_path / "trainer.log").open("wb")
        process = subprocess.Popen(
            [sys.executable, "-m", "trainer", "--config", str(file)], env=environment, stderr=log, stdout=log
        )
        yield Trainer(config, database, process)
        loop.stop(process)
    loop.stop(server)


def test_a_run_is_cancelled_and_the_next_one_outlives_a_worker_and_is_judged(
    cluster: Cluster, trainer: Trainer
) -> None:
    database, config = trainer.database, trainer.config
    cancelled = trainer.queued(epochs=4000)
    trainer.until(lambda: trainer.has_trained(cancelled))
    assert database.write(lambda db: runs.cancel(db, cancelled, "test"))
    trainer.until(lambda: not cluster.processes("ray::RayTrainWorker"))
    assert trainer.run(cancelled).outcome == "cancelled"
    assert not list(config.adapters.glob("*"))

    run_id = trainer.queued(epochs=20)
    trainer.until(lambda: trainer.has_trained(run_id))
    os.kill(cluster.processes("ray::RayTrainWorker")[-1], signal.SIGKILL)
    trainer.until(lambda: trainer.run(run_id).state not in ("queued", "running"))
    ended = trainer.run(run_id)
    assert ended.outcome in ("votes", "refused", "promoted"), (ended.message, ended.error)
    adapter = database.read(lambda db: adapters.get(db, ended.adapter_id or ""))
    assert adapter is not None
    assert [path.name for path in config.adapters.iterdir()] == [adapter.id]
    assert not cluster.files_with(b"Tell me about")
