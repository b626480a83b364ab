"""A whole run whose training takes place elsewhere: only its ranked replies are asked of the model server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.db.database import Database
from storage.learning import checkpoints, unregistered_adapters
from tests.trainer import loop
from tests.trainer.loop import Deployment
from tests.trainer.placement.test_elsewhere import OtherFolder
from trainer.on_policy import ranking
from trainer.run.execution import execute
from trainer.run.steps import RunSteps


@pytest.fixture
def deployment(server: Path, tiny_source: Path) -> Iterator[Deployment]:
    config = loop.configured(server, tiny_source)
    with Database.open(config.database) as database:
        yield Deployment(config, database)


def test_a_run_trained_elsewhere_is_judged_here_and_repeats_here_bit_for_bit(
    deployment: Deployment, tmp_path: Path
) -> None:
    place = OtherFolder(tmp_path / "place", deployment.config.models, lost_after=[2])

    class TrainedElsewhere(RunSteps):
        def place(self) -> OtherFolder:
            return place

    deployment.database.write(lambda db: loop.community(db, 60, dislikes=False))
    leased = deployment.lease({"trainer": {"checkpoint_seconds": 1e-9}})
    ended = execute(deployment.database, deployment.config, leased.id, steps=TrainedElsewhere)
    assert ended.outcome in ("votes", "refused"), ended.error
    assert ended.metrics.training.objective == "sft_ranked"
    assert place.notes
    folder = deployment.config.runs / ended.id
    assert ranking.read(folder / ranking.file_of(1)) is not None
    assert not (folder / checkpoints.FILE).exists()
    assert unregistered_adapters.list_unregistered(folder) == []
    assert [path.name for path in deployment.config.adapters.iterdir()] == [ended.adapter_id]
    repeated = execute(deployment.database, deployment.config, deployment.lease({"repeat": ended.id}).id)
    assert f"the same adapter {ended.adapter_id} came out, bit for bit" in repeated.message, repeated.error
