"""Each kind of bad challenger is refused, a good one passes, and thin evidence goes to a vote."""

from __future__ import annotations

from dataclasses import replace

import pytest

from storage.config import GateConfig
from trainer import gate
from trainer.gate import Evidence, ReplyTraits
from trainer.reward import Proof
from trainer.statistics import Estimate

SETTINGS = GateConfig()


def estimate(value: float, spread: float, clusters: int = 64) -> Estimate:
    return Estimate(
        value,
        value - spread,
        value + spread,
        value - 0.84 * spread,
        value + 0.84 * spread,
        clusters,
        clusters,
    )


PROVEN = Proof(estimate(0.8, 0.1), estimate(0.85, 0.15), 4.0)
UNPROVEN = Proof(estimate(0.6, 0.05), estimate(0.55, 0.2), 4.0)
ORDINARY = ReplyTraits(
    unfinished=0.5, repetition=0.05, duplicates=0.0, empty=0.0, recited=0.0, mean_words=30.0
)
GOOD = Evidence(
    preference=estimate(0.12, 0.07),
    proof=PROVEN,
    margin=estimate(0.05, 0.2),
    general_nll_increase=0.02,
    general_divergence=0.02,
    challenger=replace(ORDINARY, unfinished=0.2, mean_words=15.0),
    champion=ORDINARY,
    same_replies=0.1,
    prompts=64,
    extra_prompts=0,
)


def test_a_good_challenger_is_promoted_with_its_figures() -> None:
    verdict = gate.decide(GOOD, SETTINGS)
    assert verdict.decision == "promote"
    assert verdict.reason == "+0.12 (95 % CI 0.05 to 0.19) on 64 held-out conversations"


@pytest.mark.parametrize(
    ("kind", "evidence", "reason"),
    [
        (
            "does nothing",
            replace(GOOD, same_replies=0.97, preference=estimate(0.0, 0.001)),
            "answers as before",
        ),
        ("neutral", replace(GOOD, preference=estimate(0.002, 0.012)), "no difference worth a change"),
        ("worse", replace(GOOD, preference=estimate(-0.08, 0.05)), "liked less"),
        ("slightly better", replace(GOOD, preference=estimate(0.01, 0.005)), "no difference worth a change"),
        (
            "shuffled labels",
            replace(GOOD, margin=estimate(-0.3, 0.2)),
            "disliked held-out replies more likely",
        ),
        ("forgetful", replace(GOOD, general_nll_increase=0.4), "forgot general knowledge"),
        ("broken", replace(GOOD, general_nll_increase=float("nan")), "forgot general knowledge"),
        ("drifted", replace(GOOD, general_nll_increase=0.1, general_divergence=2.0), "drifted from the base"),
        ("endless", replace(GOOD, challenger=replace(ORDINARY, unfinished=0.9)), "run on"),
        ("looping", replace(GOOD, challenger=replace(ORDINARY, repetition=0.4)), "repeat themselves"),
        (
            "collapsed",
            replace(GOOD, challenger=replace(ORDINARY, duplicates=0.8)),
            "one reply to many prompts",
        ),
        ("silent", replace(GOOD, challenger=replace(ORDINARY, empty=0.2)), "are empty"),
        ("poisoned", replace(GOOD, challenger=replace(ORDINARY, recited=0.3)), "recite a member's own words"),
    ],
)
def test_a_bad_challenger_is_refused(kind: str, evidence: Evidence, reason: str) -> None:
    verdict = gate.decide(evidence, SETTINGS)
    assert verdict.decision == "refuse", kind
    assert reason in verdict.reason


@pytest.mark.parametrize(
    ("evidence", "reason"),
    [
        (replace(GOOD, proof=UNPROVEN), "could not be shown to predict"),
        (replace(GOOD, preference=None, proof=Proof(None, None, 4.0)), "fewer than 5"),
        (replace(GOOD, preference=estimate(0.06, 0.1)), "not certain"),
        (replace(GOOD, preference=estimate(0.2, 0.05, clusters=6)), "only 6 held-out"),
    ],
)
def test_thin_evidence_goes_to_a_vote(evidence: Evidence, reason: str) -> None:
    verdict = gate.decide(evidence, SETTINGS)
    assert verdict.decision == "votes"
    assert reason in verdict.reason


def test_a_veto_comes_before_any_vote() -> None:
    evidence = replace(GOOD, proof=UNPROVEN, general_nll_increase=0.5)
    assert gate.decide(evidence, SETTINGS).decision == "refuse"


def test_short_answers_are_a_taste_and_no_fault() -> None:
    short = replace(ORDINARY, unfinished=0.0, mean_words=4.0)
    assert gate.decide(replace(GOOD, challenger=short), SETTINGS).decision == "promote"


def test_a_bad_habit_of_the_champion_is_not_held_against_its_challenger() -> None:
    looping = replace(ORDINARY, repetition=0.5, empty=0.2)
    evidence = replace(GOOD, challenger=looping, champion=looping)
    assert gate.decide(evidence, SETTINGS).decision == "promote"


def test_general_prompts_are_counted_apart_from_conversations() -> None:
    text = gate.describe(estimate(0.1, 0.05, clusters=30), extra_prompts=20)
    assert text.endswith("on 10 held-out conversations and 20 general prompts")
