"""Rated replies that an operator keeps out of training, each by hand; reversible, and in the audit log."""

from __future__ import annotations

from dataclasses import dataclass

import sqlite_utils

from storage.admin import audit
from storage.db import sql
from storage.db.clock import now_ms
from storage.errors import UnknownRowError


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A reply that was left out: by whom, and when."""

    reply_id: str
    actor: str
    created_ms: int


def leave_out(db: sqlite_utils.Database, reply_id: str, actor: str) -> bool:
    """Keep a reply out of training; return whether it was in before. Raises UnknownRowError."""
    if sql.one(db, "SELECT id FROM replies WHERE id = ?", (reply_id,)) is None:
        raise UnknownRowError("There is no reply {reply}.", reply=reply_id)
    if sql.one(db, "SELECT 1 FROM left_out_replies WHERE reply_id = ?", (reply_id,)) is not None:
        return False
    sql.insert(db, "left_out_replies", {"reply_id": reply_id, "actor": actor, "created_ms": now_ms()})
    audit.record(db, actor, "row.leave_out", {"reply_id": reply_id})
    return True


def put_back(db: sqlite_utils.Database, reply_id: str, actor: str) -> bool:
    """Let a reply train again, if all else allows it; return whether it was left out."""
    if not sql.change(db, "DELETE FROM left_out_replies WHERE reply_id = ?", (reply_id,)):
        return False
    audit.record(db, actor, "row.put_back", {"reply_id": reply_id})
    return True


def listing(db: sqlite_utils.Database, scope: str, limit: int = 200) -> list[LeftOut]:
    """Return what is left out of a scope, the latest first."""
    rows = sql.many(
        db,
        """SELECT left_out_replies.* FROM left_out_replies
           CROSS JOIN replies ON replies.id = left_out_replies.reply_id
           CROSS JOIN conversations ON conversations.id = replies.conversation_id
           WHERE conversations.scope = ? ORDER BY left_out_replies.created_ms DESC LIMIT ?""",
        (scope, limit),
    )
    return [LeftOut(**row) for row in rows]
