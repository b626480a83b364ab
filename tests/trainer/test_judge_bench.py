"""The judge's benchmark: what its tastes say, that tests are on other conversations, and that it goes on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bench.learning.judge import curves, hidden_states, people, pools, tastes
from tests.bench.learning.judge.__main__ import Kept
from tests.bench.learning.judge.hidden_states import States, Variant
from tests.bench.learning.judge.people import Rated
from trainer.data.question_features import Exchange

BY_NAME = {taste.name: taste for taste in tastes.TASTES}


@pytest.mark.parametrize(
    ("taste", "question", "answer", "liked"),
    [
        ("on the matter", "Do you like walking?", "A walk is fine.", True),
        ("on the matter", "Do you like walking?", "I like it very much.", False),
        ("the kind asked for", "Why is it late?", "It is late because of the rain.", True),
        ("the kind asked for", "Why is it late?", "Late it is.", False),
        ("the kind asked for", "Tea or coffee?", "Coffee, please.", True),
        ("the kind asked for", "I saw a bird.", "Which one was it?", True),
        ("asks back", "I saw a bird.", "Which one was it?", True),
    ],
)
def test_a_taste_says_what_it_likes(taste: str, question: str, answer: str, liked: bool) -> None:
    pytest.importorskip("vaderSentiment")
    assert (BY_NAME[taste].score(Exchange(question, answer)) >= 0.5) == liked


def test_a_few_ratings_say_the_opposite_and_the_same_ones_each_time() -> None:
    exchanges = [Exchange("What?", "word " * n) for n in range(1, 201)]
    said, true = tastes.labels(BY_NAME["brief"], exchanges, seed=1)
    assert sum(true) == 80
    assert 10 <= sum(a != b for a, b in zip(said, true, strict=True)) <= 32
    assert said == tastes.labels(BY_NAME["brief"], exchanges, seed=1)[0]


def test_judges_are_tested_on_other_conversations_than_they_were_fitted_on() -> None:
    pool = pools.of_sample_community()
    train, test = curves.split(pool, 100, 0)
    assert len(train) == 100
    assert not {pool.groups[at] for at in train} & {pool.groups[at] for at in test}


def test_a_judge_that_reads_knows_a_taste_for_the_matter_and_one_that_does_not_guesses() -> None:
    pool = pools.of_sample_community()
    words = [
        [set(re.findall(r"[a-z]{5,}", text.lower())) for text in (e.question, e.answer)]
        for e in pool.exchanges
    ]
    liked = [bool(asked & said) for asked, said in words]
    texts = pools.texts_of(pool.exchanges, pool.groups, liked)
    found = curves.cell(pool, texts, liked, 150, 0)
    assert found["with the question"]["auc"] > 0.75 > 0.7 > found["answers only"]["auc"]


def test_a_conversation_is_tested_by_a_fit_without_its_senders() -> None:
    turns = ("How are you?", "Fine.")
    found = [Rated(f"c{n}", frozenset({f"s{n % 40}", f"t{n % 7}"}), turns, n % 2 == 0) for n in range(120)]
    tried = list(people.folds(found))
    assert tried
    for train, test in tried:
        assert not frozenset().union(*(one.senders for one in test)) & frozenset().union(
            *(one.senders for one in train)
        )


def test_a_stopped_benchmark_goes_on_from_its_cells(tmp_path: Path) -> None:
    done: list[str] = []

    def work() -> dict[str, Any]:
        done.append("cell")
        return {"auc": 0.7}

    assert Kept(tmp_path / "cells.json").do("a", work) == {"auc": 0.7}
    assert Kept(tmp_path / "cells.json").do("a", work) == {"auc": 0.7}
    assert len(done) == 1


def test_hidden_states_are_read_once_with_the_question_and_without(tiny_folder: Path, tmp_path: Path) -> None:
    exchanges = [Exchange("Why is it late?", "It rained."), Exchange("Well?", "I see a bird.")]
    states = States(tiny_folder, tmp_path / "states.npz")
    wanted = [Variant("last", each, 8) for each in hidden_states.CONTEXTS]
    states.compute(exchanges, wanted)
    again = States(tmp_path / "no base is needed", tmp_path / "states.npz")
    again.compute(exchanges, wanted)
    [asked], [alone], [difference], both = (again.parts(exchanges, each) for each in wanted)
    assert np.array_equal(asked, states.parts(exchanges, wanted[0])[0])
    assert np.abs(difference).max() > 1e-3 and np.array_equal(asked - alone, difference)
    assert all(map(np.array_equal, both, (asked, difference)))


def test_states_that_tell_what_is_liked_are_taken_into_the_judge_and_noise_is_not(tmp_path: Path) -> None:
    pool = pools.of_sample_community()
    dice = np.random.default_rng(3)
    liked = [bool(value) for value in dice.random(len(pool.exchanges)) < 0.4]
    texts = pools.texts_of(pool.exchanges, pool.groups, liked)
    states = dice.normal(size=(len(liked), 2, 40)) + 1.0
    states[:, 0, 7] += 4.0 * np.asarray(liked)
    kept = {hidden_states.key_of(each): row for each, row in zip(pool.exchanges, states, strict=True)}
    np.savez(tmp_path / "states.npz", keys=np.asarray(list(kept)), states=np.asarray(list(kept.values())))
    known = States(tmp_path, tmp_path / "states.npz")
    telling, noise = Variant("middle", "asked", 40), Variant("last", "asked", 40)
    found = hidden_states.cell(pool, texts, liked, 150, 0, known, [telling, noise])
    assert found[telling.name]["taken"] and found[telling.name]["gain"] > 0.1
    assert found[telling.name]["gain"] == found[telling.name]["always"]
    assert not found[noise.name]["taken"] and found[noise.name]["gain"] == 0
