"""What ratings of two adapters side by side say: units, blocks, and a test that may be looked at always."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.config_sections import GateConfig
from storage.learning.trials import PairVote, Side, TrialRating
from trainer.evaluation import statistics
from trainer.evaluation.evidence import MIN_PROMPTS, alpha_for_attempt
from trainer.gate import canary
from trainer.gate.canary import Conversation, TrialEvidence

SETTINGS = GateConfig()
ALPHA = SETTINGS.evote_alpha

thumbs = st.lists(
    st.tuples(st.sampled_from(["newcomer", "incumbent"]), st.sampled_from([-1.0, 0.0, 0.5, 1.0])), max_size=40
)


def rated(*conversations: tuple[Side, int], members: int = 10) -> TrialEvidence:
    """One rated conversation for each (side, thumb), by so many members in turn."""
    return TrialEvidence(
        tuple(
            TrialRating(side, number, number % members, value, number)
            for number, (side, value) in enumerate(conversations)
        )
    )


def favoured(side: Side, blocks: int, *, members: int = 10) -> TrialEvidence:
    """So many conversations on both sides: one side is always liked, the other never."""
    pairs = [(("newcomer", 1 if side == "newcomer" else -1), ("incumbent", 1 if side == "incumbent" else -1))]
    return rated(*[each for pair in pairs * blocks for each in pair], members=members)  # type: ignore[arg-type]


def judged(
    material: TrialEvidence, settings: GateConfig = SETTINGS, challenger_number: int = 1
) -> str | None:
    return canary.judge_canary(
        material, canary.count_evidence(material), settings, challenger_number=challenger_number
    )


def running_e(outcomes: Sequence[float]) -> np.ndarray:
    """The evidence after each outcome."""
    bets = np.asarray(statistics.BETS)[:, None]
    return np.exp(np.log1p(bets * np.asarray(outcomes)).cumsum(1)).mean(0)


# ------------------------------------------------------------------------------------------------- units
def test_in_one_conversation_each_member_has_one_voice() -> None:
    given_ = [
        *(TrialRating("newcomer", 1, 7, 1, at) for at in range(9)),
        TrialRating("newcomer", 1, 8, -1, 9),
        TrialRating("incumbent", 2, 7, 1, 10),
    ]
    assert canary.conversations(given_) == [Conversation("newcomer", 0.0), Conversation("incumbent", 1.0)]


@given(thumbs)
def test_blocks_hold_both_sides_bet_between_minus_one_and_one_and_only_ever_grow(
    drawn: list[tuple[Side, float]],
) -> None:
    units = [Conversation(side, score) for side, score in drawn]
    outcomes = canary.blocks(units)
    assert all(-1 <= outcome <= 1 for outcome in outcomes)
    assert len(outcomes) <= min(
        sum(unit.side == side for unit in units) for side in ("newcomer", "incumbent")
    )
    for cut in range(len(units)):
        earlier = canary.blocks(units[:cut])
        assert outcomes[: len(earlier)] == earlier


@given(thumbs)
def test_the_evidence_is_mirrored_when_the_sides_change_places(drawn: list[tuple[Side, float]]) -> None:
    other: dict[Side, Side] = {"newcomer": "incumbent", "incumbent": "newcomer"}
    units = [(side, 1 if score > 0 else -1) for side, score in drawn]
    here = canary.count_evidence(rated(*units))
    there = canary.count_evidence(rated(*[(other[side], value) for side, value in units]))
    assert here.evidence_for == pytest.approx(there.evidence_against)
    assert here.evidence_against == pytest.approx(there.evidence_for)


def test_votes_on_a_pair_are_one_outcome_however_many_voted() -> None:
    pairs = [PairVote("p1", user, 1) for user in range(30)] + [PairVote("p2", 1, -1), PairVote("p2", 2, 1)]
    assert canary.count_evidence(TrialEvidence(pairs=tuple(pairs))).outcomes == (1.0, 0.0)


# --------------------------------------------------------------------------------------------- decisions
def test_a_canary_that_everybody_prefers_is_better_and_the_mirror_is_worse() -> None:
    assert judged(favoured("newcomer", MIN_PROMPTS)) == "better"
    assert judged(favoured("incumbent", MIN_PROMPTS)) == "worse"
    assert judged(rated(*[("newcomer", 1), ("incumbent", 1)] * 30)) is None  # type: ignore[arg-type]


def test_few_outcomes_decide_nothing_however_clear() -> None:
    assert judged(favoured("newcomer", SETTINGS.min_votes - 1)) is None


def test_no_single_member_decides_unless_the_community_is_that_small() -> None:
    alone = favoured("newcomer", 40, members=1)
    found = canary.count_evidence(alone)
    assert found.evidence_for > 1e6
    assert judged(alone) is None
    assert canary.judge_canary(alone, found, SETTINGS, challenger_number=1, alone_suffices=True) == "better"
    # A fan beside others who see no difference.
    others = [("newcomer", 1), ("incumbent", 1)] * 20
    fan = [
        TrialRating(each.side, 1000 + each.conversation_id, 99, each.value, each.given_ms)
        for each in alone.ratings
    ]
    assert judged(TrialEvidence((*fan, *rated(*others, members=5).ratings))) is None  # type: ignore[arg-type]


def test_every_further_challenger_has_to_show_more_to_be_promoted_and_as_much_to_be_refused() -> None:
    assert judged(favoured("newcomer", MIN_PROMPTS), challenger_number=10) is None
    assert judged(favoured("newcomer", 2 * MIN_PROMPTS), challenger_number=10) == "better"
    assert judged(favoured("incumbent", MIN_PROMPTS), challenger_number=10) == "worse"


def test_votes_and_ratings_are_weighed_together() -> None:
    few, votes = favoured("newcomer", 5), (1,) * 6
    assert judged(few) is None
    assert judged(TrialEvidence(few.ratings, (), votes)) == "better"


def test_where_canaries_come_first_votes_alone_do_not_promote() -> None:
    first = SETTINGS.model_copy(update={"policy": "canary-first"})
    votes = TrialEvidence(favoured("newcomer", 2).ratings, (), (1,) * 40)
    assert judged(votes) == "better"
    assert judged(votes, first) is None
    assert judged(favoured("newcomer", MIN_PROMPTS), first) == "better"


def test_a_new_champion_that_is_liked_less_than_the_one_before_is_worse() -> None:
    def watched(material: TrialEvidence) -> str | None:
        return canary.judge_holdback(material, canary.count_evidence(material), SETTINGS)

    assert watched(favoured("incumbent", MIN_PROMPTS)) == "worse"
    assert watched(favoured("incumbent", MIN_PROMPTS, members=1)) is None
    assert watched(favoured("newcomer", MIN_PROMPTS)) == "better"
    assert watched(favoured("incumbent", 3)) is None


def test_what_is_still_needed_shrinks_with_the_evidence() -> None:
    needed = [
        canary.still_needed(canary.count_evidence(favoured("newcomer", n)), SETTINGS) for n in (0, 3, 8, 30)
    ]
    assert needed == sorted(needed, reverse=True)
    # What was announced as "about 45" and became 140 lies within.
    assert needed[0][0] <= 20 and 140 <= needed[0][1] < canary.MOST_FORETOLD
    assert needed[2][1] <= 10 and needed[3] == (1, 1)


def test_half_of_all_votes_end_within_the_range_that_was_foretold() -> None:
    """At about the win rate that is hoped for, asked in the middle of a vote."""
    draws, within = np.random.default_rng(11), []
    while len(within) < 20:
        outcomes = np.where(draws.random(1500) < 0.68, 1, -1)
        won = running_e(outcomes) >= 1 / alpha_for_attempt(ALPHA, 1)
        decided = won | (running_e(-outcomes) >= 1 / ALPHA)
        ends = int(np.argmax(decided)) + 1
        if ends > 12:
            seen = TrialEvidence(votes=tuple(map(int, outcomes[:12])))
            low, high = canary.still_needed(canary.count_evidence(seen), SETTINGS)
            within.append(low <= ends - 12 <= high)
    assert 0.35 <= sum(within) / len(within) <= 0.85


# ---------------------------------------------------------------------------------------------- validity
def test_the_chance_of_a_false_promotion_is_below_alpha_exactly() -> None:
    """Alternating sides at one like rate are a walk of wins, losses and ties, whose law can be followed."""
    liked, horizon, threshold = 0.4, 120, 1 / ALPHA
    win = loss = liked * (1 - liked)
    bets = np.asarray(statistics.BETS)[:, None, None]
    wins, losses = np.meshgrid(np.arange(horizon + 1), np.arange(horizon + 1), indexing="ij")
    wealth = np.exp(wins * np.log1p(bets) + losses * np.log1p(-bets)).mean(0)
    undecided, promoted = np.zeros_like(wealth), 0.0
    undecided[0, 0] = 1.0
    for _ in range(horizon):
        moved = undecided * (1 - win - loss)
        moved[1:, :] += undecided[:-1, :] * win
        moved[:, 1:] += undecided[:, :-1] * loss
        promoted += float(moved[wealth >= threshold].sum())
        undecided = np.where(wealth >= threshold, 0.0, moved)
    assert 0.01 < promoted <= ALPHA
    # The same walk through the product's own code.
    rng = random.Random(5)
    drawn = [sides for _ in range(horizon) for sides in ("newcomer", "incumbent")]
    crossed = 0
    for _ in range(800):
        units = [Conversation(side, 1.0 if rng.random() < liked else -1.0) for side in drawn]  # type: ignore[arg-type]
        crossed += bool((running_e(canary.blocks(units)) >= threshold).any())
    assert crossed / 800 == pytest.approx(promoted, abs=3 * math.sqrt(promoted / 800))


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_looking_after_every_rating_promotes_no_equal_challenger_too_often(share: float) -> None:
    """Members of very different generosity, several conversations each, taste that drifts, 10 % or half."""
    rng, runs, crossed = random.Random(11), 400, 0
    for _ in range(runs):
        generosity = [rng.betavariate(0.6, 0.9) for _ in range(12)]
        units = []
        for number in range(int(60 / share)):
            drift = 0.25 * math.sin(number / 40)
            chance = min(1.0, max(0.0, rng.choice(generosity) + drift))
            side: Side = "newcomer" if rng.random() < share else "incumbent"
            units.append(Conversation(side, 1.0 if rng.random() < chance else -1.0))
        crossed += bool((running_e(canary.blocks(units)) >= 1 / ALPHA).any())
    assert crossed / runs <= ALPHA


def test_counting_ratings_instead_of_conversations_would_promote_equals_far_too_often() -> None:
    """Why the conversation is the unit: four ratings in one mood are one piece of evidence."""
    rng, runs = random.Random(2), 200
    crossed = {"conversations": 0, "ratings": 0}
    for _ in range(runs):
        given_: list[TrialRating] = []
        for first in range(0, 120, 6):  # six conversations at a time
            going_on = []
            for number in range(first, first + 6):
                side: Side = "newcomer" if rng.random() < 0.5 else "incumbent"
                going_on += [TrialRating(side, number, number % 9, rng.choice((1, -1)), number)] * 4
            given_ += rng.sample(going_on, len(going_on))
        by_rating = [Conversation(each.side, float(each.value)) for each in given_]
        for name, units in (("conversations", canary.conversations(given_)), ("ratings", by_rating)):
            crossed[name] += bool((running_e(canary.blocks(units)) >= 1 / ALPHA).any())
    assert crossed["conversations"] / runs <= ALPHA
    assert crossed["ratings"] / runs > 3 * ALPHA
