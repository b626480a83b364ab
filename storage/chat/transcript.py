"""What was said in the channels of Discord, as messages: for a stand-in that has to show it again."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass

import sqlite_utils

from storage.db import sql


@dataclass(frozen=True, slots=True)
class Shown:
    """One message of a channel. `author_id` None is the bot, whose answers have a `reply_id`.

    `reactions` are ratings (emoji, user id). `calls_bot` says that it was answered and continues nothing: the
    mention that began it isn't stored.
    """

    discord_id: int
    channel_id: int
    author_id: int | None
    author_name: str
    content: str
    reply_to: int | None
    reactions: tuple[tuple[str, int], ...] = ()
    reply_id: str | None = None
    calls_bot: bool = False


def latest(db: sqlite_utils.Database, limit: int, *, after: int = 0) -> list[Shown]:
    """Return the last `limit` messages with an id above `after`, oldest first; deleted ones are gone.

    An answer that took several messages is returned whole, as its first. None is left out for having no text:
    whoever compares a channel with this list must not take such a message for a deleted one.
    """
    rows = sql.many(db, _LATEST, {"after": after, "limit": limit})
    reactions = _reactions(db, [row["reply_id"] for row in rows if row["reply_id"]])
    return [
        Shown(
            row["discord_id"],
            row["channel_id"],
            row["author_id"],
            row["author_name"] or "",
            row["content"],
            row["reply_to"],
            tuple(reactions[row["reply_id"]]) if row["reply_id"] else (),
            row["reply_id"],
            bool(row["calls_bot"]),
        )
        for row in reversed(rows)
    ]


_LATEST = """
SELECT * FROM (
    SELECT messages.discord_id, coalesce(messages.channel_id, conversations.channel_id) AS channel_id,
           messages.author_id, members.display_name AS author_name, messages.content,
           NULL AS reply_to, NULL AS reply_id,
           messages.parent_id IS NULL AND EXISTS (
               SELECT 1 FROM replies WHERE replies.prompt_message_id = messages.id) AS calls_bot
    FROM messages JOIN conversations ON conversations.id = messages.conversation_id
    LEFT JOIN members ON members.user_id = messages.author_id
    WHERE messages.role = 'user' AND messages.discord_id > :after AND messages.deleted_ms IS NULL
    UNION ALL
    SELECT reply_parts.discord_id, reply_parts.channel_id, NULL, '',
           CASE replies.finish_reason WHEN 'length' THEN rtrim(answer.content) || ' …'
                ELSE answer.content END,
           asked.discord_id, replies.id, 0
    FROM reply_parts JOIN replies ON replies.id = reply_parts.reply_id
    JOIN messages AS answer ON answer.id = replies.message_id
    LEFT JOIN messages AS asked ON asked.id = replies.prompt_message_id AND asked.deleted_ms IS NULL
    WHERE reply_parts.position = 0 AND reply_parts.discord_id > :after
          AND answer.deleted_ms IS NULL
)
ORDER BY discord_id DESC LIMIT :limit"""


def _reactions(db: sqlite_utils.Database, reply_ids: list[str]) -> defaultdict[str, list[tuple[str, int]]]:
    rows = sql.many(
        db,
        """SELECT ratings.reply_id, ratings.emoji, ratings.user_id FROM json_each(?) AS wanted
           CROSS JOIN ratings ON ratings.reply_id = wanted.value
           WHERE ratings.kind = 'thumb' AND ratings.means = 'reaction' AND ratings.retracted = 0
                 AND ratings.emoji IS NOT NULL ORDER BY ratings.id""",
        (json.dumps(reply_ids),),
    )
    found: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
    for row in rows:
        found[row["reply_id"]].append((row["emoji"], row["user_id"]))
    return found
