"""Training in another place: the run ends with the adapter of a training here, or with one sentence."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bot.serving.model.loading import load_base
from storage.learning import checkpoints
from storage.sentences import Sentence
from tests.trainer import interrupted
from tests.trainer.placement.test_carry_out import RANKED, a_training, own_pairs
from trainer.errors import (
    PlaceLostError,
    PlaceUnreachableError,
    RunCancelledError,
    TrainerError,
    TrainingError,
)
from trainer.on_policy import ranking
from trainer.placement import carry_out, elsewhere, outcome, request
from trainer.placement.elsewhere import Files, Watcher
from trainer.placement.request import TrainingInput
from trainer.training.challenger import Challenger


class Ended(Exception):
    """What ends a training from outside, past everything that a training itself may raise."""


@dataclass
class OtherFolder:
    """A place that is another folder of this machine; each attempt loses it after so many steps."""

    folder: Path
    models: Path
    lost_after: list[int] = field(default_factory=list)
    # Before each attempt: whether nobody answers.
    away: list[bool] = field(default_factory=list)
    change: Callable[[dict[str, bytes]], object] = lambda received: None
    notes: list[str] = field(default_factory=list)
    left: set[str] = field(default_factory=set)

    def carry_out(self, sent: Files, watcher: Watcher) -> Files:
        if self.away and self.away.pop(0):
            raise PlaceUnreachableError("nobody answers")
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        for name, content in sent.items():
            (self.folder / name).write_bytes(content)
        steps = self.lost_after.pop(0) if self.lost_after else -1

        def progress(share: float, note: Sentence) -> None:
            nonlocal steps
            steps -= 1
            self.notes.append(str(note))
            self.left |= {path.name for path in self.folder.iterdir()}
            try:
                watcher.progress(share, note)
                watcher.check()
                if not steps:
                    raise PlaceLostError("a worker died")
            except TrainerError as error:
                raise Ended from error

        try:
            ended = carry_out.carry_out(
                self.folder,
                self.models,
                forget=True,
                on_checkpoint=lambda: watcher.checkpoint((self.folder / checkpoints.FILE).read_bytes()),
                on_progress=progress,
            )
        except Ended as error:
            assert error.__cause__ is not None
            raise error.__cause__ from None
        made = [self.folder / outcome.FILE, *(self.folder / "adapters" / ended.adapter_id).glob("*")]
        received = {str(p.relative_to(self.folder)): p.read_bytes() for p in made if p.is_file()}
        self.change(received)
        return received


def trained_by(
    place: OtherFolder,
    training: TrainingInput,
    tmp_path: Path,
    *,
    check: Callable[[], None] = lambda: None,
    checkpointed: Callable[[], None] = lambda: None,
) -> Challenger:
    work = tmp_path / "run"

    def ask(adapter_id: str, number: int) -> None:
        assert (tmp_path / "adapters" / adapter_id / "adapter_model.safetensors").exists()
        ranking.write(own_pairs(number), work / ranking.file_of(number))
        shutil.rmtree(tmp_path / "adapters" / adapter_id)

    return elsewhere.train(
        training,
        place,
        work=work,
        adapters_dir=tmp_path / "adapters",
        ask=ask,
        on_checkpoint=checkpointed,
        on_progress=lambda share, note: None,
        check=check,
    )


@pytest.fixture
def place(tmp_path: Path, models_dir: Path) -> OtherFolder:
    return OtherFolder(tmp_path / "place", models_dir)


def test_a_run_whose_place_is_lost_and_asks_makes_the_adapter_of_a_training_here(
    place: OtherFolder, tiny_folder: Path, tmp_path: Path
) -> None:
    settings = RANKED.model_copy(update={"ranked_rounds": 1})
    training = a_training(tmp_path / "run", tiny_folder, settings)
    place.lost_after = [4, 2]
    kept: list[None] = []
    trained = trained_by(place, training, tmp_path, checkpointed=lambda: kept.append(None))
    (tmp_path / "here").mkdir()
    here = carry_out.train(
        training,
        load_base(tiny_folder, "cpu", "train"),
        work=tmp_path / "here",
        adapters_dir=tmp_path / "same",
        own_pairs=lambda model, number: own_pairs(number),
    )
    assert trained.adapter_id == here.adapter_id
    assert trained.folder == tmp_path / "adapters" / here.adapter_id
    assert {path.name for path in trained.folder.iterdir()} == {path.name for path in here.folder.iterdir()}
    assert {phase: each.losses for phase, each in trained.reports.items()} == {
        phase: each.losses for phase, each in here.reports.items()
    }
    steps = sum(each.steps for each in here.reports.values())
    assert steps <= len(place.notes) <= steps + 2, "it went on from the checkpoints that the run has kept"
    assert len(kept) >= steps - 2
    # While it trains, nothing that may hold members' words lies in the other place.
    assert place.left <= {request.FILE, request.REPLAY, checkpoints.FILE, outcome.FILE, "adapters", "interim"}
    assert not (tmp_path / "run" / "adapters").exists()


def test_a_place_that_does_not_answer_for_a_moment_after_a_loss_is_called_again(
    place: OtherFolder, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elsewhere, "CALL_AGAIN_S", 0.0)
    settings = interrupted.SETTINGS.model_copy(update={"objective": "sft", "checkpoint_seconds": 3600.0})
    training = a_training(tmp_path / "run", tiny_folder, settings)
    (tmp_path / "run" / checkpoints.PARTIAL).mkdir()
    place.lost_after, place.away = [1], [False, True, True, False]
    assert trained_by(place, training, tmp_path).folder.is_dir()
    place.away = [True] * (elsewhere.MOST_CALLS + 1)
    with pytest.raises(TrainingError, match=r"^The training host was lost: nobody answers$"):
        trained_by(place, training, tmp_path)
    assert place.away == [True]


def test_a_place_that_is_lost_twice_without_a_checkpoint_ends_the_run_in_one_sentence(
    place: OtherFolder, tiny_folder: Path, tmp_path: Path
) -> None:
    settings = interrupted.SETTINGS.model_copy(update={"objective": "sft", "checkpoint_seconds": 3600.0})
    training = a_training(tmp_path / "run", tiny_folder, settings)
    # The first step's checkpoint is not kept: the run's disk is full.
    (tmp_path / "run" / checkpoints.PARTIAL).mkdir()
    place.lost_after = [1, 1, 1]
    with pytest.raises(TrainingError, match=r"^The training host was lost: a worker died$"):
        trained_by(place, training, tmp_path)
    assert place.lost_after == [1]
    assert not (tmp_path / "adapters").exists()


def test_a_run_that_is_cancelled_ends_the_training_there(
    place: OtherFolder, tiny_folder: Path, tmp_path: Path
) -> None:
    training = a_training(tmp_path / "run", tiny_folder)

    def check() -> None:
        if len(place.notes) == 3:
            raise RunCancelledError("cancelled")

    with pytest.raises(RunCancelledError):
        trained_by(place, training, tmp_path, check=check)
    assert len(place.notes) == 3
    assert not (tmp_path / "adapters").exists()


def test_an_erasure_ends_the_training_there_and_nothing_brings_the_run_s_folder_back(
    place: OtherFolder, tiny_folder: Path, tmp_path: Path
) -> None:
    settings = interrupted.SETTINGS.model_copy(update={"objective": "sft", "epochs": 1})
    training = a_training(tmp_path / "run", tiny_folder, settings)
    place.change = lambda received: shutil.rmtree(tmp_path / "run")
    with pytest.raises(RunCancelledError):
        trained_by(place, training, tmp_path)
    assert not (tmp_path / "run").exists() and not (tmp_path / "adapters").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [("adapter_model.safetensors", b"torn"), ("manifest.json", b"{}"), ("../../escaped", b"")],
)
def test_an_adapter_that_is_torn_or_foreign_is_never_taken(
    place: OtherFolder, tiny_folder: Path, tmp_path: Path, name: str, content: bytes
) -> None:
    settings = interrupted.SETTINGS.model_copy(update={"objective": "sft", "epochs": 1})
    training = a_training(tmp_path / "run", tiny_folder, settings)

    def change(received: dict[str, bytes]) -> None:
        folder = next(key for key in received if key.endswith("manifest.json")).rpartition("/")[0]
        received[f"{folder}/{name}"] = content

    place.change = change
    with pytest.raises(TrainingError):
        trained_by(place, training, tmp_path)
    assert not (tmp_path / "adapters").exists()
    assert not list(tmp_path.rglob("escaped"))
