from collections.abc import Callable

import pytest
import sqlite_utils
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.chat import members
from storage.db import sql
from storage.db.database import Database
from storage.errors import UnknownRowError
from storage.feedback import ratings
from tests.storage.conftest import SCOPE, Community, thumb


@pytest.fixture
def reply_id(database: Database, community: Community) -> str:
    return database.write(lambda db: community.asks(db, 1, "hello"))


def test_the_last_rating_counts_and_a_repeated_one_changes_nothing(database: Database, reply_id: str) -> None:
    changed = database.write(
        lambda db: [
            thumb(db, reply_id, 2, 1, "👍"),
            thumb(db, reply_id, 2, 1, "👍"),
            thumb(db, reply_id, 2, -1, "👎"),
        ]
    )
    assert changed == [True, False, True]
    (rating,) = database.read(lambda db: ratings.list_for_reply(db, reply_id))
    assert (rating.value, rating.emoji, rating.retracted) == (-1, "👎", False)


def test_a_retraction_stays_as_a_retraction_and_can_be_taken_back(database: Database, reply_id: str) -> None:
    def work(db: sqlite_utils.Database) -> list[bool]:
        thumb(db, reply_id, 2)
        return [
            ratings.retract(db, reply_id=reply_id, user_id=2, kind="thumb"),
            ratings.retract(db, reply_id=reply_id, user_id=2, kind="thumb"),
            ratings.list_for_reply(db, reply_id)[0].retracted,
            thumb(db, reply_id, 2),
            ratings.list_for_reply(db, reply_id)[0].retracted,
        ]

    assert database.write(work) == [True, False, True, True, False]


def test_removing_an_older_reaction_leaves_the_newer_one(database: Database, reply_id: str) -> None:
    def work(db: sqlite_utils.Database) -> bool:
        thumb(db, reply_id, 2, 1, "👍")
        thumb(db, reply_id, 2, -1, "👎")
        return ratings.retract(db, reply_id=reply_id, user_id=2, kind="thumb", emoji="👍")

    assert not database.write(work)
    assert database.read(lambda db: ratings.counts(db, SCOPE)) == ratings.RatingCounts(0, 1, 0, 1)


def test_clearing_an_emoji_takes_back_only_its_reactions(database: Database, reply_id: str) -> None:
    def work(db: sqlite_utils.Database) -> tuple[int, int]:
        thumb(db, reply_id, 2, 1, "👍")
        thumb(db, reply_id, 3, -1, "👎")
        ratings.rate(db, reply_id=reply_id, user_id=4, kind="thumb", means="button", value=1)
        return ratings.retract_all(db, reply_id, "👍"), ratings.retract_all(db, reply_id)

    assert database.write(work) == (1, 1)
    assert database.read(lambda db: ratings.counts(db, SCOPE)) == ratings.RatingCounts(1, 0, 0, 1)


def test_a_rating_carries_its_raters_source_and_consent_at_the_time(
    database: Database, reply_id: str
) -> None:
    def work(db: sqlite_utils.Database) -> None:
        members.ensure(db, 2, "Bo", "discord")
        members.set_consent(db, 2, "in", "2")
        thumb(db, reply_id, 2)
        members.set_consent(db, 2, "unset", "2")

    database.write(work)
    (rating,) = database.read(lambda db: ratings.list_for_reply(db, reply_id))
    assert (rating.source, rating.consent) == ("discord", "in")


def test_a_thumb_and_a_correction_of_one_member_stand_side_by_side(database: Database, reply_id: str) -> None:
    def work(db: sqlite_utils.Database) -> ratings.RatingCounts:
        thumb(db, reply_id, 2, -1, "👎")
        ratings.rate(
            db, reply_id=reply_id, user_id=2, kind="correction", means="modal", value=1, text="Better."
        )
        return ratings.counts(db, SCOPE)

    assert database.write(work) == ratings.RatingCounts(liked=0, disliked=1, corrections=1, raters=1)


def test_rating_an_unknown_reply_is_refused_in_one_sentence(database: Database) -> None:
    with pytest.raises(UnknownRowError, match="no reply nope to rate"):
        database.write(lambda db: thumb(db, "nope", 1))


Event = tuple[str, int, int, int]
events = st.lists(
    st.tuples(
        st.sampled_from(["rate", "correct", "retract", "clear"]),
        st.integers(0, 1),
        st.integers(2, 4),
        st.sampled_from([-1, 1]),
    ),
    max_size=25,
)


def apply(db: sqlite_utils.Database, reply_ids: list[str], event: Event) -> object:
    action, reply, user_id, value = event
    emoji = "👍" if value > 0 else "👎"
    steps: dict[str, Callable[[], object]] = {
        "rate": lambda: thumb(db, reply_ids[reply], user_id, value, emoji),
        "correct": lambda: ratings.rate(
            db,
            reply_id=reply_ids[reply],
            user_id=user_id,
            kind="correction",
            means="modal",
            value=1,
            text=emoji,
        ),
        "retract": lambda: ratings.retract(
            db, reply_id=reply_ids[reply], user_id=user_id, kind="thumb", emoji=emoji
        ),
        "clear": lambda: ratings.retract_all(db, reply_ids[reply], emoji),
    }
    return steps[action]()


def everything(db: sqlite_utils.Database) -> list[sql.Row]:
    return [
        row
        for table in ("ratings", "scope_counts", "scope_raters")
        for row in sql.many(db, f"SELECT * FROM {table} ORDER BY 1, 2")
    ]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events)
def test_a_replayed_event_changes_nothing_and_the_counters_match_a_recount(
    database: Database, community: Community, plan: list[Event]
) -> None:
    reply_ids = database.write(lambda db: [community.asks(db, 1, "a"), community.asks(db, 1, "b")])
    database.write(lambda db: sql.change(db, "DELETE FROM ratings"))
    for event in plan:
        database.write(lambda db, event=event: apply(db, reply_ids, event))  # type: ignore[misc]
        before = database.read(everything)
        assert not database.write(lambda db, event=event: apply(db, reply_ids, event))  # type: ignore[misc]
        assert database.read(everything) == before
    counted = database.read(lambda db: ratings.counts(db, SCOPE))
    assert counted == database.read(recount)


def recount(db: sqlite_utils.Database) -> ratings.RatingCounts:
    (row,) = db.query(
        """SELECT coalesce(sum(kind = 'thumb' AND value = 1), 0) AS liked,
                  coalesce(sum(kind = 'thumb' AND value = -1), 0) AS disliked,
                  coalesce(sum(kind = 'correction'), 0) AS corrections, count(DISTINCT user_id) AS raters
           FROM ratings WHERE scope = ? AND retracted = 0 AND kind <> 'vote'""",
        (SCOPE,),
    )
    return ratings.RatingCounts(**row)
