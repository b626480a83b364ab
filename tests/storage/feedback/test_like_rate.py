"""The like rate over weeks, and a test of its drift that knows whose ratings are whose."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.db import sql
from storage.db.clock import DAY_MS, now_ms
from storage.db.database import Database
from storage.feedback import like_rate, ratings
from storage.feedback.like_rate import LikeRate
from storage.imports import imports
from storage.imports.examples import Example, Turn
from tests.storage.conftest import SCOPE, Community, thumb

BY_MEMBER = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 30)).map(lambda each: (each[0], each[0] + each[1] + 1)),
    min_size=like_rate.FEWEST_RATERS,
    max_size=12,
).filter(lambda time: sum(n for _, n in time) >= like_rate.FEWEST_RATINGS)


def rate(database: Database, community: Community, user_id: int, value: int, days_ago: float) -> None:
    def work(db: Any) -> None:
        reply_id = community.asks(db, user_id, "a question")
        thumb(db, reply_id, user_id, value)
        at = now_ms() - round(days_ago * DAY_MS)
        sql.change(db, "UPDATE ratings SET updated_ms = ? WHERE reply_id = ?", (at, reply_id))

    database.write(work)


def test_weeks_begin_on_mondays_and_those_without_a_rating_are_there(
    database: Database, community: Community
) -> None:
    rate(database, community, 1, 1, 0)
    rate(database, community, 2, -1, 14)
    rate(database, community, 2, 1, 200)
    weeks = database.read(lambda db: like_rate.by_week(db, SCOPE, 4))
    assert [week.rate for week in weeks] == [None, LikeRate(0, 1), None, LikeRate(1, 0)]
    assert [week.raters for week in weeks] == [0, 1, 0, 1]
    assert all((week.first_day - 4) % 7 == 0 for week in weeks), "day 4 of the epoch was a Monday"
    assert weeks[-1].first_day <= now_ms() // DAY_MS < weeks[-1].first_day + 7


def test_retracted_ratings_and_other_scopes_do_not_count(database: Database, community: Community) -> None:
    rate(database, community, 1, 1, 1)
    database.write(lambda db: sql.change(db, "UPDATE ratings SET retracted = 1"))
    rate(database, community, 1, -1, 1)
    assert database.read(lambda db: like_rate.rate_of_last(db, SCOPE, 28)) == LikeRate(0, 1)
    assert database.read(lambda db: like_rate.rate_of_last(db, "guild:9", 28)) is None


def test_what_came_in_a_file_is_no_like_rate_of_the_bots_answers(
    database: Database, community: Community
) -> None:
    rate(database, community, 1, 1, 1)
    values = {"name": "x", "sha256": "a", "format_name": "x", "rights": "x", "licence": "x", "actor": "x"}
    question = (Turn("user", "Which flour is best?"),)
    disliked = Example(question, Turn("assistant", "None."), "line 1", disliked=5)

    def bring_in(db: Any) -> None:
        begun = imports.begin(db, scope=SCOPE, **values)
        imports.store(db, begun, [disliked], permission_reference="")

    database.write(bring_in)
    assert database.read(lambda db: ratings.counts(db, SCOPE)).disliked == 5
    own = LikeRate(1, 0)
    assert database.read(lambda db: like_rate.rate_of_last(db, SCOPE, 28)) == own
    assert database.read(lambda db: like_rate.by_channel(db, SCOPE, 28, 5)) == [(6, own)]
    weeks = database.read(lambda db: like_rate.by_week(db, SCOPE, 2))
    assert [week.rate for week in weeks if week.rate] == [own]


def test_channels_are_told_apart_and_private_ones_are_not_named(
    database: Database, community: Community
) -> None:
    rate(database, community, 1, 1, 1)
    rate(database, community, 2, -1, 1)
    assert database.read(lambda db: like_rate.by_channel(db, SCOPE, 28, 5)) == [(6, LikeRate(1, 1))]
    database.write(lambda db: sql.change(db, "UPDATE conversations SET public = 0"))
    assert database.read(lambda db: like_rate.by_channel(db, SCOPE, 28, 5)) == []


def test_a_fall_that_many_members_agree_on_is_found_in_the_database(
    database: Database, community: Community
) -> None:
    for member in range(1, 13):
        for index in range(5):
            rate(database, community, member, 1, 10 + index)
            rate(database, community, member, -1, 1 + index)
    found = database.read(lambda db: like_rate.drift(db, SCOPE))
    assert found is not None and found.fell and not found.rose
    assert (found.recent, found.before) == (LikeRate(0, 60), LikeRate(60, 0))
    assert found.change == -1


def test_too_few_members_or_ratings_are_no_test() -> None:
    many = [(5, 10)] * 10
    assert like_rate.compare([(50, 100)] * 3, many) is None
    assert like_rate.compare(many, [(1, 2)] * 8) is None
    assert like_rate.compare(many, many) is not None


def test_one_member_who_rates_a_lot_does_not_raise_the_alarm_alone() -> None:
    before = [(8, 10)] * 10
    loud = [(8, 10)] * 9 + [(0, 100)]
    assert sum(liked for liked, _ in loud) / sum(n for _, n in loud) < 0.4
    found = like_rate.compare(loud, before)
    assert found is not None and not found.fell
    # As many ratings from many members are another matter.
    spread = [(2, 10)] * 19
    found = like_rate.compare(spread, before)
    assert found is not None and found.fell


@given(BY_MEMBER, BY_MEMBER)
def test_the_interval_holds_the_change_and_turns_round_with_the_times(
    recent: list[tuple[int, int]], before: list[tuple[int, int]]
) -> None:
    there, back = like_rate.compare(recent, before), like_rate.compare(before, recent)
    assert there is not None and back is not None
    assert -1 <= there.low <= there.change <= there.high <= 1
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    assert not (there.fell and there.rose)


@pytest.mark.parametrize(("members", "a_day"), [(10, 8), (40, 25)])
def test_a_year_of_daily_looks_at_an_unchanged_community_seldom_raises_a_false_alarm(
    members: int, a_day: int
) -> None:
    """Members differ in taste and diligence, as they do; nothing changes; somebody looks every day."""
    draw = random.Random(7)
    years = 12
    assert sum(_alarms(draw, members, a_day, days=365) > 0 for _ in range(years)) <= 1


def test_a_fall_by_three_tenths_is_mostly_found_within_a_month() -> None:
    draw = random.Random(8)
    assert sum(_alarms(draw, 80, 60, days=30, fall=0.3) > 0 for _ in range(10)) >= 6


def _alarms(draw: random.Random, members: int, a_day: int, *, days: int, fall: float = 0.0) -> int:
    """The days on which a fall is reported, after five quiet weeks; `fall` begins with the first of them."""
    liking = [draw.betavariate(4, 1.6) for _ in range(members)]
    diligence = [draw.paretovariate(1.2) for _ in range(members)]
    history: list[list[tuple[int, bool]]] = []
    for day in range(35 + days):
        raters = draw.choices(range(members), diligence, k=a_day)
        lower = fall if day >= 35 else 0.0
        history.append([(member, draw.random() < liking[member] - lower) for member in raters])
    found = 0
    for day in range(35, len(history)):
        drift = like_rate.compare(
            _by_member(history[day - 6 : day + 1]), _by_member(history[day - 34 : day - 6])
        )
        found += drift is not None and drift.fell
    return found


def _by_member(days: list[list[tuple[int, bool]]]) -> list[tuple[int, int]]:
    totals: dict[int, list[int]] = {}
    for day in days:
        for member, liked in day:
            total = totals.setdefault(member, [0, 0])
            total[0] += liked
            total[1] += 1
    return [(liked, ratings) for liked, ratings in totals.values()]
