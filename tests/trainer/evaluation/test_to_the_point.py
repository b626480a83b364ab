"""Answers that would fit any question, by how likely the base finds them after others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.serving.protocol import ChatMessage
from trainer.evaluation import log_probabilities, scores, to_the_point
from trainer.evaluation.scores import Answer, GeneralLoss, Pair, Prompt, Scores
from trainer.evaluation.to_the_point import Tie, TiedAnswers

JUDGE = {"resamples": 400, "confidence": 0.95, "seed": 0}
OWN = Tie(-20.0, (-30.0, -28.0))
ANY = Tie(-12.0, (-12.1, -11.9))
DEALT = Tie(-30.0, (-20.0, -29.0))


def answers(count: int, *, beside: int = 0, with_base: int = 0) -> list[TiedAnswers]:
    """A challenger of whose answers every so many fits any question, against one that is to the point."""
    return [
        TiedAnswers(f"c{n}", ANY if beside and n % beside == 0 else OWN, OWN, OWN if n < with_base else None)
        for n in range(count)
    ]


def test_an_answer_that_fits_another_question_as_well_counts_whole_and_its_own_next_to_nothing() -> None:
    assert OWN.beside < 0.01
    assert ANY.beside == pytest.approx(1.0, abs=0.01)
    assert DEALT.beside == 1.0


@given(st.floats(-500, 0), st.lists(st.floats(-500, 0), min_size=1, max_size=4))
def test_a_share_stays_a_share_and_grows_with_the_others(own: float, others: list[float]) -> None:
    tie = Tie(own, tuple(others))
    assert 0.0 <= tie.beside <= 1.0
    assert Tie(own, tuple(other + 1 for other in others)).beside >= tie.beside


def test_a_challenger_that_often_answers_beside_the_point_rises_clearly() -> None:
    found = to_the_point.summarise(answers(32, beside=2), **JUDGE)
    assert found is not None
    assert found.challenger == pytest.approx(0.5, abs=0.02)
    assert found.over_champion.estimate.bound_low > 0.3
    assert found.over_champion.estimate.value > found.over_champion.most_by_chance + 0.1
    assert found.over_base is None


def test_the_base_is_compared_with_where_it_has_answered_enough() -> None:
    few = to_the_point.summarise(answers(32, beside=2, with_base=11), **JUDGE)
    enough = to_the_point.summarise(answers(32, beside=2, with_base=16), **JUDGE)
    assert few is not None and few.over_base is None
    assert enough is not None and enough.over_base is not None
    assert enough.over_base.estimate.clusters == 16 and enough.over_base.estimate.bound_low > 0.2


def test_too_few_prompts_say_nothing() -> None:
    assert to_the_point.summarise(answers(11), **JUDGE) is None


def test_ties_are_kept_with_the_scores(tmp_path: Path) -> None:
    pair = Pair(Prompt((ChatMessage("user", "Tea?"),), "g"), Answer("Yes.", True), Answer("No.", True))
    kept = Scores((pair,), (GeneralLoss(1, 1.0, 1.0),), (), tied=tuple(answers(3, beside=2, with_base=1)))
    scores.write(kept, tmp_path)
    assert scores.read(tmp_path) == kept


def test_an_answer_is_put_behind_other_questions_and_never_behind_its_own() -> None:
    system = ChatMessage("system", "Be brief.")
    prompts = [(system, ChatMessage("user", f"What of number {n // 2}?")) for n in range(12)]
    for at, prompt in enumerate(prompts):
        own, *others = log_probabilities.contexts_of(prompts, at)
        assert own == prompt
        assert len({other[-1].content for other in others} - {prompt[-1].content}) == to_the_point.OTHERS
        assert all(other[0] == system for other in others)


def test_a_single_question_has_no_others() -> None:
    prompts = [(ChatMessage("user", "Tea?"),)] * 3
    assert log_probabilities.contexts_of(prompts, 0) == [prompts[0]]


@pytest.mark.parametrize(
    ("found", "doubtful"),
    [
        (answers(32), False),
        (answers(32, beside=32), False),
        (answers(32, beside=8), True),
        (answers(32, beside=2), False),
        ([], False),
    ],
)
def test_a_rise_that_matters_and_is_not_large_leaves_doubt(found: list[TiedAnswers], doubtful: bool) -> None:
    assert to_the_point.in_doubt(found) == doubtful


class Letters:
    """A codec of one token a letter."""

    stop_id = 0

    def prompt_ids(self, messages: Sequence[ChatMessage]) -> list[int]:
        return [ord(letter) for letter in messages[-1].content]

    def text_ids(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]


class FindsWhatWasAsked:
    """A served base that finds letters of the question likelier than others."""

    async def score(self, *, prompts: Sequence[Sequence[int]], **_: Any) -> list[list[float]]:
        return [[-1.0 if ids.count(each) > 1 else -9.0 for each in ids] for ids in prompts]


def asked(count: int, *, answered: str = "", every: int = 4) -> list[Pair]:
    """A letter for each question, and answers that say it, but for one in so many."""
    return [
        Pair(
            Prompt((ChatMessage("user", chr(0x4E00 + n)),), f"g{n}"),
            challenger=Answer(answered if answered and n % every == 0 else chr(0x4E00 + n), True),
            champion=Answer(chr(0x4E00 + n), True),
        )
        for n in range(count)
    ]


@pytest.mark.parametrize(
    ("pairs", "looked_at"),
    [
        (asked(40), to_the_point.MOST_PROMPTS),
        (asked(40, answered="?"), 40),
        ([*asked(60, answered="?"), *asked(60, answered="!")], to_the_point.MOST_IN_DOUBT),
        (asked(20) * 2, 20),
    ],
)
def test_more_answers_are_looked_at_where_the_first_leave_doubt(pairs: list[Pair], looked_at: int) -> None:
    client: Any = FindsWhatWasAsked()
    tied = asyncio.run(log_probabilities.tied_answers(client, Letters(), "base", pairs, 64))
    assert len(tied) == looked_at
    assert [each.cluster for each in tied] == [pair.prompt.group for pair in pairs[:looked_at]]
    assert all(each.champion.beside < 0.01 for each in tied)
