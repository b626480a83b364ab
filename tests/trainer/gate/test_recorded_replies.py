"""The limits on answers beside the point, on recorded replies of a base and of challengers trained from it.

The challengers learned the sample community's taste; `dealt` are a challenger's own replies, each given to
another question: a style that pleases, and nothing to the point.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.trainer.gate.test_decision import GOOD, SETTINGS
from trainer.evaluation import to_the_point
from trainer.evaluation.to_the_point import Tie, TiedAnswers
from trainer.gate import decision

FILE = Path(__file__).parent / "recorded_replies.json"
JUDGE = {"resamples": 2000, "confidence": 0.95, "seed": 0}
RESAMPLES = 20


def recorded(kind: str) -> list[list[TiedAnswers]]:
    found = json.loads(FILE.read_text(encoding="utf-8"))["challengers"]
    return [
        [
            TiedAnswers(
                each.get("cluster", each["question"]),
                *(Tie(each[who]["own"], tuple(each[who]["others"])) for who in ("challenger", "champion")),
            )
            for each in one["replies"]
        ]
        for one in found
        if one["kind"] == kind
    ]


def verdict(tied: Sequence[TiedAnswers]) -> str:
    """What becomes of a challenger whose replies the reward model likes better, and surely so."""
    found = to_the_point.summarise(tied, **JUDGE)
    assert found is not None
    return decision.decide(replace(GOOD, to_the_point=found), SETTINGS).decision


def resampled(tied: Sequence[TiedAnswers], seed: int) -> list[TiedAnswers]:
    """Its conversations drawn anew."""
    dice = random.Random(seed)
    groups: dict[str, list[TiedAnswers]] = {}
    for each in tied:
        groups.setdefault(each.cluster, []).append(each)
    drawn = dice.choices(list(groups.values()), k=len(groups))
    return [replace(each, cluster=f"{number}") for number, group in enumerate(drawn) for each in group]


@pytest.mark.parametrize("number", range(3))
def test_a_pleasing_style_beside_the_point_is_refused_in_every_resample(number: int) -> None:
    tied = recorded("dealt")[number]
    assert [verdict(resampled(tied, seed)) for seed in range(RESAMPLES)] == ["refuse"] * RESAMPLES


@pytest.mark.parametrize(("number", "decision"), [(0, "refuse"), (1, "refuse"), (2, "votes")])
def test_one_that_drifts_from_the_point_is_not_promoted_by_the_reward_model_alone(
    number: int, decision: str
) -> None:
    """The first two answer four times as often beside the point as the base."""
    assert verdict(recorded("risen")[number]) == decision


@pytest.mark.parametrize("number", range(3))
def test_one_that_answers_as_much_to_the_point_as_before_is_promoted(number: int) -> None:
    assert verdict(recorded("risen within chance")[number]) == "promote"


@pytest.mark.parametrize(("kind", "number"), [("dealt", 0), ("risen", 0), ("risen within chance", 0)])
def test_no_verdict_hangs_on_how_the_server_multiplies(kind: str, number: int) -> None:
    """`model.precision` fast moves the score of a reply by 0.02 nats on average, and by less than 0.05."""
    dice = random.Random(1)

    def moved(tie: Tie) -> Tie:
        own, *others = (score + dice.uniform(-0.05, 0.05) for score in (tie.own, *tie.others))
        return Tie(own, tuple(others))

    tied = recorded(kind)[number]
    fast = [replace(each, challenger=moved(each.challenger), champion=moved(each.champion)) for each in tied]
    assert verdict(fast) == verdict(tied)


def test_the_base_beside_itself_is_taken_for_worse_no_oftener_than_was_said() -> None:
    """Two draws of its own replies to one question, from all of the recorded runs."""
    drawn: dict[str, set[Tie]] = {}
    for kind in ("risen", "risen within chance", "at the limit"):
        for tied in recorded(kind):
            for each in tied:
                drawn.setdefault(each.cluster, set()).add(each.champion)
    several = {name: sorted(ties, key=lambda tie: tie.own) for name, ties in drawn.items() if len(ties) > 1}
    assert len(several) >= to_the_point.MIN_PROMPTS
    beyond = 0
    for seed in range(400):
        dice = random.Random(seed)
        tied = [TiedAnswers(name, *dice.sample(ties, 2)) for name, ties in several.items()]
        found = to_the_point.summarise(tied, **JUDGE | {"resamples": 200})
        beyond += found is not None and found.over_champion.beyond_chance
    assert beyond / 400 <= 2 * to_the_point.ERROR
