"""Thousands of rows that a query has no business with, and how much SQLite does for it."""

from __future__ import annotations

import json
from collections.abc import Callable

import sqlite_utils

from storage.db import sql

COUNT = 4_000


def fill(db: sqlite_utils.Database) -> None:
    """Store older replies to member 1 in the first conversation, pairs of them, and other log lines."""
    for statement in _OLDER.split("\n\n"):
        sql.change(db, statement, {"numbers": json.dumps(list(range(COUNT)))})


def steps(db: sqlite_utils.Database, work: Callable[[], object]) -> int:
    """Return how many steps of SQLite's machine some work takes, to ten."""
    taken: list[None] = []
    db.conn.set_progress_handler(lambda: taken.append(None), 10)
    try:
        work()
    finally:
        db.conn.set_progress_handler(None, 0)
    return 10 * len(taken)


_OLDER = """
INSERT INTO messages (id, conversation_id, author_id, role, content, source, consent, created_ms)
SELECT 10000 + value, 1, 1, 'user', 'older', 'playground', 'unset', value FROM json_each(:numbers)

INSERT INTO replies (id, message_id, prompt_message_id, conversation_id, asker_id, scope, base_hash,
                     prompt_json, sampling_json, status, source, created_ms)
SELECT 'older-' || value, 10000 + value, 10000 + value, 1, 1, 'guild:5', '', '[]', '{}', 'complete',
       'playground', value FROM json_each(:numbers)

INSERT INTO comparisons
SELECT 'older-' || value, 'older-' || (value - 1), 'older-' || value, 'guild:5', value
FROM json_each(:numbers) WHERE value % 2

INSERT INTO audit (actor, action, detail_json, created_ms)
SELECT '1', 'consent', json_object('user_id', 100 + value), value FROM json_each(:numbers)"""
