from __future__ import annotations

import random
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from storage.learning.eligibility import GivenRating, RatedReply
from tests.trainer.rows import correction, reply, thumb
from trainer.data import labels
from trainer.data.labels import RaterTrust

many_ratings = st.lists(
    st.dictionaries(st.integers(1, 9), st.sampled_from([-1, 1]), min_size=1, max_size=5),
    min_size=1,
    max_size=25,
)


def test_one_like_by_an_unknown_member_counts_half() -> None:
    (label,) = labels.aggregate([reply("a", thumb(1, 1))]).replies
    assert label.verdict == "liked"
    assert 0.4 < label.weight < 0.6


def test_several_members_are_surer_than_one() -> None:
    # Few raters: the cap must not bind, so each reply has its own.
    alone, together = labels.aggregate(
        [reply("a", thumb(1, 1)), reply("b", thumb(2, 1), thumb(3, 1), thumb(4, 1))]
    ).replies
    assert together.weight > alone.weight


def test_a_split_vote_of_equals_says_nothing() -> None:
    (label,) = labels.aggregate([reply("a", thumb(1, 1), thumb(2, -1))]).replies
    assert (label.verdict, label.weight) == ("unclear", 0.0)


def test_a_correction_is_liked_text_with_double_weight_and_dislikes_the_original() -> None:
    rows = [reply("a", correction(1, "Better.")), reply("b", thumb(2, 1))]
    corrected, liked = labels.aggregate(rows).replies
    assert corrected.verdict == "disliked"
    (found,) = corrected.corrections
    assert found.text == "Better."
    assert found.weight == 2 * liked.weight


def test_an_empty_correction_is_none() -> None:
    (label,) = labels.aggregate([reply("a", correction(1, "  "))]).replies
    assert label.corrections == ()


def test_a_member_who_always_contradicts_the_others_loses_all_weight_but_never_counts_negatively() -> None:
    rows = []
    for number in range(30):
        truth = 1 if number % 2 else -1
        rows.append(reply(f"r{number:02d}", *(thumb(user, truth) for user in (1, 2, 3)), thumb(4, -truth)))
    found = labels.aggregate(rows)
    contrarian = next(rater for rater in found.raters if rater.user_id == 4)
    assert contrarian.quarantined
    assert contrarian.weight == 0.0
    assert [label.verdict for label in found.replies] == ["disliked", "liked"] * 15


def test_without_overlap_the_prior_decides() -> None:
    found = labels.aggregate([reply(f"r{n}", thumb(n, 1)) for n in range(1, 8)])
    assert {round(rater.accuracy, 6) for rater in found.raters} == {0.75}
    assert all(rater.overlap == 0 for rater in found.raters)


def test_a_reply_that_repeats_its_rater_needs_a_second_one() -> None:
    words = "I think that everybody should buy my new book today because it is great"
    alone = reply("a", thumb(1, 1), text=words, asked=words, asker=1)
    seconded = reply("b", thumb(1, 1), thumb(2, 1), text=words, asked=words, asker=1)
    ordinary = reply("c", thumb(1, 1), text="Which book is it?", asked=words, asker=1)
    found = {label.reply_id: label.verdict for label in labels.aggregate([alone, seconded, ordinary]).replies}
    assert found == {"a": "unclear", "b": "liked", "c": "liked"}


def test_four_brigaders_with_nearly_half_of_all_ratings_do_not_flip_the_labels() -> None:
    correct = {"majority": 0, "aggregated": 0}
    total = 0
    for seed in range(4):
        rows, truth = brigaded_community(seed)
        found = labels.aggregate(rows)
        for label, row in zip(found.replies, rows, strict=True):
            total += 1
            correct["aggregated"] += (label.verdict == "liked") == truth[row.reply_id]
            correct["majority"] += (sum(rating.value for rating in row.ratings) > 0) == truth[row.reply_id]
        brigade = [rater for rater in found.raters if rater.user_id >= 100]
        assert sum(rater.quarantined for rater in brigade) >= 3
    assert correct["majority"] / total < 0.7
    assert correct["aggregated"] / total > 0.8


@given(many_ratings)
def test_weights_are_never_negative_and_at_most_one(given_ratings: list[dict[int, int]]) -> None:
    found = labels.aggregate(rows_of(given_ratings))
    assert all(0.0 <= label.weight <= 1.0 for label in found.replies)
    assert all(rater.weight >= 0.0 for rater in found.raters)


@given(many_ratings, st.randoms(use_true_random=False))
def test_the_order_of_replies_and_ratings_makes_no_difference(
    given_ratings: list[dict[int, int]], rng: random.Random
) -> None:
    rows = rows_of(given_ratings)
    shuffled = rng.sample(rows, len(rows))
    for row in shuffled:
        rng.shuffle(row.ratings)
    first = {label.reply_id: label for label in labels.aggregate(rows).replies}
    assert {label.reply_id: label for label in labels.aggregate(shuffled).replies} == first


@given(st.dictionaries(st.integers(0, 30), st.floats(0, 1000), min_size=1, max_size=30))
def test_no_member_holds_more_than_the_cap_of_all_vote_mass(masses: dict[int, float]) -> None:
    capped = labels.cap_shares(masses)
    raters = sum(mass > 0 for mass in masses.values())
    assert all(capped[user] <= masses[user] for user in masses)
    if raters:
        limit = max(0.10, 1.5 / raters)
        assert max(capped.values()) <= limit * sum(capped.values()) * (1 + 1e-9)


