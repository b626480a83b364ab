"""Two processes that train one adapter together make the adapter of one, but for the order of sums."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from storage.learning import checkpoints
from tests.trainer.placement.test_carry_out import RANKED, a_training, own_pairs
from tests.trainer.together import carried_out
from trainer.on_policy import ranking
from trainer.placement import outcome
from trainer.placement.carry_out import carry_out
from trainer.placement.outcome import Outcome
from trainer.run.repeat import distance

# How far two adapters may lie apart, as a share of their size: trained together, and by one process. Sums of
# float32 in another order; measured 3e-7 after 30 steps.
TOLERANCE = 1e-5


def copies(folder: Path, *names: str) -> list[Path]:
    return [Path(shutil.copytree(folder, folder.parent / name)) for name in names]


def ended(folder: Path) -> Outcome:
    found = outcome.read(folder)
    assert found is not None
    return found


def adapter_of(folder: Path) -> Path:
    return folder / "adapters" / ended(folder).adapter_id


def test_two_processes_agree_with_one_also_where_one_of_them_was_killed(
    tiny_folder: Path, models_dir: Path, tmp_path: Path
) -> None:
    a_training(tmp_path / "sent", tiny_folder)
    alone, *pair, broken, other = copies(tmp_path / "sent", "alone", "first", "second", "broken", "other")
    assert carry_out(alone, models_dir, device="cpu").state == "trained"
    steps = carried_out(pair, models_dir, tmp_path / "meeting")
    assert len(steps) == 12 + 12 + 6
    assert distance(adapter_of(alone), adapter_of(pair[0])) < TOLERANCE
    assert not (pair[1] / "adapters").exists() and not (pair[1] / checkpoints.FILE).exists()
    one, two = ended(alone), ended(pair[0])
    for phase, report in one.reports.items():
        assert two.reports[phase].losses == pytest.approx(report.losses, rel=1e-5), phase
        assert two.reports[phase].tokens == report.tokens

    assert len(carried_out([broken, other], models_dir, tmp_path / "again", stop_after=15)) == 15
    went_on = carried_out([broken, other], models_dir, tmp_path / "and again")
    assert 0 < len(went_on) <= len(steps) - 15 + 1, "from the first rank's checkpoint"
    assert ended(broken).adapter_id == two.adapter_id, "to the bit"


def test_two_processes_ask_for_ranked_replies_together(
    tiny_folder: Path, models_dir: Path, tmp_path: Path
) -> None:
    settings = RANKED.model_copy(update={"ranked_rounds": 1})
    a_training(tmp_path / "sent", tiny_folder, settings)
    alone, *pair = copies(tmp_path / "sent", "alone", "first", "second")
    for folder in (alone, pair[0]):
        ranking.write(own_pairs(1), folder / ranking.file_of(1))
    assert carry_out(alone, models_dir, device="cpu").state == "trained"
    carried_out(pair, models_dir, tmp_path / "meeting")
    assert distance(adapter_of(alone), adapter_of(pair[0])) < TOLERANCE
