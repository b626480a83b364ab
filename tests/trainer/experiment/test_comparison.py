"""Which setting is best, and when that is noise."""

from __future__ import annotations

from dataclasses import replace

from bot.serving.protocol import ChatMessage
from storage.config_sections import GateConfig
from storage.experiments import AS_CONFIGURED
from tests.storage.a_run import a_run
from trainer.evaluation import reward_model
from trainer.evaluation.reward_model import RatedText
from trainer.evaluation.scores import Answer, Prompt
from trainer.experiment import comparison
from trainer.experiment.measured import BASE, Measured, expected_minutes
from trainer.experiment.page import render

GATE = GateConfig(bootstrap=400)
PROMPTS = [Prompt((ChatMessage("user", f"What of number {n}?"),), f"c{n}") for n in range(32)]
PLAIN, ASKING = "Number {n} is one of many things.", "I like number {n}. Do you like it too?"
RATED = [
    RatedText((ASKING if n % 2 else PLAIN).format(n=n), bool(n % 2), 1.0, f"g{n}", question="What of it?")
    for n in range(120)
]
JUDGE = reward_model.fit(RATED, reward_model.penalties_for(RATED))


def said(name: str, asking: int, *, rise: float = 0.0) -> Measured:
    """One that asks back in so many of its replies, and there pleases."""
    answers = [
        Answer((ASKING if (7 * n) % 32 < asking else PLAIN).format(n=n), True) for n in range(len(PROMPTS))
    ]
    return Measured(name, tuple(answers), 8.0, 0.6, rise, changes={"rank": asking})


def compared(*settings: Measured) -> comparison.Comparison:
    every = [said(BASE, 0), said(AS_CONFIGURED, 12), *settings]
    return comparison.compare(every, PROMPTS, JUDGE, RATED, RATED[:20], GATE, 0)


def test_one_that_is_surely_liked_better_wins_and_the_base_comes_last() -> None:
    found = compared(said("rank 30", 30), said("rank 2", 2))
    assert [each.measured.name for each in found.standings] == ["rank 30", AS_CONFIGURED, "rank 2", BASE]
    assert [each.surely for each in found.standings[:3]] == ["better", "", "worse"]
    assert found.winner is not None and found.winner.name == "rank 30"
    assert "rank 30 scored best" in found.sentence


def test_a_difference_that_chance_may_have_made_is_called_noise() -> None:
    found = compared(said("rank 14", 14))
    assert found.standings[0].measured.name == "rank 14" and found.standings[0].surely == ""
    assert found.winner is None
    assert "none is better than the configured ones by more than noise" in found.sentence


def test_the_more_settings_are_tried_the_surer_the_best_has_to_be() -> None:
    alone = compared(said("rank 20", 20)).standings[0].difference
    one_of_ten = (
        compared(said("rank 20", 20), *(said(f"seed {n}", 12) for n in range(9))).standings[0].difference
    )
    assert alone is not None and one_of_ten is not None
    assert alone.value == one_of_ten.value and one_of_ten.low < alone.low


def test_one_that_forgets_more_than_the_gate_lets_pass_never_wins() -> None:
    found = compared(said("rank 30", 30, rise=0.5))
    assert found.winner is None
    assert found.standings[0].measured.name == AS_CONFIGURED


def test_a_setting_on_another_base_may_win_and_that_base_as_it_is_stands_last() -> None:
    on_other = replace(
        said("base other, rank 30", 30), base="other", revision="abc", changes={"base": "other", "rank": 30}
    )
    other = replace(said("the base other", 32), base="other")
    found = compared(on_other, other)
    assert [each.measured.name for each in found.standings[2:]] == ["the base other", BASE]
    assert found.winner is on_other and found.as_json()["winner_revision"] == "abc"
    assert compared(other).winner is None, "it is what others began from, and was not asked for"
    assert "Of 2 settings" in found.sentence


def test_perplexities_in_the_tokens_of_another_base_are_marked_on_the_page() -> None:
    on_other = replace(said("base other", 12), base="other")
    run, refused = a_run(), {"base larger": "It takes about 9 GB & 1 GB is free."}
    page_of = render(run, compared(on_other), [], refused)
    assert page_of.count("8.00*") == 1 and "in the tokens of another base" in page_of
    assert "base larger" in page_of and "9 GB &amp; 1 GB" in page_of
    assert "tokens of another base" not in render(run, compared(), [], {})


def test_a_setting_takes_as_long_as_those_on_its_base_or_longer_by_the_base_s_size() -> None:
    first = replace(said(AS_CONFIGURED, 12), minutes=4.0)
    on_other = replace(said("base other", 12), base="other", minutes=9.0)
    bases = [said(BASE, 0), replace(said("the base other", 0), base="other")]
    assert expected_minutes(bases, "", 1.0) is None
    assert expected_minutes([*bases, first], "", 1.0) == 4.0
    assert expected_minutes([*bases, first], "other", 3.0) == 12.0
    assert expected_minutes([*bases, first], "other", 0.5) == 4.0, "never less than was seen"
    assert expected_minutes([*bases, first, on_other], "other", 3.0) == 9.0


def test_without_a_proven_reward_model_nothing_is_said_to_be_better() -> None:
    found = comparison.compare(
        [said(AS_CONFIGURED, 12), replace(said("rank 30", 30))], PROMPTS, None, RATED, RATED[:20], GATE, 0
    )
    assert found.winner is None and all(each.liked is None for each in found.standings)
    assert "can't be told apart" in found.sentence
