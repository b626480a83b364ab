"""What an operator brings to a rehearsal: tastes, prompts, a cast; and what the taste says of the result."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.playground.discord import community
from bot.playground.errors import RehearsalError
from bot.playground.simulation import measuring
from bot.playground.simulation.custom_tastes import parse_wishes, read_description, wish
from bot.playground.simulation.rehearsal import Cast
from bot.playground.simulation.tastes import LIKED_FROM, TASTES


@pytest.mark.parametrize(
    ("wishes", "better", "worse"),
    [
        (["question"], "And you?", "I see."),
        (["not:question"], "I see.", "And you?"),
        (["words=4"], "four words are fine", "one two three four five six seven eight"),
        (["at_least=4"], "four words are enough", "one"),
        (["like=please,of course"], "Of course!", "No."),
        (["avoid=certainly"], "Sure.", "Certainly, sure."),
        (["warm", "plain"], "You will love it!", "- One loves it"),
        (["question*9", "words=2"], "a b c d e f g h?", "Yes."),
    ],
)
def test_a_wished_taste_prefers_what_was_wished_for(wishes: list[str], better: str, worse: str) -> None:
    taste = wish(parse_wishes(wishes))
    assert taste.utility(better) > taste.utility(worse)


def test_words_are_whole_words_and_an_empty_reply_pleases_nobody() -> None:
    taste = wish({"like": ["art"]})
    assert (taste.utility("an art"), taste.utility("a party"), taste.utility(" ")) == (1.0, 0.0, 0.0)
    assert wish({"avoid": ["art"]}).utility("") == 0.0


@given(st.text(max_size=500))
def test_a_wished_utility_lies_between_0_and_1(text: str) -> None:
    taste = wish({"words": 5, "question": True, "warm": False, "avoid": ["a"], "weights": {"words": 3}})
    assert 0.0 <= taste.utility(text) <= 1.0


def test_a_taste_is_read_from_toml(tmp_path: Path) -> None:
    file = tmp_path / "kind.toml"
    file.write_text("question = true\nwords = 20\n[weights]\nquestion = 3\n")
    taste = wish(read_description(file))
    assert taste.title == "kind" and "ends with a question" in taste.description
    assert taste.utility("And you?") == 1.0 and taste.utility("Fine.") == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("description", "sentence"),
    [
        ({"rudeness": True}, "there are question, one_sentence"),
        ({}, "at least one feature"),
        ({"question": "yes"}, "either true or false"),
        ({"words": 0}, "whole number from 1"),
        ({"like": "please"}, "a list of words"),
        ({"question": True, "weights": {"words": 1}}, "features that the taste has"),
        ({"question": True, "weights": {"question": -1}}, "number above 0"),
    ],
)
def test_what_is_no_taste_is_refused_with_what_there_is(description: dict, sentence: str) -> None:
    with pytest.raises(RehearsalError, match=sentence):
        wish(description)


def test_a_value_that_is_no_number_and_a_file_that_is_no_toml_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(RehearsalError, match="words is a number"):
        parse_wishes(["words=few"])
    file = tmp_path / "broken.toml"
    file.write_text("question = = 1")
    with pytest.raises(RehearsalError, match="not a TOML file"):
        read_description(file)


@pytest.mark.parametrize(
    ("cast", "sentence"),
    [
        (Cast(prompts=()), "1 to 2000 prompts"),
        (Cast(members=2), "has 3 to"),
        (Cast(members=community.MAX_CROWD + 1), "to 60 members"),
        (Cast(trolls=10), "fewer trolls"),
        (Cast(noise=2.0), "between 0 and 1"),
        (Cast(), ""),
    ],
)
def test_a_cast_that_can_not_play_says_why(cast: Cast, sentence: str) -> None:
    assert sentence in cast.problem() and bool(sentence) == bool(cast.problem())


def test_trolls_say_the_opposite_and_guests_join_beyond_the_usual_members() -> None:
    cast = Cast(members=14, trolls=2, noise=0.0)
    assert [person.simulated for person in cast.people] == [True] * 14
    assert len({person.user_id for person in (*cast.people, *community.PEOPLE)}) == len(community.PEOPLE) + 4
    good, bad = TASTES["warm"].example, "One should consider it."
    liked = [cast.rater(person, TASTES["warm"], 0).likes(good) for person in cast.people]
    assert liked == [True] * 12 + [False] * 2
    assert cast.rater(cast.people[-1], TASTES["warm"], 0).likes(bad)
    assert TASTES["warm"].utility(bad) < LIKED_FROM


def test_a_quarter_of_the_prompts_is_kept_back_and_the_same_every_time() -> None:
    prompts = [f"prompt {n}" for n in range(40)]
    rehearsed, kept = measuring.split_prompts(prompts)
    assert len(kept) == 10 and set(rehearsed) | set(kept) == set(prompts) and not set(rehearsed) & set(kept)
    assert set(measuring.split_prompts(prompts[::-1])[1]) == set(kept)
    with pytest.raises(RehearsalError, match="at least 8"):
        measuring.split_prompts(prompts[:7])


def test_the_gain_is_paired_and_its_interval_says_how_sure_it_is() -> None:
    taste = wish({"question": True})
    before, after = ["Fine."] * 20, ["And you?"] * 15 + ["Fine."] * 5
    found = measuring.measure_worth(taste, before, after, 20)
    assert (found.before, found.after, found.gain, found.prompts) == (0.0, 0.75, 0.75, 20)
    assert 0.5 < found.low < 0.75 < found.high < 1.0
    same = measuring.measure_worth(taste, before, before, 20)
    assert (same.low, same.gain, same.high) == (0.0, 0.0, 0.0)


def test_few_prompts_are_asked_a_few_times_and_count_as_one_each() -> None:
    taste = wish({"question": True})
    assert measuring.repeat_prompts(["a", "b"])[:4] == ("a", "b", "a", "b")
    assert len(measuring.repeat_prompts(["x"] * 40)) == 40
    found = measuring.measure_worth(taste, ["No."] * 4, ["Yes?", "No.", "Yes?", "No."], 2)
    assert (found.gain, found.prompts, found.low, found.high) == (0.5, 2, 0.0, 1.0)
