"""What is said of an adapter's training: replies that members rated, in the reader's language."""

from __future__ import annotations

import pytest
import sqlite_utils

from bot.feedback.provenance import Training, training_of
from storage.db.database import Database
from storage.learning import adapters, runs
from storage.learning.runs import RunRow
from tests.storage.conftest import BASE, SCOPE, Community


@pytest.mark.parametrize("unrated", ["signals", "compared"])
def test_a_reply_that_nobody_rated_is_no_rated_reply(database: Database, unrated: str) -> None:
    community = Community()

    def work(db: sqlite_utils.Database) -> Training:
        replies = [community.asks(db, 1, "a question") for _ in range(5)]
        runs.enqueue(db, scope=SCOPE, trigger="manual", requested_by="1")
        run = runs.lease_next(db, "here", 60_000)
        assert run is not None
        labels = ("liked", "liked", "disliked", unrated, unrated)
        rows = [
            RunRow(reply_id, "train", label, 1.0) for reply_id, label in zip(replies, labels, strict=True)
        ]
        runs.record_snapshot(db, run.id, snapshot_hash="hash", rows=rows)
        adapters.insert_candidate(
            db, adapter_id="a1", scope=SCOPE, base_hash=BASE, path="adapters/a1", run_id=run.id
        )
        return training_of(db, "a1")

    assert database.write(work).labels == {"liked": 2, "disliked": 1}
