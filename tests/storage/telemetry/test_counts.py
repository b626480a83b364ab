"""What monitoring reads of a deployment: every scope at first, the busiest where there are many."""

from __future__ import annotations

from typing import Any

from storage.db import sql
from storage.db.database import Database
from storage.feedback.like_rate import LikeRate
from storage.learning import adapters, runs
from storage.sentences import Sentence
from storage.telemetry import counts
from tests.storage.conftest import BASE, SCOPE, Community, thumb


def test_an_empty_database_has_no_scopes_and_no_trends(database: Database) -> None:
    assert database.read(lambda db: counts.read(db, "")) == counts.Counts("")
    assert database.read(counts.trends) == {}


def test_ratings_champion_and_last_run_of_a_scope(database: Database, community: Community) -> None:
    def work(db: Any) -> None:
        thumb(db, community.asks(db, 1, "one"), 1, 1)
        thumb(db, community.asks(db, 1, "two"), 2, -1)
        adapters.insert_candidate(db, adapter_id="a" * 16, scope=SCOPE, base_hash=BASE, path="adapters/a")
        adapters.promote(db, scope=SCOPE, base_hash=BASE, adapter_id="a" * 16, actor="test", reason="test")
        runs.enqueue(db, scope=SCOPE, trigger="manual", requested_by="test")
        run = runs.lease_next(db, "owner", 60_000)
        assert run is not None
        runs.finish(
            db,
            run.id,
            outcome="refused",
            message=Sentence("no"),
            metrics={"headline": {"value": 0.1, "low": 0.05, "high": 0.2, "n": 9}},
        )
        runs.enqueue(db, scope=SCOPE, trigger="manual", requested_by="test")

    database.write(work)
    found = database.read(lambda db: counts.read(db, BASE))
    (scope,) = found.scopes
    assert (scope.liked, scope.disliked, scope.raters, scope.adapter_id) == (1, 1, 2, "a" * 16)
    assert scope.last_rating_ms is not None and scope.champion_since_ms is not None
    assert scope.last_run is not None and scope.last_run.metrics.headline is not None
    assert scope.last_run.metrics.headline.low == 0.05
    assert (dict(found.runs), found.queued, found.promotions["promote"]) == ({"refused": 1}, 1, 1)
    # Of another base nobody is champion.
    assert database.read(lambda db: counts.read(db, "other")).scopes[0].adapter_id is None
    assert database.read(counts.trends)[SCOPE].lately == LikeRate(1, 1)


def test_a_run_that_votes_decide_is_no_outcome_yet(database: Database) -> None:
    """A counter must not shrink when the vote is over."""

    def work(db: Any) -> str:
        runs.enqueue(db, scope=SCOPE, trigger="manual", requested_by="test")
        run = runs.lease_next(db, "owner", 60_000)
        assert run is not None
        runs.finish(db, run.id, outcome="votes", message=Sentence("vote"))
        return run.id

    run_id = database.write(work)
    found = database.read(lambda db: counts.read(db, BASE))
    assert (dict(found.runs), found.awaiting_votes) == ({}, 1)
    database.write(lambda db: runs.finish(db, run_id, outcome="promoted", message=Sentence("yes")))
    found = database.read(lambda db: counts.read(db, BASE))
    assert (dict(found.runs), found.awaiting_votes) == ({"promoted": 1}, 0)


def test_of_many_scopes_the_busiest_are_told_apart(database: Database) -> None:
    def work(db: Any) -> None:
        for number in range(30):
            sql.insert(db, "scope_counts", {"scope": f"guild:{number}", "liked": number})

    database.write(work)
    found = database.read(counts.scopes)
    assert len(found) == counts.MOST_SCOPES and found[0] == "guild:29" and "guild:3" not in found
