"""Signals from the database to a run's snapshot, and out of it again."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sqlite_utils

from storage.chat import conversations, replies
from storage.config import Config, load_config
from storage.db import sql
from storage.db.database import Database
from storage.learning import checkpoints, eligibility, runs
from storage.learning.signals import of_replies
from storage.privacy import consent, erasure
from tests.databases import copied
from tests.storage.conftest import SCOPE, Community, thumb
from trainer.data import snapshot
from trainer.data.rows import WeakLabel
from trainer.run.heartbeat import Heartbeat

if TYPE_CHECKING:
    from trainer.run.steps import RunSteps

pytestmark = pytest.mark.model

HOUR_MS = 60 * 60 * 1_000
WORDS = ("soup", "rice", "bread", "salt", "sun", "rain", "wind", "tree", "road", "lamp", "door", "song")


def settle(db: sqlite_utils.Database) -> None:
    """Let members who like some words thank for them, an hour ago; two fifths are rated, with errors."""
    dice, community = random.Random(0), Community()
    for number in range(300):
        said = dice.choices(WORDS, k=5)
        liked, asker = sum(word in WORDS[:6] for word in said) > 2, 1 + number % 12
        reply_id = community.asks(db, asker, f"What of {number}?", answer=f"{' '.join(said)}.")
        if liked:
            thank(db, asker, reply_id)
        if number % 5 < 2:
            thumb(db, reply_id, asker, 1 if liked == (dice.random() < 0.9) else -1)
    for table in ("messages", "replies"):
        sql.change(db, f"UPDATE {table} SET created_ms = created_ms - ?", (HOUR_MS,))
    runs.enqueue(db, scope=SCOPE, trigger="manual", requested_by="test")


def thank(db: sqlite_utils.Database, user_id: int, reply_id: str) -> None:
    """Let a member thank for a reply; nobody answers that."""
    reply = replies.get(db, reply_id)
    assert reply is not None
    conversations.add_message(
        db,
        conversation_id=reply.conversation_id,
        discord_id=None,
        parent_id=reply.message_id,
        author_id=user_id,
        role="user",
        content="vielen Dank",
    )


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load_config(None, {"STROP_HOME": str(tmp_path)})


@pytest.fixture
def database(config: Config, empty_database: Path) -> Iterator[Database]:
    with copied(empty_database, config.database) as opened:
        opened.write(settle)
        yield opened


@contextmanager
def begun(database: Database, config: Config) -> Iterator[RunSteps]:
    """Lease the waiting run."""
    from trainer.run.steps import RunSteps

    run = database.write(lambda db: runs.lease_next(db, "trainer", 600_000))
    assert run is not None
    with Heartbeat(database, run.id, "trainer") as heartbeat:
        yield RunSteps(database, config, run, heartbeat)


def asked_by(database: Database, user_id: int) -> set[str]:
    rows = database.read(lambda db: sql.many(db, "SELECT id FROM replies WHERE asker_id = ?", (user_id,)))
    return {row["id"] for row in rows}


def test_a_run_learns_from_unrated_replies_but_not_of_who_withdraws(
    database: Database, config: Config
) -> None:
    used: list[set[str]] = []
    for _ in range(2):
        with begun(database, config) as steps:
            rows = steps.snapshot()
            told = steps._metrics["signals"]
            assert told["bound"] > 0.5 and told["weight"] > 0 and len(rows.weak) == told["replies"] > 50
            assert "vielen Dank" not in (steps.folder / "snapshot.jsonl").read_text(encoding="utf-8")
            assert steps._still_allowed(rows) is rows
            used.append({weak.reply_id for weak in rows.weak})
            kept = database.read(lambda db, run=steps._run: runs.rows_of(db, run.id))  # type: ignore[misc]
            assert used[-1] == {row.reply_id for row in kept if row.label == "signals"}
        # Whoever withdraws ends the run, and it begins anew without them.
        database.write(lambda db: consent.decide(db, 1, "out", "1", permission_reference=""))
        database.write(lambda db: erasure.erase_member(db, 2, "2"))
    for user_id in (1, 2):
        assert asked_by(database, user_id) & used[0] and not asked_by(database, user_id) & used[1]


def test_an_interrupted_run_goes_on_with_its_signals_unless_they_are_switched_off(
    database: Database, config: Config
) -> None:
    with begun(database, config) as steps:
        rated, unrated = database.read(
            lambda db: (
                eligibility.eligible_rows(db, SCOPE, permission_reference="").rows,
                of_replies.of_unrated(db, SCOPE, permission_reference=""),
            )
        )
        weak = [
            WeakLabel(one.reply_id, one.group_key, one.question, one.text, 0.9, 0.1, one.source)
            for one in unrated
        ]
        told = {"rated": len(rated), "replies": len(weak), "weight": 0.1, "auc": 0.7, "bound": 0.6}
        rows = replace(snapshot.build(rated, {}).with_weak(weak), signals=told)
        steps.freeze(rows)
        (steps.folder / checkpoints.FILE).touch()
        run = database.read(lambda db: runs.expect(db, steps._run.id))
        again = type(steps)(database, config, run, steps._heartbeat)
        assert again.snapshot().weak == rows.weak != ()
        assert again._metrics["signals"] == told
        off = type(steps)(database, without_signals(config), run, steps._heartbeat)
        assert off.snapshot().weak == ()
        assert "signals" not in off._metrics


def without_signals(config: Config) -> Config:
    return config.model_copy(update={"trainer": config.trainer.model_copy(update={"signals": False})})


def test_a_run_reads_no_signals_where_they_are_switched_off(database: Database, config: Config) -> None:
    with begun(database, without_signals(config)) as steps:
        assert steps.snapshot().weak == ()
        assert "signals" not in steps._metrics
