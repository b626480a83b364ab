"""The model's own replies, ranked: what is chosen, what is rejected, and what is left alone."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.rows import row
from trainer.data import examples
from trainer.data.question_features import Exchange
from trainer.data.rows import Row
from trainer.data.snapshot import Snapshot
from trainer.evaluation.reward_model import RatedText, RewardModel, fit
from trainer.evaluation.scores import Answer
from trainer.on_policy import phrases, ranking

ROW = row("r1", asked="What do you think of soup?")


def liking_questions() -> RewardModel:
    liked = [RatedText(f"I like soup {n}. Do you like it too?", True, 1.0, n) for n in range(12)]
    disliked = [RatedText(f"Soup number {n} is a kind of food.", False, 1.0, n) for n in range(24)]
    return fit([*liked, *disliked], {"answer": 4.0})


def test_the_best_and_the_worst_reply_to_a_prompt_make_a_pair() -> None:
    best, worst = Answer("Soup is good. Do you like it too?", True), Answer("Soup is a kind of food.", True)
    (pair,) = ranking.rank_answers(liking_questions(), [ROW], [[worst, best]], "one")
    assert (pair.chosen, pair.rejected) == (best.text, worst.text)
    assert (pair.reply_id, pair.split) == ("r1", "train")


def test_replies_that_differ_less_than_the_model_s_usually_do_make_no_pair() -> None:
    same = [Answer("Soup is a kind of food.", True), Answer("Soup is a type of food.", True)]
    apart = [Answer("Rice is a kind of food.", True), Answer("Rice is good. Do you like it too?", True)]
    other = row("r2", asked="What do you think of rice?")
    (pair,) = ranking.rank_answers(liking_questions(), [ROW, other], [same, apart], "one")
    assert pair.reply_id == "r2"


def test_what_runs_on_or_repeats_itself_is_never_chosen_however_well_it_would_be_liked() -> None:
    question = "Do you like soup too?"
    running = Answer(f"{question} {question} {question} {question} {question}", True)
    cut_off = Answer(question, False)
    sound = Answer("Soup is a kind of food.", True)
    (pair,) = ranking.rank_answers(liking_questions(), [ROW], [[running, cut_off, sound]], "one")
    assert pair.chosen == sound.text
    assert pair.rejected in (running.text, cut_off.text)
    assert ranking.rank_answers(liking_questions(), [ROW], [[running, cut_off]], "one") == []


@given(
    st.lists(st.builds(Answer, st.text(max_size=40).map(str.strip), st.booleans()), min_size=1, max_size=6)
)
def test_a_pair_is_two_of_the_replies_and_the_chosen_one_ended_by_itself(replies: list[Answer]) -> None:
    for pair in ranking.rank_answers(liking_questions(), [ROW], [replies], "one"):
        assert Answer(pair.chosen, True) in replies
        assert Answer(pair.rejected, pair.finished[1]) in replies
        assert pair.finished[0]


def liked_questions(count: int, split: str = "train") -> list[Row]:
    return [row(f"q{n}", text=f"I like soup {n}. Do you like it too?", split=split) for n in range(count)]


def test_members_who_only_like_are_told_by_how_their_likes_differ_from_the_usual_replies() -> None:
    rows = liked_questions(12)
    references = [[Answer(f"Soup number {n} is a kind of food.", True)] for n in range(12)]
    judge = ranking.fit_pu_reward_model(Snapshot(tuple(rows), "hash"), rows, references, seed=0)
    assert judge is not None
    asking, telling = judge.probability(
        [Exchange("", "Rice is good. Is it good for you?"), Exchange("", "Rice is a kind of food.")]
    )
    assert asking > telling


def test_likes_that_nothing_sets_apart_from_the_usual_replies_rank_nothing() -> None:
    rows = [row(f"r{n}", text=f"Soup number {n} is a kind of food.") for n in range(12)]
    references = [[Answer(r.text, True)] for r in rows]
    assert ranking.fit_pu_reward_model(Snapshot(tuple(rows), "hash"), rows, references, seed=0) is None


def test_usual_replies_stand_in_for_dislikes_only_where_there_are_next_to_none() -> None:
    disliked = [row(f"d{n}", "disliked") for n in range(5)]
    held_out = [row(f"h{n}", "disliked", split="gate") for n in range(9)]
    assert ranking.only_liked(Snapshot((*liked_questions(5), *disliked[:4], *held_out), "hash"))
    assert not ranking.only_liked(Snapshot((*liked_questions(5), *disliked), "hash"))
    assert not ranking.only_liked(Snapshot(tuple(liked_questions(4)), "hash"))


def test_the_base_s_usual_replies_are_kept_for_an_attempt_that_goes_on(tmp_path: Path) -> None:
    references = [[Answer("Ünïcode is fine.", True), Answer("and so", False)], [Answer("Yes.", True)]]
    assert ranking.read_reference_completions(tmp_path) is None
    ranking.write_reference_completions(references, tmp_path)
    assert ranking.read_reference_completions(tmp_path) == references
    ranking.forget(tmp_path)
    assert ranking.read_reference_completions(tmp_path) is None


def test_every_four_replies_to_a_prompt_make_a_pair() -> None:
    turns = [
        [Answer(f"Soup {n} is good. Do you like it too?", True), *[Answer(f"Soup {n} is food.", True)] * 3]
        for n in range(2)
    ]
    pairs = ranking.rank_answers(liking_questions(), [ROW], [[*turns[0], *turns[1]]], "one")
    assert [pair.chosen for pair in pairs] == [turn[0].text for turn in turns]
    assert len({pair.pair_id for pair in pairs}) == 2


def test_pairs_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    answers = [Answer("Do you like Ünïcode? I like it.", True), Answer("no", False)]
    pairs = ranking.rank_answers(liking_questions(), [ROW], [answers], "one")
    assert pairs
    assert ranking.read(tmp_path / "pairs.jsonl") is None
    ranking.write(pairs, tmp_path / "pairs.jsonl")
    assert ranking.read(tmp_path / "pairs.jsonl") == pairs


def test_one_answer_to_many_prompts_is_never_chosen_however_often_it_repeats_itself() -> None:
    rows = [row(f"r{n}", asked=f"What do you think of soup number {n}?") for n in range(3)]
    empty = [Answer("What about you? " * times, True) for times in (1, 2, 3)]
    own = [Answer(f"Soup {n} is a kind of food.", True) for n in range(3)]
    pairs = ranking.rank_answers(liking_questions(), rows, list(zip(empty, own, strict=True)), "one")
    assert {pair.chosen for pair in pairs} == {answer.text for answer in own}
    assert {pair.rejected for pair in pairs} == {answer.text for answer in empty}


def test_the_pairs_of_an_attempt_that_may_not_go_on_are_forgotten(tmp_path: Path) -> None:
    answers = [Answer("Do you like soup? I like it.", True), Answer("no", False)]
    pairs = ranking.rank_answers(liking_questions(), [ROW], [answers], "one")
    for number in (1, 2):
        ranking.write(pairs, tmp_path / ranking.file_of(number))
    ranking.forget(tmp_path)
    assert [ranking.read(tmp_path / ranking.file_of(number)) for number in (1, 2)] == [None, None]
    ranking.forget(tmp_path / "never made")


def test_a_sentence_that_everybody_hears_is_worth_less_than_one_about_the_matter() -> None:
    rows = [row(f"r{n}", asked=f"What do you think of soup number {n}?") for n in range(4)]
    common = [Answer(f"I like soup {n}. Do you like it too?", True) for n in range(4)]
    own = [Answer(f"I like soup {n}. Is soup {n} good for you?", True) for n in range(4)]
    pairs = ranking.rank_answers(liking_questions(), rows, list(zip(common, own, strict=True)), "one")
    assert {pair.chosen for pair in pairs} == {answer.text for answer in own}


DISHES = ("soup", "rice", "bread", "fish")


def about(dish: str) -> Row:
    return row(dish, group=dish, asked=f"What do you think of {dish}?")


def test_phrases_that_other_prompts_hear_are_worth_less_also_where_no_sentence_is_the_same() -> None:
    common = [Answer(f"I like {dish}. Do you like it in {dish}?", True) for dish in DISHES]
    own = [Answer(f"I like {dish}. Do you eat {dish} cold too?", True) for dish in DISHES]
    rows = [about(dish) for dish in DISHES]
    pairs = ranking.rank_answers(liking_questions(), rows, list(zip(common, own, strict=True)), "one")
    assert [pair.chosen for pair in pairs] == [answer.text for answer in own]


def test_a_phrase_is_a_run_of_three_words_within_a_sentence() -> None:
    assert phrases.of("What brings you here? No.") == [
        ("what", "bring", "you"),
        ("bring", "you", "here"),
        ("no",),
    ]
    heard = phrases.prompts_that_hear([["Do you like it?", "Do you like it?"], ["Do you like soup?"]])
    assert heard[("do", "you", "like")] == 2 and heard[("you", "like", "it")] == 1
    assert phrases.share_of_others("Do you like it?", heard) == 0.5
    assert phrases.share_of_others("", heard) == 0.0


def test_a_liked_reply_that_repeats_itself_is_no_example_unless_there_is_no_other() -> None:
    sound = row("sound", text="Soup is good. Do you like it?")
    chant = row("chant", text="I like soup! I like soup! I like soup!")
    assert examples.rows_to_imitate([sound, chant]) == [sound]
    assert examples.rows_to_imitate([chant]) == [chant]


def test_an_answer_that_fits_other_questions_too_gives_way_to_the_next_best() -> None:
    pleasing = Answer("I like soup. Do you like it too?", True)
    plain, worst = Answer("I like hot soup a lot, do you?", True), Answer("Soup is a kind of food.", True)
    given = [[worst, plain, pleasing]]
    assert ranking.answers_to_check(liking_questions(), [ROW], given, {}) == [(0, 2)]
    beside = {(0, 2): 1.0}
    assert ranking.answers_to_check(liking_questions(), [ROW], given, beside) == [(0, 1)]
    (pair,) = ranking.rank_answers(liking_questions(), [ROW], given, "one", beside)
    assert pair.chosen == plain.text


def test_where_no_answer_is_to_the_point_nothing_is_taught() -> None:
    given = [[Answer("Soup is a kind of food.", True), Answer("I like soup. Do you like it too?", True)]]
    assert ranking.rank_answers(liking_questions(), [ROW], given, "one", {(0, 0): 1.0, (0, 1): 1.0}) == []
    assert ranking.rank_answers(liking_questions(), [ROW], given, "one", {(0, 0): 0.1, (0, 1): 0.1}) != []
