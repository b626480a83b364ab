"""Blocked members: they get no answers, and what they rate from then on doesn't count."""

from dataclasses import dataclass

import sqlite_utils

from storage.admin import audit
from storage.db import sql
from storage.db.clock import now_ms
from storage.errors import BlockError

EVERYWHERE = 0
"""The `guild_id` of a block that holds in all servers and in direct messages."""


@dataclass(frozen=True, slots=True)
class Block:
    """Who is blocked where (`guild_id` 0: everywhere), by whom and why."""

    guild_id: int
    user_id: int
    actor: str
    reason: str
    created_ms: int


def block(db: sqlite_utils.Database, *, guild_id: int, user_id: int, actor: str, reason: str = "") -> bool:
    """Block a member and audit it; return whether they weren't blocked there before.

    Raises BlockError for oneself.
    """
    if str(user_id) == actor:
        raise BlockError("You can't block yourself.")
    values = {
        "guild_id": guild_id,
        "user_id": user_id,
        "actor": actor,
        "reason": reason.strip()[:300],
        "created_ms": now_ms(),
    }
    known = sql.one(db, "SELECT 1 FROM blocks WHERE guild_id = ? AND user_id = ?", (guild_id, user_id))
    if known is not None:
        return False
    sql.insert(db, "blocks", values)
    audit.record(db, actor, "member.block", {"user_id": user_id, "guild_id": str(guild_id)})
    return True


def unblock(db: sqlite_utils.Database, *, guild_id: int, user_id: int, actor: str) -> None:
    """Lift a block and audit it. Raises BlockError where there is none."""
    gone = sql.change(db, "DELETE FROM blocks WHERE guild_id = ? AND user_id = ?", (guild_id, user_id))
    if not gone:
        raise BlockError("This member is not blocked here.")
    audit.record(db, actor, "member.unblock", {"user_id": user_id, "guild_id": str(guild_id)})


def is_blocked(db: sqlite_utils.Database, guild_id: int | None, user_id: int) -> bool:
    """Whether a member is blocked in a server (None: in direct messages), or everywhere."""
    found = sql.value(
        db,
        "SELECT 1 FROM blocks WHERE user_id = ? AND guild_id IN (?, ?)",
        (user_id, EVERYWHERE, EVERYWHERE if guild_id is None else guild_id),
    )
    return found is not None


def blocks_rating(db: sqlite_utils.Database, reply_id: str, user_id: int) -> bool:
    """Whether a member's rating of this reply doesn't count."""
    found = sql.value(
        db,
        """SELECT 1 FROM blocks WHERE user_id = ?1 AND guild_id IN (0, (
               SELECT conversations.guild_id FROM replies
               JOIN conversations ON conversations.id = replies.conversation_id WHERE replies.id = ?2))""",
        (user_id, reply_id),
    )
    return found is not None


def listing(db: sqlite_utils.Database, guild_id: int | None = None) -> list[Block]:
    """Return the blocks of one server and those that hold everywhere, or all; the newest first."""
    rows = sql.many(
        db,
        """SELECT * FROM blocks WHERE ?1 IS NULL OR guild_id IN (0, ?1)
           ORDER BY created_ms DESC, user_id""",
        (guild_id,),
    )
    return [Block(**row) for row in rows]
