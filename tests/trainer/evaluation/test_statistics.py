from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.evaluation import statistics

SETTINGS = {"resamples": 400, "confidence": 0.95, "seed": 1}
rated = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=40).filter(
    lambda items: 0 < sum(good for _, good in items) < len(items)
)


@given(rated)
def test_auc_equals_counting_every_pair(items: list[tuple[int, bool]]) -> None:
    pairs = [(a, b) for a, good in items if good for b, other in items if not other]
    slow = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)
    assert statistics.auc([a for a, _ in items], [good for _, good in items]) == pytest.approx(slow)


@given(rated)
def test_a_weight_of_two_counts_an_item_twice(items: list[tuple[int, bool]]) -> None:
    values, good = [a for a, _ in items], [g for _, g in items]
    doubled = statistics.auc([*values, values[0]], [*good, good[0]])
    weighted = statistics.auc(values, good, [2.0, *[1.0] * (len(items) - 1)])
    assert weighted == pytest.approx(doubled)


def test_an_auc_of_one_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="both kinds"):
        statistics.auc([1.0, 2.0], [True, True])


def test_the_clustered_mean_agrees_with_a_slow_bootstrap() -> None:
    rng = random.Random(3)
    clusters = [i // 3 for i in range(60)]
    shift = {c: rng.gauss(0, 1) for c in set(clusters)}
    values = [0.2 + shift[c] + rng.gauss(0, 0.2) for c in clusters]
    found = statistics.clustered_mean(values, clusters, resamples=4000, confidence=0.95, seed=0)
    by_cluster = {c: [v for v, k in zip(values, clusters, strict=True) if k == c] for c in set(clusters)}
    means = []
    for _ in range(4000):
        drawn = [v for c in rng.choices(list(by_cluster), k=len(by_cluster)) for v in by_cluster[c]]
        means.append(sum(drawn) / len(drawn))
    low, high = np.quantile(means, [0.025, 0.975])
    assert found.value == pytest.approx(sum(values) / 60)
    assert (found.low, found.high) == (pytest.approx(low, abs=0.05), pytest.approx(high, abs=0.05))
    assert found.low < found.bound_low < found.value < found.bound_high < found.high
    assert (found.n, found.clusters) == (60, 20)


def test_items_of_one_conversation_do_not_narrow_the_interval() -> None:
    values = [1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0]
    once = statistics.clustered_mean(values, list(range(8)), **SETTINGS)
    copied = statistics.clustered_mean(values * 5, list(range(8)) * 5, **SETTINGS)
    assert (once.low, once.high) == (copied.low, copied.high)


def test_what_the_values_were_measured_with_widens_the_interval() -> None:
    values = [0.1, 0.5, -0.2, 0.3] * 5
    settings = {"resamples": 4000, "confidence": 0.95, "seed": 0}
    exact = statistics.clustered_mean(values, range(20), **settings)
    rough = statistics.clustered_mean(values, range(20), further_error=0.2, **settings)
    own = (exact.high - exact.low) / 3.92
    assert rough.value == exact.value
    assert (rough.high - rough.low) / 3.92 == pytest.approx((own**2 + 0.2**2) ** 0.5, rel=0.05)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = [0.1, 0.5, -0.2, 0.3]
    first = statistics.clustered_mean(values, "abcd", **SETTINGS)
    assert first == statistics.clustered_mean(values, "abcd", **SETTINGS)


def test_a_difference_is_between_the_kinds_whatever_their_numbers() -> None:
    values, liked = [2.0, 4.0, 1.0, 1.0, 1.0], [True, True, False, False, False]
    assert statistics.clustered_difference(values, liked, list("abcde"), **SETTINGS).value == 2.0


def test_the_lower_bound_of_a_difference_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    missed = 0
    for seed in range(300):
        values = rng.normal(0.1, 1.0, size=40)
        found = statistics.clustered_mean(
            values.tolist(), list(range(40)), resamples=300, confidence=0.95, seed=seed
        )
        missed += found.bound_low > 0.1
    assert missed / 300 < 0.09


def test_a_useless_score_has_no_auc_bound_over_one_half() -> None:
    rng = np.random.default_rng(2)
    proven = 0
    for seed in range(60):
        good = [i % 4 == 0 for i in range(60)]
        scores = rng.normal(size=60).tolist()
        found = statistics.auc_estimate(
            scores, good, list(range(60)), resamples=200, confidence=0.95, seed=seed
        )
        proven += found.bound_low > 0.5
    assert proven / 60 <= 0.12


@given(st.lists(st.sampled_from([-1, 0, 1]), max_size=60))
def test_the_order_of_votes_and_ties_make_no_difference_to_the_evidence(outcomes: list[int]) -> None:
    shuffled = [*sorted(outcomes, reverse=True), 0, 0]
    for found, again in zip(statistics.e_values(outcomes), statistics.e_values(shuffled), strict=True):
        assert found == pytest.approx(again)


@given(st.lists(st.sampled_from([-1, 0, 1]), max_size=40))
def test_evidence_against_is_evidence_for_the_mirror_image(outcomes: list[int]) -> None:
    gain, loss = statistics.e_values(outcomes)
    mirrored = statistics.e_values([-outcome for outcome in outcomes])
    assert (gain, loss) == (pytest.approx(mirrored[1]), pytest.approx(mirrored[0]))


def test_the_evidence_equals_playing_each_bet_by_hand() -> None:
    outcomes = [1, 1, -1, 0, 1]
    slow = sum(math.prod(1 + bet * x for x in outcomes) for bet in statistics.BETS) / len(statistics.BETS)
    assert statistics.e_values(outcomes)[0] == pytest.approx(slow)


def test_continuous_peeking_at_a_fair_coin_promotes_in_at_most_one_of_twenty_runs() -> None:
    assert crossing_rate(win_rate=0.5, votes=400, runs=1500, seed=4) <= 0.05


def test_a_clear_winner_is_found_within_a_hundred_votes() -> None:
    assert crossing_rate(win_rate=0.7, votes=100, runs=500, seed=5) > 0.9


def test_the_announced_numbers_of_votes_are_the_simulated_quantiles() -> None:
    rng = np.random.default_rng(6)
    votes_taken = []
    for _ in range(400):
        wealth = np.ones(len(statistics.BETS))
        votes = 0
        while wealth.mean() < 20:
            wealth *= 1 + np.asarray(statistics.BETS) * (1 if rng.random() < 0.7 else -1)
            votes += 1
        votes_taken.append(votes)
    for share in (0.25, 0.5, 0.75):
        expected = np.quantile(votes_taken, share)
        assert statistics.votes_to_decide(0.05, 0.7, share) == pytest.approx(expected, abs=4)


def crossing_rate(*, win_rate: float, votes: int, runs: int, seed: int) -> float:
    """How often the evidence reaches 20 at any time within so many votes."""
    rng = np.random.default_rng(seed)
    outcomes = np.where(rng.random((runs, votes)) < win_rate, 1.0, -1.0)
    logs = np.stack([np.log1p(bet * outcomes).cumsum(1) for bet in statistics.BETS])
    return float((np.exp(logs).mean(0).max(1) >= 20).mean())


def test_what_chance_explains_of_a_rise_is_that_of_all_exchanges() -> None:
    differences = [0.4, -0.1, 0.7, 0.2, 0.0, 0.9, -0.3, 0.5]
    clusters = ["a", "a", "b", "c", "d", "e", "f", "g"]
    sums = [0.3, 0.7, 0.2, 0.0, 0.9, -0.3, 0.5]
    means = sorted(
        sum(sign * value for sign, value in zip(signs, sums, strict=True)) / len(differences)
        for signs in itertools.product((-1, 1), repeat=len(sums))
    )
    exact = means[math.ceil(0.9 * (len(means) - 1))]
    found = statistics.most_risen_by_chance(differences, clusters, alpha=0.1, seed=0)
    assert found == pytest.approx(exact, abs=0.02)


def test_a_rise_by_chance_goes_beyond_its_limit_no_oftener_than_was_asked() -> None:
    dice = np.random.default_rng(0)
    beyond = 0
    for _ in range(400):
        # As shares of answers beside the point are: mostly next to nothing, now and then one.
        sides = dice.beta(0.15, 1.0, size=(2, 32))
        differences = (sides[0] - sides[1]).tolist()
        limit = statistics.most_risen_by_chance(differences, range(32), alpha=0.05, seed=1)
        beyond += sum(differences) / 32 > limit
    assert 0.02 <= beyond / 400 <= 0.08


def test_a_rise_everywhere_is_no_chance_and_none_at_all_is_within_it() -> None:
    risen = statistics.most_risen_by_chance([0.2] * 16, range(16), alpha=0.01, seed=0)
    assert risen < 0.2
    assert statistics.most_risen_by_chance([0.0] * 16, range(16), alpha=0.01, seed=0) >= 0.0
    # Three clusters can't show anything at an error of 1 %: all of them rise by chance in an eighth of cases.
    assert statistics.most_risen_by_chance([0.9] * 3, range(3), alpha=0.01, seed=0) >= 0.9
    with pytest.raises(ValueError, match="nothing"):
        statistics.most_risen_by_chance([], [], alpha=0.01, seed=0)
