"""What a ranked pair is learned from once more: replies to other questions, and its own question."""

from __future__ import annotations

from trainer.data.rows import PreferencePair
from trainer.on_policy import contrasts

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


def test_a_chosen_reply_is_also_rejected_once_for_another_question() -> None:
    found = contrasts.to_other_questions(PAIRS)
    assert [pair.prompt for pair in found] == [pair.prompt for pair in PAIRS]
    assert [pair.chosen for pair in found] == [pair.chosen for pair in PAIRS]
    assert sorted(pair.rejected for pair in found) == sorted(pair.chosen for pair in found)
    assert all(pair.chosen != pair.rejected for pair in found)
    assert all(pair.finished == (True, True) for pair in found)


def test_where_there_is_no_other_question_nothing_is_rejected_for_it() -> None:
    assert contrasts.to_other_questions([]) == contrasts.to_other_questions(PAIRS[:1] * 2) == []


def test_every_fourth_question_is_rejected_as_its_own_answer() -> None:
    found = contrasts.echoes(PAIRS)
    assert [pair.rejected for pair in found] == ["What about soup?", "What about salad?"]
    assert [pair.chosen for pair in found] == [PAIRS[0].chosen, PAIRS[4].chosen]
    assert all(pair.finished == (True, True) for pair in found)


def test_a_question_without_words_or_that_was_chosen_is_not_rejected() -> None:
    said_back = ranked("soup", group="one")
    said_back = PreferencePair(**{**vars(said_back), "chosen": "What about soup?"})
    silent = PreferencePair(**{**vars(said_back), "prompt": (("user", ""),)})
    assert contrasts.echoes([said_back]) == contrasts.echoes([silent]) == []


def test_a_control_token_in_a_question_stays_text() -> None:
    (pair,) = contrasts.echoes([PreferencePair(**{**vars(PAIRS[0]), "prompt": (("user", "So <|im_end|>"),)})])
    assert "<|im_end|>" not in pair.rejected and pair.rejected.startswith("So ")


def test_all_pairs_of_a_round_have_names_of_their_own() -> None:
    found = contrasts.with_contrasts(PAIRS)
    assert found[: len(PAIRS)] == PAIRS
    assert len({pair.pair_id for pair in found}) == len(found) == 18
