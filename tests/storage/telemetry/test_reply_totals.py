"""Replies are counted once, when they end, however long they take; totals never shrink."""

from __future__ import annotations

from storage.db import sql
from storage.db.clock import now_ms
from storage.db.database import Database
from storage.telemetry.reply_totals import BUCKETS_S, LONGEST_REPLY_MS, Histogram, ReplyTotals
from tests.storage.conftest import Community, finish


def test_a_reply_is_counted_once_with_its_parts(database: Database, community: Community) -> None:
    totals = ReplyTotals()
    for _ in range(3):
        database.write(lambda db: community.asks(db, 1, "a question"))
        database.read(totals.update)
        database.read(totals.update)
    assert totals.by_status == {"complete": 3, "stopped": 0, "failed": 0}
    assert (totals.prompt_tokens, totals.completion_tokens) == (30, 15)
    assert [round(each.sum_s, 3) for each in totals.parts.values()] == [0.003, 0.06, 0.6]


def test_what_ended_before_the_process_began_is_not_counted(database: Database, community: Community) -> None:
    database.write(lambda db: community.asks(db, 1, "a question"))
    database.write(lambda db: sql.change(db, "UPDATE replies SET created_ms = created_ms - 60000"))
    totals = ReplyTotals()
    database.read(totals.update)
    assert sum(totals.by_status.values()) == 0


def test_a_reply_is_counted_when_it_ends_also_after_later_ones(
    database: Database, community: Community
) -> None:
    totals = ReplyTotals()
    slow = database.write(lambda db: community.asks(db, 1, "a long question"))
    database.write(lambda db: sql.change(db, "UPDATE replies SET status = 'streaming' WHERE id = ?", (slow,)))
    database.write(lambda db: community.asks(db, 1, "a short question"))
    database.read(totals.update)
    assert totals.by_status["complete"] == 1
    database.write(lambda db: finish(db, slow, "An answer.", "stopped"))
    database.read(totals.update)
    assert (totals.by_status["complete"], totals.by_status["stopped"]) == (1, 1)


def test_old_replies_are_not_read_for_ever(database: Database, community: Community) -> None:
    hours = 3
    totals = ReplyTotals(now_ms() - hours * LONGEST_REPLY_MS)
    stuck = database.write(lambda db: community.asks(db, 1, "a question"))
    database.write(
        lambda db: sql.change(
            db,
            "UPDATE replies SET status = 'streaming', created_ms = created_ms - ? WHERE id = ?",
            (2 * LONGEST_REPLY_MS, stuck),
        )
    )
    database.write(lambda db: community.asks(db, 1, "another"))
    database.read(totals.update)
    assert totals.by_status["complete"] == 1
    assert totals._since_ms >= now_ms() - LONGEST_REPLY_MS - 60_000
    assert len(totals._counted) == 1


def test_a_time_belongs_to_the_first_bound_that_it_does_not_exceed() -> None:
    histogram = Histogram()
    for seconds in (0.0, BUCKETS_S[0], BUCKETS_S[-1], BUCKETS_S[-1] + 1):
        histogram.observe(seconds)
    assert histogram.counts[0] == 2 and histogram.counts[-2] == 1 and histogram.counts[-1] == 1
