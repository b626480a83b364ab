"""Where a conversation started afresh (`/forget`): what was said before is never context again."""

from collections.abc import Iterable, Sequence

import sqlite_utils

from storage.admin import audit
from storage.chat.conversations import Message
from storage.db import sql
from storage.db.clock import now_ms


def start(db: sqlite_utils.Database, channel_id: int, actor: str) -> None:
    """Leave everything that was said in a channel (or thread, or direct messages) so far behind."""
    last = int(sql.value(db, "SELECT coalesce(max(id), 0) FROM messages"))
    sql.change(
        db,
        """INSERT INTO fresh_starts VALUES (?, ?, ?, ?)
           ON CONFLICT DO UPDATE SET message_id = excluded.message_id, actor = excluded.actor,
                                     created_ms = excluded.created_ms""",
        (channel_id, last, actor, now_ms()),
    )
    audit.record(db, actor, "conversation.forget", {"channel_id": str(channel_id)})


def last_ms(db: sqlite_utils.Database, channel_id: int) -> int:
    """Return when somebody last began afresh in a channel, in Unix milliseconds; 0 if nobody did."""
    return int(sql.value(db, "SELECT created_ms FROM fresh_starts WHERE channel_id = ?", (channel_id,)) or 0)


def boundary(db: sqlite_utils.Database, channel_ids: Iterable[int]) -> int:
    """Return the id of the last message that was left behind in any of these channels; 0 if none was."""
    return max((_boundary(db, channel_id) for channel_id in channel_ids), default=0)


def since(messages: Sequence[Message], boundary: int) -> list[Message]:
    """Return the messages of a chain, the oldest first, that came after `boundary`.

    The bot's answer to a question from before is from before, whenever it was finished.
    """
    kept: list[Message] = []
    for message in reversed(messages):
        late_answer = message.author_id is None and (message.parent_id or 0) <= boundary
        if message.id <= boundary or (boundary and late_answer):
            break
        kept.append(message)
    return kept[::-1]


def _boundary(db: sqlite_utils.Database, channel_id: int) -> int:
    return int(sql.value(db, "SELECT message_id FROM fresh_starts WHERE channel_id = ?", (channel_id,)) or 0)
