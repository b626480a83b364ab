"""What a ranked pair is learned from once more: pleasing replies to other questions."""

from __future__ import annotations

from collections.abc import Callable

from trainer.data.rows import PreferencePair
from trainer.evaluation.scores import Answer
from trainer.on_policy import contrasts
from trainer.on_policy.contrasts import Checked

DISHES = ("soup", "rice", "bread", "stew", "salad", "pie", "fish", "cake")


def ranked(dish: str, *, group: str = "") -> PreferencePair:
    return PreferencePair(
        pair_id=f"ranked-1/{dish}",
        reply_id=dish,
        group_key=group or dish,
        split="train",
        prompt=(("user", "Hello"), ("assistant", "Hi."), ("user", f"What about {dish}?")),
        chosen=f"Would hot {dish} do?",
        rejected=f"{dish} it is.",
        finished=(True, False),
        weight=1.0,
        source="rating",
    )


PAIRS = [ranked(dish) for dish in DISHES]


def checked(beside: Callable[[int], float], count: int = 2) -> list[Checked]:
    """So many answers to each dish, and how far each of them fits other questions."""
    return [
        Checked(dish, Answer(f"Would hot {dish} do, {number}?", True), beside(at))
        for at, dish in enumerate(DISHES)
        for number in range(count)
    ]


def test_every_pair_is_also_set_against_an_answer_to_another_question() -> None:
    found = contrasts.to_other_questions(PAIRS, checked(lambda at: 0.1))
    assert [pair.prompt for pair in found] == [pair.prompt for pair in PAIRS]
    assert [pair.chosen for pair in found] == [pair.chosen for pair in PAIRS]
    assert all(pair.reply_id not in pair.rejected for pair in found)
    assert all(pair.finished == (True, True) for pair in found)
    assert not {pair.pair_id for pair in found} & {pair.pair_id for pair in PAIRS}


def test_the_answers_that_fit_other_questions_best_are_rejected_in_turns() -> None:
    found = contrasts.to_other_questions(PAIRS, checked(lambda at: at / 10, count=8))
    assert {pair.rejected.split(",")[0] for pair in found} == {"Would hot fish do", "Would hot cake do"}
    assert len({pair.rejected for pair in found}) == len(PAIRS)


def test_where_there_is_no_other_question_nothing_is_rejected_for_it() -> None:
    own = Checked("soup", Answer("Would cold soup do?", True), 1.0)
    same = Checked("rice", Answer(PAIRS[0].chosen, True), 1.0)
    assert contrasts.to_other_questions([], []) == contrasts.to_other_questions(PAIRS[:1], []) == []
    rejected = Checked("rice", Answer(PAIRS[0].rejected, True), 1.0)
    assert contrasts.to_other_questions(PAIRS[:1], [own, same, rejected]) == []


def test_where_one_question_has_all_the_answers_that_fit_best_others_are_rejected_for_it() -> None:
    own = [Checked("soup", Answer(f"Would cold soup do, {n}?", True), 1.0) for n in range(12)]
    (found,) = contrasts.to_other_questions(PAIRS[:1], [*own, *checked(lambda at: 0.1, count=1)[1:]])
    assert found.rejected == "Would hot rice do, 0?"
