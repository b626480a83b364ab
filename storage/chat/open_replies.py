"""Replies between their first row and their last edit: what a start has to deliver, to mark or to answer.

Every reply has a row before its first message is sent. It stays open ("streaming") until the last edit stands
in the channel, so that a kill at any moment leaves something to go on from.
"""

from typing import Any

import sqlite_utils

from storage.chat import replies
from storage.chat.replies import Reply, Status
from storage.db import sql

INTERRUPTED = "the bot stopped before the reply was done"


def settle(db: sqlite_utils.Database, reply_id: str, status: Status, error: str | None = None) -> None:
    """End a reply whose text is stored already: it stands in its channel now, or can't."""
    sql.change(
        db,
        "UPDATE replies SET status = ?, error = coalesce(?, error) WHERE id = ? AND status = 'streaming'",
        (status, error, reply_id),
    )
    sql.change(db, "DELETE FROM parts_on_their_way WHERE reply_id = ?", (reply_id,))


def send_part(db: sqlite_utils.Database, reply_id: str, position: int) -> None:
    """Record that a message after the first one is about to be sent; `replies.add_part` gives it its id."""
    sql.change(
        db,
        """INSERT INTO parts_on_their_way SELECT id, ? FROM replies WHERE id = ?
           ON CONFLICT DO UPDATE SET position = excluded.position""",
        (position, reply_id),
    )


def all_open(db: sqlite_utils.Database) -> list[Reply]:
    """Return every open reply, the oldest first; at a start, those that an earlier process left."""
    rows = sql.many(db, "SELECT id FROM replies WHERE status = 'streaming' ORDER BY created_ms, message_id")
    found = (replies.get(db, row["id"]) for row in rows)
    return [reply for reply in found if reply is not None]


def list_unanswered(db: sqlite_utils.Database, error: str, since_ms: int) -> list[Reply]:
    """Return replies since then that ended with this error and without a message, and nothing came after.

    Of several for one question (two candidates, or starts that were cut short) it is the last one.
    """
    rows = sql.many(
        db,
        """SELECT id, prompt_message_id FROM replies WHERE created_ms >= ? AND status = 'failed' AND error = ?
           ORDER BY created_ms, message_id""",
        (since_ms, error),
    )
    last = {row["prompt_message_id"]: row["id"] for row in rows}
    found = (replies.get(db, last[asked]) for asked in last if not has_answer(db, asked))
    return [reply for reply in found if reply is not None]


def find_lost_part(db: sqlite_utils.Database, reply_id: str) -> int | None:
    """Return the position of a message that may stand in the channel without its id being known, or None."""
    if not replies.parts(db, reply_id):
        return 0
    position: int | None = sql.value(
        db, "SELECT position FROM parts_on_their_way WHERE reply_id = ?", (reply_id,)
    )
    return position


def is_whole(db: sqlite_utils.Database, reply_id: str) -> bool:
    """Whether an open reply was written to its end, and alone: of a pair nobody knows what is shown."""
    return _exists(
        db,
        """SELECT 1 FROM replies JOIN messages ON messages.id = replies.message_id
           WHERE replies.id = ? AND finish_reason IS NOT NULL AND trim(content) <> ''
           AND EXISTS (SELECT 1 FROM reply_parts WHERE reply_parts.reply_id = replies.id)
           AND NOT EXISTS (SELECT 1 FROM comparisons
                           WHERE first_id = replies.id OR second_id = replies.id)""",
        (reply_id,),
    )


def has_answer(db: sqlite_utils.Database, prompt_message_id: int, *, besides: str = "") -> bool:
    """Whether a message has a reply (other than `besides`) that is open, ended, or seen in its channel."""
    return _exists(
        db,
        """SELECT 1 FROM replies WHERE prompt_message_id = ? AND id <> ? AND (
               status <> 'failed'
               OR EXISTS (SELECT 1 FROM reply_parts WHERE reply_parts.reply_id = replies.id))""",
        (prompt_message_id, besides),
    )


def _exists(db: sqlite_utils.Database, statement: str, parameters: tuple[Any, ...]) -> bool:
    return sql.value(db, statement, parameters) is not None
