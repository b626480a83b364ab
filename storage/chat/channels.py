"""What is known of each channel today: whether everybody in its server can read it.

A message keeps what was so when it was written; a channel that was closed since keeps all its words from
training for as long as it is closed.
"""

from collections.abc import Collection

import sqlite_utils

from storage.admin import settings
from storage.chat import conversations
from storage.db import sql
from storage.db.clock import now_ms


def note(
    db: sqlite_utils.Database,
    channel_id: int,
    *,
    guild_id: int | None,
    public: bool,
    parent_channel_id: int | None = None,
) -> bool:
    """Record whether everybody can read a channel now; return whether that is new."""
    return bool(
        sql.change(
            db,
            """INSERT INTO channels VALUES (?, ?, ?, ?, ?)
               ON CONFLICT DO UPDATE SET public = excluded.public, seen_ms = excluded.seen_ms,
                   guild_id = excluded.guild_id,
                   parent_channel_id = coalesce(excluded.parent_channel_id, parent_channel_id)
               WHERE public <> excluded.public
                     OR parent_channel_id IS NOT coalesce(excluded.parent_channel_id, parent_channel_id)""",
            (channel_id, guild_id, parent_channel_id, int(public and guild_id is not None), now_ms()),
        )
    )


def hide(db: sqlite_utils.Database, channel_ids: Collection[int], guild_ids: Collection[int]) -> int:
    """Note channels that can't be seen any more, of servers that can, as closed; return how many are new."""
    hidden = 0
    for channel_id in channel_ids:
        guild_id = conversations.guild_of(db, channel_id)
        if guild_id in guild_ids:
            hidden += note(db, channel_id, guild_id=guild_id, public=False)
    return hidden


def any_private(db: sqlite_utils.Database, channel_ids: Collection[int]) -> bool:
    """Whether one of these channels is known not to be readable for everybody."""
    return any(
        sql.value(db, "SELECT 1 FROM channels WHERE channel_id = ? AND public = 0", (channel_id,)) is not None
        for channel_id in channel_ids
    )


def objection(
    db: sqlite_utils.Database, channel_id: int, guild_id: int | None, parent_channel_id: int | None
) -> str | None:
    """Return why nothing that was written in a channel may train today (a code of eligibility), or None.

    The server and a thread's parent are looked up where the caller doesn't know them.
    """
    seen = sql.one(db, "SELECT guild_id, parent_channel_id FROM channels WHERE channel_id = ?", (channel_id,))
    home = parent_channel_id or (seen and seen["parent_channel_id"]) or channel_id
    if any_private(db, {channel_id, home}):
        return "not_public"
    if guild_id is None:
        guild_id = (seen and seen["guild_id"]) or settings.guild_of(db, home) or 0
    return "channel_opted_out" if (guild_id, home) in settings.read_closed_places(db) else None


def threads_of(db: sqlite_utils.Database, channel_id: int) -> list[int]:
    """Return the threads of a channel in which something was said, by id."""
    rows = sql.many(
        db,
        """SELECT channel_id FROM channels WHERE parent_channel_id = ?1
           UNION SELECT channel_id FROM conversations WHERE parent_channel_id = ?1 ORDER BY channel_id""",
        (channel_id,),
    )
    return [row["channel_id"] for row in rows]


def spoken_in(db: sqlite_utils.Database) -> list[int]:
    """Return the channels of servers in which something was said, without threads, by id."""
    rows = sql.many(
        db,
        """SELECT DISTINCT coalesce(parent_channel_id, channel_id) AS channel_id FROM conversations
           WHERE guild_id IS NOT NULL
           UNION SELECT channel_id FROM channels WHERE guild_id IS NOT NULL AND parent_channel_id IS NULL
           ORDER BY channel_id""",
    )
    return [row["channel_id"] for row in rows]
