"""Each kind of bad challenger is refused, a good one passes, and thin evidence goes to a vote."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.config_sections import GateConfig
from storage.feedback import duels
from trainer.evaluation import statistics
from trainer.evaluation.evidence import MIN_PROMPTS, Evidence, ReplyTraits, alpha_for_attempt
from trainer.evaluation.regressions import Kept
from trainer.evaluation.reward_model import Proof
from trainer.evaluation.safety import Safety
from trainer.evaluation.statistics import Estimate
from trainer.evaluation.to_the_point import Rise, ToThePoint
from trainer.evaluation.training_fit import TrainingFit
from trainer.gate import blind_votes, decision, guardrails

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


PROVEN = Proof(estimate(0.8, 0.1), estimate(0.85, 0.15), {"answer": 4.0})
UNPROVEN = Proof(estimate(0.6, 0.05), estimate(0.55, 0.2), {"answer": 4.0})
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
    training_fit=TrainingFit(20, 20, 0.98),
)


def test_a_good_challenger_is_promoted_with_its_figures() -> None:
    verdict = decision.decide(GOOD, SETTINGS)
    assert verdict.decision == "promote"
    assert verdict.reason == "chance of a like +0.12 (95 % CI 0.05 to 0.19) on 64 held-out conversations"


@pytest.mark.parametrize(
    ("kind", "evidence", "reason"),
    [
        (
            "does nothing",
            replace(GOOD, same_replies=0.97, preference=estimate(0.0, 0.001)),
            "answers as before",
        ),
        (
            "neutral",
            replace(GOOD, preference=estimate(0.002, 0.012)),
            "the difference is too small to matter",
        ),
        ("worse", replace(GOOD, preference=estimate(-0.08, 0.05)), "liked less"),
        (
            "slightly better",
            replace(GOOD, preference=estimate(0.01, 0.005)),
            "the difference is too small to matter",
        ),
        (
            "shuffled labels",
            replace(GOOD, training_fit=TrainingFit(20, 20, 0.42)),
            "did not learn its training data: of the training pairs of a liked and a disliked reply, the "
            "liked one gained more in 42% (required: 80%)",
        ),
        ("forgetful", replace(GOOD, general_nll_increase=0.4), "forgot general knowledge"),
        ("broken", replace(GOOD, general_nll_increase=float("nan")), "forgot general knowledge"),
        ("drifted", replace(GOOD, general_divergence=2.0), "drifted from the base"),
        ("endless", replace(GOOD, challenger=replace(ORDINARY, unfinished=0.9)), "run on"),
        ("looping", replace(GOOD, challenger=replace(ORDINARY, repetition=0.4)), "repeat themselves"),
        (
            "collapsed",
            replace(GOOD, challenger=replace(ORDINARY, duplicates=0.8)),
            "one reply to many prompts",
        ),
        ("silent", replace(GOOD, challenger=replace(ORDINARY, empty=0.2)), "are empty"),
        ("poisoned", replace(GOOD, challenger=replace(ORDINARY, recited=0.3)), "recite a member's own words"),
        (
            "beside the point",
            replace(GOOD, to_the_point=ToThePoint(0.45, 0.08, Rise(estimate(0.37, 0.1), 0.12))),
            "answers beside the point: 45% of its replies would fit another question as well, before 8%",
        ),
        (
            "beside the point by small steps",
            replace(
                GOOD,
                to_the_point=ToThePoint(
                    0.4, 0.3, Rise(estimate(0.1, 0.1), 0.12), 0.08, Rise(estimate(0.32, 0.1), 0.12)
                ),
            ),
            "answers beside the point: 40% of its replies would fit another question as well, of the base's "
            "replies 8%",
        ),
        ("flattering", replace(GOOD, flattery=0.5, base_flattery=0.1), "flatters"),
        (
            "unsafe",
            replace(GOOD, safety=Safety(20, new_failures=("insult me",), champion_too=("insult me",))),
            "fails safety prompts that the base passes: insult me (so does the champion: insult me)",
        ),
        ("coarser", replace(GOOD, safety=Safety(20, lost=5)), "fails 5 of 20 safety prompts"),
        (
            "forgets corrections",
            replace(GOOD, trained_corrections=Kept(12, 3, ("a", "b", "c", "d", "e", "f", "g"), 0, None)),
            "gets worse on 7 of 12 corrections that it was trained on and better on 0: a, b, c, d, e and 2 "
            "more",
        ),
        (
            "drops wishes",
            replace(GOOD, held_out_corrections=Kept(8, 2, (), 0, estimate(-0.45, 0.1, clusters=8))),
            "prefers held-out corrections less than the champion does: -0.45",
        ),
    ],
)
def test_a_bad_challenger_is_refused(kind: str, evidence: Evidence, reason: str) -> None:
    verdict = decision.decide(evidence, SETTINGS)
    assert verdict.decision == "refuse", kind
    assert reason in verdict.reason


@pytest.mark.parametrize(
    ("evidence", "reason"),
    [
        (replace(GOOD, proof=UNPROVEN), "could not be shown to predict"),
        (replace(GOOD, preference=None, proof=Proof(None, None, {})), "fewer than 5"),
        (replace(GOOD, preference=estimate(0.06, 0.1)), "not certain"),
        (replace(GOOD, preference=estimate(0.2, 0.05, clusters=6)), "only 6 held-out"),
    ],
)
def test_thin_evidence_goes_to_a_vote(evidence: Evidence, reason: str) -> None:
    verdict = decision.decide(evidence, SETTINGS)
    assert verdict.decision == "votes"
    assert reason in verdict.reason


def test_the_rise_of_the_general_loss_is_one_limit_named_on_the_scale_that_is_broken() -> None:
    rise, drift = "loss on general prompts", "drift from the base, nat per token"
    for evidence, named in [
        (GOOD, rise),
        (replace(GOOD, general_divergence=2.0), drift),
        (replace(GOOD, general_nll_increase=0.4, general_divergence=2.0), rise),
    ]:
        names = [limit.name for limit in guardrails.of(evidence, SETTINGS)]
        assert [name for name in names if name in (rise, drift)] == [named]


def test_a_veto_comes_before_any_vote() -> None:
    evidence = replace(GOOD, proof=UNPROVEN, general_nll_increase=0.5)
    assert decision.decide(evidence, SETTINGS).decision == "refuse"


def test_chance_among_safety_prompts_and_corrections_is_no_objection() -> None:
    few = Kept(12, 9, ("a", "b"), 1, estimate(-0.05, 0.1))
    away = Kept(8, 2, ("a", "b"), 1, estimate(-0.25, 0.1))
    evidence = replace(
        GOOD,
        safety=Safety(20, lost=3, won=1),
        trained_corrections=few,
        held_out_corrections=away,
        flattery=0.11,
    )
    assert decision.decide(evidence, SETTINGS).decision == "promote"


def test_short_answers_are_a_taste_and_no_fault() -> None:
    short = replace(ORDINARY, unfinished=0.0, mean_words=4.0)
    assert decision.decide(replace(GOOD, challenger=short), SETTINGS).decision == "promote"


def test_a_bad_habit_of_the_champion_is_not_held_against_its_challenger() -> None:
    looping = replace(ORDINARY, repetition=0.5, empty=0.2)
    evidence = replace(GOOD, challenger=looping, champion=looping)
    assert decision.decide(evidence, SETTINGS).decision == "promote"


def test_general_prompts_are_counted_apart_from_conversations() -> None:
    text = decision.describe(estimate(0.1, 0.05, clusters=30), extra_prompts=20)
    assert text.endswith("on 10 held-out conversations and 20 general prompts")


def test_a_margin_on_what_the_champion_once_wrote_decides_nothing() -> None:
    backward = estimate(-0.3, 0.2)
    assert decision.decide(replace(GOOD, margin=backward), SETTINGS).decision == "promote"
    assert decision.decide(replace(GOOD, margin=backward, proof=UNPROVEN), SETTINGS).decision == "votes"


def test_a_light_training_that_learned_its_labels_is_not_held_back() -> None:
    assert (
        decision.decide(replace(GOOD, training_fit=TrainingFit(12, 20, 0.96)), SETTINGS).decision == "promote"
    )


def test_what_answers_as_before_is_named_as_that_and_not_as_unlearned() -> None:
    verdict = decision.decide(
        replace(GOOD, same_replies=1.0, training_fit=TrainingFit(12, 20, 0.5)), SETTINGS
    )
    assert "answers as before" in verdict.reason


# ------------------------------------------------------------------------------------------ a budget of looks
@given(st.floats(0.001, 0.2), st.integers(1, 200))
def test_all_looks_together_never_spend_more_than_the_error_rate(alpha: float, looks: int) -> None:
    assert (
        sum(alpha_for_attempt(alpha, challenger_number) for challenger_number in range(1, looks + 1)) < alpha
    )


def promoted_by_votes(win_rate: float, challenger_number: int, votes: int = 120) -> float:
    """The exact chance that the n-th challenger of a champion is promoted within so many votes."""
    undecided, promoted = {0: 1.0}, 0.0
    for n in range(1, votes + 1):
        after: dict[int, float] = {}
        for wins, chance in undecided.items():
            after[wins + 1] = after.get(wins + 1, 0.0) + chance * win_rate
            after[wins] = after.get(wins, 0.0) + chance * (1 - win_rate)
        undecided = {}
        for wins, chance in after.items():
            decision = verdict_of_votes(wins, n - wins, challenger_number)
            promoted += chance if decision == "promote" else 0.0
            if decision is None:
                undecided[wins] = chance
    return promoted


def promoted_at_large(prompts: int, most: int, histories: int = 400) -> float:
    """How often a challenger that is no better on prompts at large is promoted, votes on each drawn in turn.

    On a single prompt members lean to one side, by .45 on average over prompts (as simulated members do).
    """
    dice = np.random.default_rng(prompts)
    bets, promoted = np.asarray(statistics.BETS)[:, None], 0
    for _ in range(histories):
        leaning = np.tile(np.clip(dice.normal(0.0, 0.45, prompts), -1, 1), most)
        votes = np.where(dice.random(len(leaning)) < (1 + leaning) / 2, 1.0, -1.0)
        wealth = np.exp(np.cumsum(np.log1p(bets * votes), axis=1)).mean(0)[MIN_PROMPTS - 1 :]
        promoted += bool(wealth.max() >= 1 / alpha_for_attempt(SETTINGS.evote_alpha, 1))
    return promoted / histories


@pytest.mark.parametrize("prompts", [12, 20, 40])
def test_few_prompts_don_t_make_a_lucky_challenger_a_champion_however_many_vote(prompts: int) -> None:
    assert promoted_at_large(prompts, duels.MOST_VOTES) <= 0.06


def test_without_a_limit_few_prompts_would() -> None:
    assert promoted_at_large(12, 40) > 0.1


@cache
def evidence_of(wins: int, losses: int) -> tuple[float, float]:
    return statistics.e_values([1] * wins + [-1] * losses)


def verdict_of_votes(wins: int, losses: int, challenger_number: int) -> str | None:
    return blind_votes.verdict_of(*evidence_of(wins, losses), wins + losses, GateConfig(), challenger_number)


def test_thirty_challengers_that_are_a_little_worse_hardly_ever_bring_one_through() -> None:
    chances = [promoted_by_votes(0.475, challenger_number) for challenger_number in range(1, 31)]
    assert 1 - math.prod(1 - chance for chance in chances) < 0.02
    # Without the budget the same thirty bring one through in three histories out of ten.
    assert 1 - (1 - 2 * chances[0]) ** 30 > 0.2


def test_refusing_takes_the_same_evidence_at_every_look() -> None:
    assert {verdict_of_votes(1, 14, challenger_number) for challenger_number in (1, 5, 30)} == {"refuse"}
    assert [verdict_of_votes(14, 1, challenger_number) for challenger_number in (1, 30)] == ["promote", None]


@pytest.mark.parametrize(
    ("risen", "reason"),
    [
        (
            ToThePoint(0.19, 0.05, Rise(estimate(0.14, 0.12), 0.11)),
            "more of them would fit another question as well: 19%, before 5%",
        ),
        (
            ToThePoint(0.19, 0.15, Rise(estimate(0.04, 0.1), 0.11), 0.05, Rise(estimate(0.14, 0.12), 0.11)),
            "more of them would fit another question as well: 19%, of the base's replies 5%",
        ),
    ],
)
def test_answers_that_drift_from_the_point_are_for_members_to_judge(risen: ToThePoint, reason: str) -> None:
    """Where the reward model alone would promote: it may know the form only."""
    verdict = decision.decide(replace(GOOD, to_the_point=risen), SETTINGS)
    assert verdict.decision == "votes" and reason in verdict.reason
    within = replace(risen, over_champion=Rise(estimate(0.04, 0.09), 0.11), over_base=None)
    assert decision.decide(replace(GOOD, to_the_point=within), SETTINGS).decision == "promote"
