"""A whole experiment on a tiny real base: trained, judged, interrupted, resumed, told side by side."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bot.serving.model.catalogue import PACKAGED_BASE
from bot.serving.model.quantize import prepare_base
from bot.serving.model.sources import named
from storage.db.database import Database
from storage.experiments import Asked
from storage.learning import adapters, evaluations, runs
from storage.learning.runs import Run
from tests.tiny_model import build_tiny_base
from tests.trainer import loop
from tests.trainer.loop import Deployment
from trainer.data import snapshot
from trainer.errors import BaseNotTriedError, MemoryShortError, RunCancelledError
from trainer.evaluation.scores import Answer
from trainer.experiment import base_server, measured, page
from trainer.experiment.base_server import FOLDER
from trainer.experiment.measured import BASE
from trainer.experiment.steps import Experiment
from trainer.run.execution import execute
from trainer.run.memory_claims import MemoryClaims

CHANGES: tuple[dict[str, Any], ...] = ({"rank": 2, "alpha": 4}, {"epochs": 2, "objective": "sft"})


@pytest.fixture
def deployment(server: Path, tiny_source: Path) -> Iterator[Deployment]:
    config = loop.configured(server, tiny_source)
    for file in config.data.glob("strop.db*"):
        file.unlink()
    with Database.open(config.database) as database:
        database.write(lambda db: loop.community(db, 80))
        yield Deployment(config, database)


def run_of(deployment: Deployment, asked: Asked) -> Run:
    leased = deployment.lease(asked.as_settings())
    return execute(deployment.database, deployment.config, leased.id, steps=Experiment)


def table(run: Run) -> list[dict[str, Any]]:
    assert run.metrics.experiment is not None, run.error
    return list(run.metrics.experiment["standings"])


def answers_of(deployment: Deployment, run: Run) -> dict[str, tuple[Answer, ...]]:
    folder = deployment.config.runs / run.id
    base_hash = json.loads((folder / measured.FIGURES).read_text())["base"]
    return {each.name: each.answers for each in measured.read(folder, run.snapshot_hash or "", base_hash)}


def test_settings_are_trained_from_one_snapshot_and_stand_side_by_side(deployment: Deployment) -> None:
    ended = run_of(deployment, Asked(({"base": "nobody/Nothing-1B"}, *CHANGES), 30))
    assert ended.state == "finished", ended.error
    found = ended.metrics.experiment
    assert found is not None, ended.error
    why = "nobody/Nothing-1B is not on this machine: `strop models get nobody/Nothing-1B` brings it."
    assert found["not_tried"] == {"base nobody/Nothing-1B": why}
    names = [each["name"] for each in found["standings"]]
    assert sorted(names) == sorted([BASE, "as configured", "rank 2, alpha 4", "epochs 2, objective sft"])
    for each in found["standings"]:
        tried = each["name"] != BASE
        assert (each["minutes"] > 0) == (each["peak_mib"] > 0) == bool(each["curves"]) == tried
        assert each["perplexity"] > 1 and 0 <= each["accuracy"] <= 1
    assert "Nothing was promoted" in ended.message
    # Nothing of it stays: no adapter, no champion, no look at the held-out conversations of the gate.
    assert ended.adapter_id is None
    assert not list(deployment.config.adapters.glob("*"))
    assert deployment.database.read(lambda db: list(db.query("select * from adapters"))) == []
    assert deployment.database.read(lambda db: evaluations.list_for_run(db, ended.id)) == []
    assert deployment.database.read(lambda db: snapshot.looks(db, loop.SCOPE)) == {}
    assert all(len(answers) == found["prompts"] for answers in answers_of(deployment, ended).values())
    folder = deployment.config.runs / ended.id
    assert measured.read(folder, ended.snapshot_hash or "", "another base answers by now") == []
    text = (deployment.config.runs / ended.id / page.FILE).read_text(encoding="utf-8")
    assert text.count("<polyline") >= 3 and "rank 2, alpha 4" in text
    figures = (deployment.config.runs / ended.id / measured.FIGURES).read_text(encoding="utf-8")
    for words in ("Tell me about", "There is much to say"):
        assert words not in text and words not in figures


def test_what_one_attempt_has_measured_is_not_trained_again(deployment: Deployment) -> None:
    first = run_of(deployment, Asked(CHANGES[:1], 30))
    folder = deployment.config.runs / first.id
    figures = json.loads((folder / measured.FIGURES).read_text())
    # As an interrupted one leaves it: the base and one setting are done.
    for each in figures["measured"]:
        each["minutes"] = 7.0 if each["name"] != BASE else 0.0
    figures["measured"] = figures["measured"][:2]
    (folder / measured.FIGURES).write_text(json.dumps(figures))
    resumed = run_of(deployment, Asked(CHANGES[:1], 30, resumes=first.id))
    assert resumed.snapshot_hash == first.snapshot_hash, resumed.error
    minutes = {each["name"]: each["minutes"] for each in table(resumed)}
    assert minutes["as configured"] == 7.0 and 0 < minutes["rank 2, alpha 4"] < 7.0


@pytest.fixture
def other(deployment: Deployment, tmp_path: Path) -> str:
    """Another base, prepared beside the one that is served."""
    folder = build_tiny_base(tmp_path / "other", seed=1, layers=1)
    prepare_base(str(folder), "", device="cpu", models_dir=deployment.config.models)
    return str(folder)


def test_an_experiment_that_was_interrupted_goes_on_with_the_next_setting_on_another_base(
    deployment: Deployment, other: str
) -> None:
    leased, servers = deployment.lease(Asked(({"base": other},), 30).as_settings()), servers_of_this_process()

    class Killed(Experiment):
        def _keep(self, *parts: Any) -> None:
            super()._keep(*parts)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(deployment.database, deployment.config, leased.id, steps=Killed)
    begun = deployment.database.read(lambda db: runs.expect(db, leased.id))
    kept = (deployment.config.runs / leased.id / measured.FIGURES).read_bytes()
    deployment.database.write(lambda db: runs.requeue(db, leased.id, "it was killed"))
    deployment.database.write(lambda db: runs.lease_next(db, "test", 600_000))
    ended = execute(deployment.database, deployment.config, leased.id, steps=Experiment)
    assert ended.snapshot_hash == begun.snapshot_hash, ended.error
    done = {each["name"]: each for each in json.loads(kept)["measured"]}
    again = {each["name"]: each for each in table(ended)}
    on_other = [f"the base {other}", f"base {other}"]
    assert set(done) == {BASE, "as configured"} and set(again) == {*done, *on_other}
    assert again["as configured"]["minutes"] == done["as configured"]["minutes"]
    assert [each["base"] for each in again.values()].count(other) == 2
    # It forgets by its own replies, and its answers are its own: one base's are not the other's.
    assert abs(again[on_other[0]]["general_rise"]) < 1e-6 < abs(again[on_other[1]]["general_rise"])
    answers = answers_of(deployment, ended)
    assert answers[BASE] != answers[on_other[0]] != answers[on_other[1]]
    assert len(answers[on_other[0]]) == len(answers[BASE])
    # The server that it had is gone, and so is what it was reached by; the one that answers was not touched.
    assert servers_of_this_process() == servers and not (deployment.config.runs / ended.id / FOLDER).exists()
    assert not list(deployment.config.adapters.glob("*"))
    champions = deployment.database.read(lambda db: list(db.query("select base_hash from champions")))
    assert len(champions) == 1


def servers_of_this_process() -> list[int]:
    """The model servers that this process has started and that are still there."""
    children = (Path("/proc/self/task") / str(os.getpid()) / "children").read_text().split()
    return [
        int(child) for child in children if b"bot.serving\0" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


def test_a_run_that_ends_while_its_base_is_loaded_leaves_no_server(
    deployment: Deployment, tiny_source: Path, tmp_path: Path
) -> None:
    config, source = deployment.config, base_server.find(str(tiny_source), deployment.config)
    before, seen = servers_of_this_process(), []

    def check() -> None:
        # A process that has only just begun has no command line for a moment.
        seen.extend(each for each in servers_of_this_process() if each not in before)
        if seen:
            raise RunCancelledError("cancelled")

    with (
        pytest.raises(RunCancelledError),
        base_server.serving(config, source, tmp_path / "server", check),
    ):
        pass
    assert len(seen) == 1 and servers_of_this_process() == before
    assert not (tmp_path / "server").exists()


def test_a_base_is_not_begun_without_room_for_it_or_beside_somebody_else_s_server(
    deployment: Deployment, tmp_path: Path
) -> None:
    claims = MemoryClaims(tmp_path, "a run", lambda: None)
    model = deployment.config.model.model_copy(update={"slots": 256, "context_tokens": 1_000_000})
    short = deployment.config.model_copy(update={"model": model})
    with pytest.raises(MemoryShortError, match=r"takes about \d+\.\d GB .*beside the base that answers"):
        base_server.claim_room(short, named(PACKAGED_BASE), claims)
    server = deployment.config.server.model_copy(update={"base_url": "http://127.0.0.1:1"})
    with pytest.raises(BaseNotTriedError, match=r"server\.base_url names another one"):
        base_server.find(PACKAGED_BASE, deployment.config.model_copy(update={"server": server}))


def test_no_setting_begins_that_would_end_after_the_time_that_was_given(deployment: Deployment) -> None:
    ended = run_of(deployment, Asked(CHANGES, 1e-6))
    found = ended.metrics.experiment
    assert found is not None, ended.error
    assert {each["name"] for each in found["standings"]} == {BASE, "as configured"}
    assert found["left_out"] == ["rank 2, alpha 4", "epochs 2, objective sft"]
    assert ended.message.startswith("Only the configured settings were trained.")
    assert "--resume" in (deployment.config.runs / ended.id / page.FILE).read_text(encoding="utf-8")


def test_the_adapter_of_an_earlier_run_stays_though_the_experiment_makes_the_very_same(
    deployment: Deployment,
) -> None:
    first = execute(deployment.database, deployment.config, deployment.lease().id)
    assert first.adapter_id is not None
    folder = deployment.config.adapters / first.adapter_id
    ended = run_of(deployment, Asked((), 30))
    assert ended.state == "finished", ended.error
    assert folder.is_dir() and [path.name for path in deployment.config.adapters.iterdir()] == [folder.name]
    assert deployment.database.read(lambda db: adapters.get(db, first.adapter_id or "")) is not None
    shutil.rmtree(folder)


def test_one_whose_snapshot_may_not_train_any_more_is_not_resumed(deployment: Deployment) -> None:
    from storage.chat import conversations

    first = run_of(deployment, Asked((), 30))
    deployment.database.write(lambda db: conversations.delete_message(db, 1000))
    resumed = run_of(deployment, Asked(CHANGES[:1], 30, resumes=first.id))
    assert resumed.outcome == "failed"
    assert f"Experiment {first.id} can't be resumed" in resumed.message
