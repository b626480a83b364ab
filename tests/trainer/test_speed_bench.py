"""The benchmark beside TRL: both sides learn the same, and the verdict needs speed and loss."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bot.serving.model.loading import load_base
from storage import sentences
from storage.config_sections import TrainerConfig
from storage.sentences import Sentence
from tests.bench import retrain, training_speed
from tests.bench.learning.errors import BenchError
from tests.bench.training_speed import Turn
from trainer.data.examples import BaseCodec
from trainer.training import forward
from trainer.training.adapter import add_adapter

SETTINGS = TrainerConfig(rank=4, alpha=8, epochs=6, batch_size=4, sft_learning_rate=5e-3)


def turns(strop_cpu_s: float, strop_loss: float) -> list[Turn]:
    return [
        Turn("strop", 1000, strop_cpu_s, strop_loss, 3.0),
        Turn("trl", 1000, 10.0, 1.5, 3.0),
        Turn("trl", 1000, 12.0, 1.5, 3.0),
        Turn("strop", 1000, strop_cpu_s, strop_loss, 3.0),
    ]


@pytest.mark.parametrize(
    ("cpu_s", "loss", "reached"), [(7.0, 1.5, True), (7.0, 1.2, True), (7.0, 1.6, False), (10.0, 1.5, False)]
)
def test_speed_counts_only_at_equal_loss(cpu_s: float, loss: float, reached: bool) -> None:
    assert training_speed.verdict(turns(cpu_s, loss))[0] is reached
    text = training_speed.report(turns(cpu_s, loss), training_speed.LOADS["quick"], 1)
    assert text.endswith("Reached." if reached else "Missed.")
    assert "| trl | 91.7 (83.3 to 100.0) | 3.000, 1.500 |" in text


def test_both_sides_learn_the_same_from_the_same_examples(tiny_folder: Path) -> None:
    """With all examples in one batch the order is the same, and only the end of the schedule differs."""
    losses = []
    for side in (training_speed._strop, training_speed._trl):
        base = load_base(
            tiny_folder, "cpu", "train", execution="dense" if side is training_speed._trl else None
        )
        seen = training_speed.examples(BaseCodec(base.tokenizer), 4, seed=0)
        model = add_adapter(base.model, SETTINGS)
        model.train()
        assert side(model, base.tokenizer, seen, SETTINGS) > 0
        model.eval()
        losses.append(-torch.mean(forward.totals(model, seen, 10_000)).item())
    untrained = load_base(tiny_folder, "cpu", "train").model
    before = -torch.mean(forward.totals(untrained, seen, 10_000)).item()
    assert losses[0] < 0.95 * before
    assert losses[0] == pytest.approx(losses[1], rel=0.03)


def test_speed_of_a_side_that_learned_nothing_is_no_speed() -> None:
    with pytest.raises(BenchError, match="learned by strop"):
        training_speed.verdict(turns(2.0, 3.0))


def test_a_run_s_minutes_are_put_to_what_it_said_that_it_does() -> None:
    note = Sentence("own reply {done} of {total}", done=8, total=192)
    said = {"state": "running", "note": str(note), "note_sentence": sentences.dump(note)}
    assert retrain.name_of({"phase": "train", **said}) == "train: own reply {done} of {total}"
    slower = Sentence("{note}; {more}", note=note, more="it has slowed down")
    said |= {"note": str(slower), "note_sentence": sentences.dump(slower)}
    assert retrain.name_of({"phase": "train", **said}) == "train: own reply {done} of {total}"
    judging = {"phase": "evaluate", "state": "running", "note": "comparing", "note_sentence": ""}
    assert retrain.name_of(judging | {"progress": 0.2}) == "evaluate: scoring rated replies"
    parts = {"one": retrain.Part(4.0, 3.0, 1.0, 0.5), "two": retrain.Part(2.0, 0.0, 1.5, 0.5)}
    found = retrain.Profile(parts, {"outcome": "promoted", "message": "It is better."})
    assert "| all | 6.0 | 3.0, 2.5, 1.0 |" in retrain.report(found)
