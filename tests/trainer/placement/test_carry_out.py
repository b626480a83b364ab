"""A training as a value: any place that has its folder and the base makes the very adapter of the run."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bot.serving.model.loading import load_base, read_info
from bot.serving.protocol import BaseDescription
from storage.learning import checkpoints
from storage.learning.evaluations import ProcessFigures
from storage.sentences import Sentence
from tests.trainer import interrupted
from tests.trainer.rows import pair
from trainer.data import snapshot
from trainer.data.rows import PreferencePair
from trainer.errors import RequestError, RunCancelledError, TrainingError
from trainer.evaluation.scores import Answer
from trainer.on_policy import ranking
from trainer.placement import outcome, request
from trainer.placement.__main__ import main
from trainer.placement.carry_out import carry_out, train
from trainer.placement.outcome import Outcome
from trainer.placement.request import TrainingInput, TrainingRequest
from trainer.training.loop import TrainingReport
from trainer.training.objectives import Plan

RANKED = interrupted.SETTINGS.model_copy(update={"objective": "sft_ranked", "epochs": 1, "ranked_rounds": 2})


def a_training(folder: Path, base: Path, settings: Any = interrupted.SETTINGS) -> TrainingInput:
    """Write a training's folder; return what it holds."""
    written = snapshot.write(interrupted.SNAPSHOT, folder)
    rows = replace(interrupted.SNAPSHOT, content_hash=hashlib.sha256(written.read_bytes()).hexdigest())
    info = read_info(base)
    served = BaseDescription(
        info.id, info.source, info.hash, info.chat_template_hash, str(base), identity=info.identity
    )
    plan = Plan(settings.objective, Sentence("{count} pairs", count=6))
    training = TrainingInput(TrainingRequest.of(served, plan, settings, rows), rows, interrupted.REPLAY)
    request.write(training, folder)
    return training


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def own_pairs(number: int) -> list[PreferencePair]:
    return [pair(f"round {number}, {n}", chosen=f"Reply {n} of {number}, and you?") for n in range(4)]


def elsewhere(folder: Path, place: Path, models: Path, work: str = "training") -> tuple[Path, Path]:
    """Another machine: what was sent and its own copy of the base, and nothing else."""
    place.mkdir()
    shutil.copytree(models, place / "bases")
    shutil.copytree(folder, place / work)
    return place / work, place / "bases"


def test_the_command_makes_the_very_bytes_of_the_run_though_it_is_killed_in_the_middle(
    tiny_folder: Path, models_dir: Path, tmp_path: Path
) -> None:
    here = tmp_path / "run"
    here.mkdir()
    training = a_training(here, tiny_folder)
    place, models = elsewhere(here, tmp_path / "place", models_dir)
    trained = train(
        training, load_base(tiny_folder, "cpu", "train"), work=here, adapters_dir=tmp_path / "adapters"
    )

    command = [sys.executable, "-m", "trainer.placement", str(place), "--models", str(models)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        told = [json.loads(killed.stdout.readline()) for _ in range(14)]
        killed.kill()
    assert [each["progress"] for each in told] == sorted(each["progress"] for each in told)
    assert str(Sentence.from_json(told[-1]["note"])).startswith("all ratings, step 2")
    assert (place / checkpoints.FILE).exists() and outcome.read(place) is None

    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(ended.stdout.splitlines()) < 30 - 10, "it went on from its checkpoint"
    found = outcome.read(place)
    assert found is not None and found.state == "trained" and found.adapter_id == trained.adapter_id
    assert files_of(place / "adapters" / found.adapter_id) == files_of(trained.folder)
    there = found.challenger(place / "adapters")
    assert there.plan == trained.plan and list(there.reports) == ["sft", "kto", "dpo"]
    assert there.reports["sft"].losses == trained.reports["sft"].losses
    assert (there.reports["kto"].scheduled, there.reports["kto"].steps) == (12, 12)
    assert found.process is not None and found.process.cpu_s > 0 and found.process.peak_bytes > 100e6


def test_nothing_in_a_training_s_folder_names_a_place(tiny_folder: Path, tmp_path: Path) -> None:
    a_training(tmp_path / "run", tiny_folder)
    for name, content in files_of(tmp_path / "run").items():
        assert str(tmp_path).encode() not in content, name
        assert str(tiny_folder).encode() not in content, name
    assert "device" not in json.loads((tmp_path / "run" / request.FILE).read_text())["settings"]


def test_it_stops_for_each_round_of_ranked_replies_and_ends_as_if_it_had_asked_itself(
    tiny_folder: Path, models_dir: Path, tmp_path: Path
) -> None:
    here = tmp_path / "run"
    here.mkdir()
    training = a_training(here, tiny_folder, RANKED)
    place, models = elsewhere(here, tmp_path / "place", models_dir)
    trained = train(
        training,
        load_base(tiny_folder, "cpu", "train"),
        work=here,
        adapters_dir=tmp_path / "adapters",
        own_pairs=lambda model, number: own_pairs(number),
    )
    assert list(trained.reports) == ["sft", "ranked_1", "ranked_2"]

    asked: list[int] = []
    steps: list[str] = []

    def once() -> Outcome:
        return carry_out(place, models, on_progress=lambda share, note: steps.append(note))

    while (found := once()).state == "asks":
        asked.append(found.asks_round)
        assert (place / "adapters" / found.adapter_id / "adapter_model.safetensors").exists()
        ranking.write(own_pairs(found.asks_round), place / ranking.file_of(found.asks_round))
    assert asked == [1, 2]
    assert found.adapter_id == trained.adapter_id
    assert len(steps) == sum(report.steps for report in trained.reports.values()), "no step was taken twice"


def test_a_base_that_is_somebody_s_own_files_has_to_be_there(tiny_folder: Path, tmp_path: Path) -> None:
    a_training(tmp_path / "run", tiny_folder)
    (tmp_path / "models").mkdir()
    found = carry_out(tmp_path / "run", tmp_path / "models", device="cpu")
    assert found.state == "failed"
    with pytest.raises(TrainingError, match="doesn't have the base tiny: copy its folder"):
        found.challenger(tmp_path)


def test_a_folder_without_a_training_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), "--models", str(tmp_path)]) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1] == "There is no training in this folder: it has no request.json."
    with pytest.raises(SystemExit):
        main([str(tmp_path / "none"), "--models", str(tmp_path)])
    assert capsys.readouterr().err.endswith("none is not a folder.\n")


