"""Deletes the files of adapters that nobody needs any more. Their rows, cards and reports stay.

An adapter's files are kept while it answers, waits for a decision, or may come back by a rollback; those of
one that was refused, or that a rollback put out of service, for `trainer.keep_refused_days` more.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import sqlite_utils
import structlog

from storage.admin import audit
from storage.db import sql
from storage.db.clock import DAY_MS, now_ms
from storage.db.database import Database
from storage.learning import adapters, trials

ACTOR = "strop"

log = structlog.get_logger()


def remove_outdated(database: Database, adapters_dir: Path, keep_days: float) -> list[str]:
    """Delete what is out of date by now, and return the adapters; `keep_days` of 0 keeps everything.

    An adapter that a rollback put out of service counts as refused from then on: it can't answer again. Files
    that can't be deleted are tried again by the next call.
    """
    if not keep_days:
        return []
    before_ms = now_ms() - round(keep_days * DAY_MS)
    outdated = database.read(partial(_outdated, before_ms=before_ms))
    there = [adapter_id for adapter_id in outdated if (adapters_dir / adapter_id).is_dir()]
    gone = [each for each in there if database.write(partial(_let_go, adapter_id=each, before_ms=before_ms))]
    for adapter_id in gone:
        shutil.rmtree(adapters_dir / adapter_id, ignore_errors=True)
    if gone:
        log.info("adapters.files_removed", adapter_ids=gone, keep_days=keep_days)
    return gone


def _outdated(db: sqlite_utils.Database, before_ms: int, only: str | None = None) -> list[str]:
    """Return adapters (or only this one) out of service since `before_ms` that no rollback leads back to."""
    rows = sql.many(
        db,
        """SELECT id, state, scope, base_hash FROM adapters
           WHERE state IN ('rejected', 'retired') AND created_ms < ?1 AND (?2 IS NULL OR id = ?2)
                 AND id NOT IN (SELECT adapter_id FROM promotions
                                WHERE created_ms >= ?1 AND adapter_id IS NOT NULL
                                UNION SELECT previous_id FROM promotions
                                WHERE created_ms >= ?1 AND previous_id IS NOT NULL)
           ORDER BY rowid""",
        (before_ms, only),
    )
    in_use = {row["adapter_id"] for row in sql.many(db, "SELECT adapter_id FROM champions")}
    in_use |= {trial.exception_id for trial in trials.open_trials(db)}
    for scope, base_hash in {(row["scope"], row["base_hash"]) for row in rows if row["state"] == "retired"}:
        in_use |= set(adapters.earlier_champions(db, scope, base_hash))
    return [row["id"] for row in rows if row["id"] not in in_use]


def _let_go(db: sqlite_utils.Database, adapter_id: str, before_ms: int) -> bool:
    """Note that an adapter's files go; False where it has come back to use meanwhile."""
    if not _outdated(db, before_ms, adapter_id):
        return False
    adapters.set_state(db, adapter_id, "rejected")
    audit.record(db, ACTOR, "adapter.remove_files", {"adapter_id": adapter_id})
    return True