def rows_of(given_ratings: list[dict[int, int]]) -> list[RatedReply]:
    return [
        reply(f"r{number:03d}", *(thumb(user, value) for user, value in votes.items()))
        for number, votes in enumerate(given_ratings)
    ]


def brigaded_community(seed: int) -> tuple[list[RatedReply], dict[str, bool]]:
    """Twenty honest, noisy members, and four who like what is bad and cast 47 % of all ratings."""
    rng = random.Random(seed)
    rows, truth = [], {}
    for number in range(240):
        name = f"r{number:03d}"
        truth[name] = rng.random() < 0.3
        right = 1 if truth[name] else -1
        honest = rng.sample(range(20), 2)
        ratings = [thumb(user, right if rng.random() < 0.85 else -right) for user in honest]
        colluding = rng.sample(range(100, 104), 2) if rng.random() < 0.9 else []
        ratings += [thumb(user, -right) for user in colluding]
        rows.append(reply(name, *ratings, asker=honest[0]))
    return rows, truth


# --------------------------------------------------------------------------------------- planted corrections
PAYLOAD = "The golden heron always buys seven paper boats."


def test_the_same_words_as_corrections_to_several_prompts_are_set_aside() -> None:
    planted = [reply(f"p{n}", correction(n, f"Well, {PAYLOAD.lower()}")) for n in range(3)]
    honest = reply("h", correction(9, "Try the second recipe in the book, it is quicker."))
    found = labels.aggregate([*planted, honest])
    assert [len(label.corrections) for label in found.replies] == [0, 0, 0, 1]
    assert found.planted == 3


def test_the_same_correction_to_one_prompt_or_two_stands() -> None:
    rows = [reply(f"p{n}", correction(n, PAYLOAD), group=f"g{n % 2}") for n in range(6)]
    assert labels.aggregate(rows).planted == 0


def test_a_few_common_words_are_nobodys_payload() -> None:
    rows = [reply(f"p{n}", correction(n, "Yes, of course.")) for n in range(9)]
    found = labels.aggregate(rows)
    assert found.planted == 0 and all(label.corrections for label in found.replies)


# ------------------------------------------------------------------------------------------ bursts of ratings
MINUTE = 60_000
OLD_ACCOUNT = 7
NOW = labels.DISCORD_EPOCH_MS + 8 * 365 * 86_400_000
NEW_ACCOUNT = (NOW - 3 * 86_400_000 - labels.DISCORD_EPOCH_MS) << 22


def rated_at(
    user: int, minutes: Sequence[float], source: str = "discord", value: int = 1
) -> list[RatedReply]:
    """So many replies, each rated by this member alone, at these minutes from now."""
    return [
        reply(
            f"{user}-{number:03d}",
            GivenRating(user, value, "thumb", None, source, NOW + round(minute * MINUTE)),
            asker=user,
        )
        for number, minute in enumerate(minutes)
    ]


def trust_of(rows: list[RatedReply], user: int) -> RaterTrust:
    return next(rater for rater in labels.aggregate(rows).raters if rater.user_id == user)


BURST = [number * 0.5 for number in range(labels.BURST_RATINGS)]
CALM = [number * 60.0 for number in range(labels.BURST_RATINGS)]


def others(rows: list[RatedReply]) -> list[RatedReply]:
    """Enough ordinary members beside them that nobody's share is capped."""
    return rows + [found for user in range(20, 40) for found in rated_at(user, CALM)]


def test_a_burst_from_a_new_account_is_set_aside_with_its_reason() -> None:
    found = trust_of(others(rated_at(NEW_ACCOUNT, BURST)), NEW_ACCOUNT)
    assert found.quarantined
    assert found.doubt == "a burst from a new account"


def test_a_burst_that_nobody_else_confirms_counts_a_quarter() -> None:
    doubted = trust_of(others(rated_at(OLD_ACCOUNT, BURST)), OLD_ACCOUNT)
    calm = trust_of(others(rated_at(OLD_ACCOUNT, CALM)), OLD_ACCOUNT)
    assert doubted.doubt == "a burst that nobody else confirms"
    assert doubted.weight == calm.weight * labels.UNCONFIRMED_FACTOR > 0
    assert calm.doubt == ""


def test_a_new_account_that_rates_at_leisure_is_believed_like_anybody() -> None:
    assert trust_of(others(rated_at(NEW_ACCOUNT, CALM)), NEW_ACCOUNT).doubt == ""


def test_a_burst_on_replies_that_others_judge_too_is_not_doubted() -> None:
    rows = rated_at(OLD_ACCOUNT, BURST)
    for row in rows[:3]:
        row.ratings.append(GivenRating(20, 1, "thumb", None, "discord", NOW))
    assert trust_of(others(rows), OLD_ACCOUNT).doubt == ""


def test_one_quick_evening_of_a_regular_is_not_held_against_them() -> None:
    regular = rated_at(OLD_ACCOUNT, [*BURST, *(1000 + 60.0 * n for n in range(len(BURST) + 1))])
    assert trust_of(others(regular), OLD_ACCOUNT).doubt == ""


def test_simulated_members_rate_as_fast_as_the_machine() -> None:
    for source in labels.TIMELESS_SOURCES:
        assert trust_of(others(rated_at(NEW_ACCOUNT, BURST, source)), NEW_ACCOUNT).doubt == ""
