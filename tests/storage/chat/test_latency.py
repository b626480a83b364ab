"""How long people waited, hour by hour: compared with a slow reference."""

import statistics

import sqlite_utils
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.chat import latency
from storage.chat.latency import HOUR_MS, Wait
from storage.db import sql
from storage.db.clock import now_ms
from storage.db.database import Database
from tests.storage.conftest import SCOPE, Community

MINUTE_MS = 60_000


def reply(db: sqlite_utils.Database, community: Community, *, ago_ms: int, first_ms: int | None) -> None:
    reply_id = community.asks(db, 1, f"question {next(community.ids)}")
    changed = (now_ms() - ago_ms, first_ms, reply_id)
    sql.change(db, "UPDATE replies SET created_ms = ?, first_token_ms = ? WHERE id = ?", changed)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 60_000)), max_size=12))
def test_the_hours_agree_with_a_slow_reference(
    database: Database, community: Community, asked: list[tuple[int, int]]
) -> None:
    def fill(db: sqlite_utils.Database) -> None:
        sql.change(db, "UPDATE replies SET first_token_ms = NULL")
        for hour, first_ms in asked:
            reply(db, community, ago_ms=hour * HOUR_MS + 30 * MINUTE_MS, first_ms=first_ms)

    database.write(fill)
    speed = database.read(lambda db: latency.measure_speed(db, SCOPE, 4))
    assert len(speed.hours) == 4
    for ago, wait in zip((3, 2, 1, 0), speed.hours, strict=True):
        there = sorted(first_ms for hour, first_ms in asked if hour == ago)
        if not there:
            assert wait is None
            continue
        assert wait is not None
        assert (wait.replies, wait.median_ms) == (len(there), statistics.median_low(there))
        assert sum(first_ms <= wait.slow_ms for first_ms in there) >= 0.95 * len(there)
        assert wait.slow_ms in there
    shown = [first_ms for hour, first_ms in asked if hour < 4]
    assert (speed.whole.replies if speed.whole else 0) == len(shown)


def test_only_finished_replies_of_this_scope_that_came_to_a_first_word_count(
    database: Database, community: Community
) -> None:
    def fill(db: sqlite_utils.Database) -> None:
        reply(db, community, ago_ms=MINUTE_MS, first_ms=9_000)
        sql.change(db, "UPDATE replies SET status = 'failed'")
        reply(db, community, ago_ms=MINUTE_MS, first_ms=700)
        reply(db, community, ago_ms=MINUTE_MS, first_ms=None)
        reply(db, community, ago_ms=25 * HOUR_MS, first_ms=9_000)

    database.write(fill)
    speed = database.read(lambda db: latency.measure_speed(db, SCOPE, 24))
    assert speed.whole == Wait(replies=1, median_ms=700, slow_ms=700)
    assert (speed.queued_ms, speed.done_ms) == (1, 200)
    elsewhere = database.read(lambda db: latency.measure_speed(db, "guild:9", 24))
    assert elsewhere.whole is None and set(elsewhere.hours) == {None}
