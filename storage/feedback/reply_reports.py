"""Members' reports of replies, as the audit log remembers them: who, which reply and when, no words."""

import sqlite_utils

from storage.db import sql
from storage.db.clock import now_ms

ACTION = "reply.report"


def count_reports(
    db: sqlite_utils.Database, user_id: int, *, reply_id: str | None = None, within_ms: int | None = None
) -> int:
    """Return how many reports a member made: on one reply, within a time, or ever."""
    return int(
        sql.value(
            db,
            """SELECT count(*) FROM audit WHERE actor = :actor AND action = :action
                      AND (:reply IS NULL OR detail_json ->> 'reply_id' = :reply) AND created_ms >= :since""",
            {
                "actor": str(user_id),
                "action": ACTION,
                "reply": reply_id,
                "since": 0 if within_ms is None else now_ms() - within_ms,
            },
        )
    )
