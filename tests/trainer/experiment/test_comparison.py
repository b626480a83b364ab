"""Which setting is best, and when that is noise."""

from __future__ import annotations

from dataclasses import replace

from bot.serving.protocol import ChatMessage
from storage.config_sections import GateConfig
from storage.experiments import AS_CONFIGURED
from trainer.evaluation import reward_model
from trainer.evaluation.reward_model import RatedText
from trainer.evaluation.scores import Answer, Prompt
from trainer.experiment import comparison
from trainer.experiment.comparison import BASE
from trainer.experiment.measured import Measured

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


def test_without_a_proven_reward_model_nothing_is_said_to_be_better() -> None:
    found = comparison.compare(
        [said(AS_CONFIGURED, 12), replace(said("rank 30", 30))], PROMPTS, None, RATED, RATED[:20], GATE, 0
    )
    assert found.winner is None and all(each.liked is None for each in found.standings)
    assert "can't be told apart" in found.sentence
