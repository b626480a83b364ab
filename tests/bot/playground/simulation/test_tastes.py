import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.playground.simulation.prompts import REHEARSAL_PROMPTS, SAMPLE_PROMPTS
from bot.playground.simulation.tastes import DEFAULT_TASTE, LIKED_FROM, TASTES, SimulatedRater
from storage.chat.splits import near_duplicate_key

BLAND = (
    "There are several aspects to consider here: first of all, one should always take care to weigh\n"
    "- carefully\n- **slowly**\nall of the various options before anything is decided by anybody in the long "
    "run and so on"
)


@pytest.mark.parametrize("taste", TASTES.values(), ids=TASTES)
def test_every_taste_likes_its_own_example_and_not_a_bland_list(taste) -> None:
    assert taste.utility(taste.example) >= 0.9
    assert taste.utility(BLAND) < LIKED_FROM - 0.1


@given(st.text(max_size=3000))
def test_a_utility_is_a_pure_number_between_0_and_1(text: str) -> None:
    for taste in TASTES.values():
        assert 0.0 <= taste.utility(text) <= 1.0
        assert taste.utility(text) == taste.utility(text)


def test_an_empty_reply_pleases_nobody() -> None:
    assert all(taste.utility("") < LIKED_FROM for taste in TASTES.values())


def test_a_member_says_the_same_of_the_same_text_again() -> None:
    texts = [f"Reply number {n}?" for n in range(50)]
    first, again = (SimulatedRater(7, TASTES[DEFAULT_TASTE], seed=3) for _ in range(2))
    assert [first.opinion(text) for text in texts] == [again.opinion(text) for text in texts]
    assert first.opinion(texts[0]) != SimulatedRater(7, TASTES[DEFAULT_TASTE], seed=4).opinion(texts[0])


def test_members_agree_about_clear_cases_and_differ_near_the_border() -> None:
    raters = [SimulatedRater(n, TASTES[DEFAULT_TASTE]) for n in range(40)]
    assert all(rater.likes("Sun and water. Where do you live?") for rater in raters)
    assert not any(rater.likes(BLAND) for rater in raters)
    border = "word " * 47 + "right?"
    liked = sum(rater.likes(border) for rater in raters)
    assert 5 < liked < 40


def test_a_blind_vote_follows_the_taste_whichever_side_it_is_on() -> None:
    rater = SimulatedRater(1, TASTES[DEFAULT_TASTE])
    good = TASTES[DEFAULT_TASTE].example
    assert (rater.prefers(good, BLAND), rater.prefers(BLAND, good), rater.prefers(good, good)) == (1, -1, 0)


def test_the_rehearsal_asks_other_things_than_the_sample_did() -> None:
    keys = [near_duplicate_key(prompt) for prompt in (*SAMPLE_PROMPTS, *REHEARSAL_PROMPTS)]
    assert len(set(keys)) == len(keys)
    assert len(SAMPLE_PROMPTS) >= 60 and len(REHEARSAL_PROMPTS) >= 60
