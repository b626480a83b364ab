"""Free signals: used where they predict ratings left out and help to rank, and nowhere else."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from storage.learning.signals.of_replies import Signals
from tests.trainer.rows import row
from trainer.data import snapshot
from trainer.data.question_features import Exchange
from trainer.data.snapshot import Snapshot
from trainer.evaluation import evaluate
from trainer.evaluation.reward_model import RewardModel
from trainer.on_policy import ranking, signals

WORDS = ("soup", "rice", "bread", "salt", "sun", "rain", "wind", "tree", "road", "lamp", "door", "song")
RATED, UNRATED = 70, 120


def community(seed: int, *, informative: bool) -> tuple[Snapshot, list[Signals], list[Signals]]:
    """Return a community that likes answers that ask back; a fifth of its ratings say the opposite."""
    dice = random.Random(seed)
    rows, given = [], []
    for number in range(RATED + UNRATED):
        liked = dice.random() < 0.5
        text = " ".join(dice.choices(WORDS, k=6)).capitalize() + ("?" if liked else ".")
        said = liked if dice.random() < 0.8 else not liked
        rows.append(row(f"r{number:03}", "liked" if said else "disliked", text=text))
        pleased = liked if informative else dice.random() < 0.5
        given.append(
            Signals(
                reply_id=f"r{number:03}",
                group_key=f"r{number:03}",
                question=rows[-1].question,
                text=text,
                source="playground",
                another_version=not pleased and dice.random() < 0.8,
                kept=False,
                went_on=pleased,
                next_words=dice.choice(["merci bien", "ありがとう", "et puis"]) if pleased else "",
            )
        )
    return Snapshot(tuple(rows[:RATED]), "hash"), given[:RATED], given[RATED:]


def test_signals_that_predict_ratings_left_out_help_to_rank(tmp_path: Path) -> None:
    rated, of_rated, of_unrated = community(0, informative=True)
    labels, found = signals.weak_labels(rated, of_rated, of_unrated, seed=0)
    assert found.auc is not None and found.auc.bound_low > 0.5
    assert (found.rated, found.replies) == (RATED, UNRATED)
    assert found.weight in signals.WEIGHTS and {label.weight for label in labels} == {found.weight}
    pleased = [label.log_ratio for label, one in zip(labels, of_unrated, strict=True) if one.went_on]
    others = [label.log_ratio for label, one in zip(labels, of_unrated, strict=True) if not one.went_on]
    assert min(pleased) > 0 > max(others)
    # The same again, whatever the order, also from the snapshot that keeps them.
    again, _ = signals.weak_labels(rated, of_rated[::-1], of_unrated, seed=0)
    assert again == labels
    kept = rated.with_weak(labels)
    snapshot.write(kept, tmp_path)
    read = snapshot.read(tmp_path, kept.content_hash)
    assert read.weak == tuple(labels) and kept.content_hash != rated.content_hash
    plain, beside = (ranking.fit_ranking_model(one, seed=0) for one in (rated, read))
    assert plain is not None and beside is not None

    def lead(model: RewardModel) -> float:
        asked, told = (
            [Exchange("", f"{word.capitalize()} and {word}{end}") for word in WORDS] for end in "?."
        )
        return float(np.mean(model.probability(asked)) - np.mean(model.probability(told)))

    assert lead(beside) > lead(plain)
    # The gate's ratings, the judge that compares experiments, and what a run is told to train on know none.
    assert evaluate.ratings_of(read) == evaluate.ratings_of(rated)
    model = ranking.fit_reward_model(read, seed=0)
    assert model is not None and lead(model) == lead(plain)
    assert {row.reply_id: row.label for row in snapshot.run_rows(read)}["r100"] == "signals"


def test_signals_that_say_nothing_are_not_used() -> None:
    for seed in range(3):
        rated, of_rated, of_unrated = community(seed, informative=False)
        labels, found = signals.weak_labels(rated, of_rated, of_unrated, seed=0)
        assert labels == [] and found.weight == 0 and found.auc is not None


def test_conversations_that_are_held_out_lend_no_signals() -> None:
    rated, of_rated, of_unrated = community(0, informative=True)
    held_out = row("gate", split="gate", group="held out")
    hidden = [replace(one, group_key="held out") for one in of_unrated]
    labels, found = signals.weak_labels(Snapshot((*rated.rows, held_out), "hash"), of_rated, hidden, seed=0)
    assert labels == [] and found.replies == 0


@pytest.mark.parametrize("liked", ["liked", "unclear"])
def test_ratings_of_one_kind_prove_nothing(liked: str) -> None:
    rated, of_rated, of_unrated = community(0, informative=True)
    rows = tuple(replace(each, verdict=liked) for each in rated.rows)  # type: ignore[arg-type]
    labels, found = signals.weak_labels(Snapshot(rows, "hash"), of_rated, of_unrated, seed=0)
    assert (labels, found.auc) == ([], None)


def test_a_snapshot_with_signals_may_train_only_while_all_of_them_may() -> None:
    rated, of_rated, of_unrated = community(0, informative=True)
    labels, _ = signals.weak_labels(rated, of_rated, of_unrated, seed=0)
    alone = Snapshot((), "hash").with_weak(labels)
    assert snapshot.still_allowed(alone, [], [], of_unrated)
    assert not snapshot.still_allowed(alone, [], [], of_unrated[1:])
    assert not snapshot.still_allowed(alone, [], [])
    changed = [replace(of_unrated[0], text="edited"), *of_unrated[1:]]
    assert not snapshot.still_allowed(alone, [], [], changed)
