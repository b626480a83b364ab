"""The audit log: who changed what, for operators to read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlite_utils

from storage.db import sql
from storage.db.clock import now_ms


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the audit log."""

    id: int
    actor: str
    action: str
    detail: dict[str, Any]
    created_ms: int


def record(db: sqlite_utils.Database, actor: str, action: str, detail: Mapping[str, Any]) -> None:
    """Append one line. `detail` holds ids and names of settings, never message text."""
    values = {
        "actor": actor,
        "action": action,
        "detail_json": json.dumps(dict(detail)),
        "created_ms": now_ms(),
    }
    sql.insert(db, "audit", values)


def latest(db: sqlite_utils.Database, limit: int = 50, *, before_id: int | None = None) -> list[Entry]:
    """Return the newest lines, newest first; with `before_id` those that are older than that one."""
    rows = sql.many(
        db,
        "SELECT * FROM audit WHERE ?1 IS NULL OR id < ?1 ORDER BY id DESC LIMIT ?2",
        (before_id, limit),
    )
    return [
        Entry(row["id"], row["actor"], row["action"], json.loads(row["detail_json"]), row["created_ms"])
        for row in rows
    ]