@pytest.mark.parametrize("name", [snapshot.FILE, snapshot.ABOUT, request.REPLAY])
def test_a_file_that_was_changed_or_is_missing_is_named(tiny_folder: Path, tmp_path: Path, name: str) -> None:
    a_training(tmp_path / "run", tiny_folder)
    path = tmp_path / "run" / name
    path.write_bytes(path.read_bytes() + b" ")
    assert f"{name} is missing or was changed" in carry_out(tmp_path / "run", tmp_path).error
    path.unlink()
    assert f"{name} is missing or was changed" in carry_out(tmp_path / "run", tmp_path).error


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": 2}, "another version"),
        ({"data": {}}, r"replay\.jsonl is missing"),
        ({"data": {"../strop.db": "0"}}, r"\.\./strop\.db is missing"),
        ({"settings": {"rank": -1}}, "rank"),
        ({"plan": {}}, "objective"),
    ],
)
def test_a_request_that_is_not_ours_is_refused_by_name(
    tiny_folder: Path, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    a_training(tmp_path / "run", tiny_folder)
    path = tmp_path / "run" / request.FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RequestError, match=reason):
        request.read(tmp_path / "run")


OTHER_COURSES: dict[str, Any] = {
    "base_hash": "another",
    "settings": RANKED.model_copy(update={"epochs": 0}),
    "rows": replace(interrupted.SNAPSHOT, content_hash="another"),
    "replay": interrupted.REPLAY[:-1],
}


@pytest.mark.parametrize("other", [None, *OTHER_COURSES])
def test_replies_that_an_attempt_has_kept_go_where_the_next_one_trains_otherwise(
    tiny_folder: Path, tmp_path: Path, other: str | None
) -> None:
    training = a_training(tmp_path, tiny_folder, RANKED)
    ranking.write(own_pairs(1), tmp_path / ranking.file_of(1))
    ranking.write_reference_completions([[Answer("Hello.", True)]], tmp_path)
    # How often a checkpoint is written changes nothing of what is trained.
    asked = {
        "base_hash": training.request.base.hash,
        "settings": RANKED.model_copy(update={"checkpoint_seconds": 7.0}),
        "rows": training.snapshot,
        "replay": training.replay,
    }
    request.forget_other(tmp_path, **(asked | ({other: OTHER_COURSES[other]} if other else {})))
    kept = ranking.read(tmp_path / ranking.file_of(1)), ranking.read_reference_completions(tmp_path)
    assert kept == ((None, None) if other else (own_pairs(1), [[Answer("Hello.", True)]]))


def test_a_run_whose_folder_an_erasure_removed_does_not_bring_it_back(
    tiny_folder: Path, tmp_path: Path
) -> None:
    training = a_training(tmp_path / "run", tiny_folder)
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(RunCancelledError):
        request.write(training, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_requests_and_outcomes_come_back_as_they_were_written(tiny_folder: Path, tmp_path: Path) -> None:
    written = a_training(tmp_path / "run", tiny_folder).request
    back = request.read(tmp_path / "run").request
    assert replace(back, data={}, settings=written.settings) == written
    assert back.settings.model_dump(include=request.SETTINGS) == written.settings.model_dump(
        include=request.SETTINGS
    )
    ended = Outcome(
        "asks",
        "a" * 12,
        2,
        plan=written.plan,
        reports={"sft": TrainingReport(steps=2, losses=[0.5, 0.25], scheduled=3)},
        process=ProcessFigures(1.5, 2.5, 10**9),
    )
    assert outcome.write(ended, tmp_path) == outcome.read(tmp_path) == ended
    again = outcome.write(ended, tmp_path)
    assert again.process == ProcessFigures(3.0, 5.0, 10**9), "what several attempts took is added up"
