"""Trainings that are killed: where they go on from, and that nobody can tell from the adapter."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from bot.serving.model.loading import LoadedBase, load_base
from storage.config_sections import TrainerConfig
from storage.learning import checkpoints
from tests.trainer import interrupted
from trainer.data.encoding import Example
from trainer.errors import RunCancelledError
from trainer.training import phases
from trainer.training.adapter import add_adapter
from trainer.training.challenger import Challenger
from trainer.training.checkpoints import DONE, Checkpoint, Checkpointer
from trainer.training.phases import SftSettings

EXAMPLES = [Example(ids=tuple(range(3 + n, 13 + n)), start=4) for n in range(8)]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.fixture(scope="module")
def undisturbed(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Challenger:
    """The training that nothing interrupts: 12 steps of SFT, 12 of KTO, 6 of DPO."""
    folder = tmp_path_factory.mktemp("calm") / "run"
    folder.mkdir()
    trained = interrupted.train(tiny_folder, folder)
    assert [report.steps for report in trained.reports.values()] == [12, 12, 6]
    return trained


def stopped_after(
    steps: int, folder: Path, work: Path, settings: TrainerConfig = interrupted.SETTINGS
) -> None:
    """Train and stop in this process after so many steps."""
    left = [steps]

    def tick(share: float, note: str) -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted.train(folder, work, settings, tick)


def steps_taken(folder: Path, work: Path, settings: TrainerConfig = interrupted.SETTINGS) -> tuple[str, int]:
    """Train to the end; return the adapter's id and how many steps it took here."""
    notes: list[str] = []
    trained = interrupted.train(folder, work, settings, lambda share, note: notes.append(note))
    return trained.adapter_id, len(notes)


def test_a_training_that_was_killed_ends_bit_for_bit_where_an_undisturbed_one_does(
    tiny_folder: Path, work: Path, undisturbed: Challenger
) -> None:
    adapter_id, further = interrupted.killed_and_resumed(tiny_folder, work, kills=6, seed=1)
    assert adapter_id == undisturbed.adapter_id
    assert further >= 3
    assert list(undisturbed.reports) == ["sft", "kto", "dpo"]


@pytest.mark.torture
def test_a_training_that_was_killed_a_hundred_times_does_too(
    tiny_folder: Path, tmp_path: Path, work: Path
) -> None:
    settings = interrupted.SETTINGS.model_copy(update={"epochs": 160, "kto_epochs": 20, "dpo_epochs": 40})
    (tmp_path / "calm").mkdir()
    undisturbed = interrupted.train(tiny_folder, tmp_path / "calm", settings)
    adapter_id, further = interrupted.killed_and_resumed(
        tiny_folder, work, kills=100, seed=2, settings=settings
    )
    assert adapter_id == undisturbed.adapter_id
    assert further >= 50


@pytest.mark.parametrize("steps", [1, 12, 13, 24, 25, 30])
def test_it_goes_on_at_the_next_step_in_every_phase(
    tiny_folder: Path, work: Path, undisturbed: Challenger, steps: int
) -> None:
    """Also where one has just ended, and after the last."""
    stopped_after(steps, tiny_folder, work)
    assert steps_taken(tiny_folder, work) == (undisturbed.adapter_id, 30 - steps)


def test_a_finished_training_is_not_done_again(tiny_folder: Path, work: Path) -> None:
    adapter_id, _ = steps_taken(tiny_folder, work)
    again = interrupted.train(tiny_folder, work)
    assert again.adapter_id == adapter_id
    assert steps_taken(tiny_folder, work) == (adapter_id, 0)
    assert again.reports["sft"].steps == len(again.reports["sft"].losses) == 12


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"max_length": 100}, {"batch_tokens": 64}, {"dpo_sft_weight": 0.5}, {"rank": 2}]
)
def test_a_checkpoint_of_another_training_is_set_aside(
    tiny_folder: Path, work: Path, change: dict[str, Any]
) -> None:
    stopped_after(5, tiny_folder, work)
    other = interrupted.SETTINGS.model_copy(update=change)
    assert steps_taken(tiny_folder, work, other)[1] == 30


def test_a_damaged_checkpoint_costs_the_training_so_far_and_nothing_else(
    tiny_folder: Path, work: Path, undisturbed: Challenger
) -> None:
    stopped_after(5, tiny_folder, work)
    path = work / checkpoints.FILE
    path.write_bytes(path.read_bytes()[:-100])
    assert steps_taken(tiny_folder, work) == (undisturbed.adapter_id, 30)


def test_a_half_written_checkpoint_leaves_the_one_before(tiny_folder: Path, work: Path) -> None:
    stopped_after(5, tiny_folder, work)
    (work / checkpoints.PARTIAL).write_bytes(b"half of it")
    assert steps_taken(tiny_folder, work)[1] == 25


def test_a_plan_that_the_clock_made_outlives_the_interruption(tiny_folder: Path, work: Path) -> None:
    """The first process had time for every step; the second one, hurried, takes them all the same."""
    weights = []
    for limits in ([1e9, 1e-9], [1e-9, 1e9]):
        model = add_adapter(load_base(tiny_folder, "cpu", "train").model, interrupted.SETTINGS)
        generous = SftSettings(5e-3, 4, 2, 0.0, 0, max_seconds=limits[0])
        hurried = SftSettings(5e-3, 4, 2, 0.0, 0, max_seconds=limits[1])
        reports = []
        for settings, stop in ((generous, 3), (hurried, 0)):
            taken = iter(range(1, 100))
            checkpointer = Checkpointer(work, "the same", 1e9)

            def tick(done: int, total: int, stop: int = stop, taken: Any = taken) -> None:
                if next(taken) == stop:
                    raise KeyboardInterrupt

            try:
                reports.append(
                    phases.train_sft(model, EXAMPLES, [], settings, checkpointer=checkpointer, on_step=tick)
                )
            except KeyboardInterrupt:
                model = add_adapter(load_base(tiny_folder, "cpu", "train").model, interrupted.SETTINGS)
        weights.append([report.steps for report in reports])
        checkpoints.remove(work)
    assert weights == [[16], [3]]


def test_a_training_whose_folder_an_erasure_removed_stops_and_does_not_bring_it_back(
    tiny_folder: Path, work: Path
) -> None:
    def scrub(share: float, note: str) -> None:
        shutil.rmtree(work, ignore_errors=True)

    with pytest.raises(RunCancelledError):
        interrupted.train(tiny_folder, work, interrupted.SETTINGS, scrub)
    assert not work.exists()


def test_a_moment_holds_no_words_and_says_what_it_belongs_to(base: LoadedBase, work: Path) -> None:
    model = add_adapter(base.model, interrupted.SETTINGS)
    kept: list[str] = []
    checkpointer = Checkpointer(work, "mine", 60.0, lambda: kept.append("kept"))
    assert not checkpointer.due
    checkpointer.write(Checkpoint.of(DONE, {}, model))
    assert kept == ["kept"]
    assert Checkpointer(work, "another's", 60.0).found is None
    found = Checkpointer(work, "mine", 60.0).resume(DONE)
    assert found is not None
    assert Checkpointer(work, "mine", 60.0).resume("sft") is None
    assert all(
        torch.equal(found.tensors[f"adapter.{n}"], p) for n, p in model.named_parameters() if p.requires_grad
    )
