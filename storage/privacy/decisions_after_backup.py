"""What members decided after a backup was made holds after its restore too: consent, and what they took back.

Erasures are kept beside the database and carried out again even if it is lost (`storage.privacy.backup`);
these are read from the former database, as long as it can be read.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path

import sqlite_utils

from storage.chat import conversations, members
from storage.db import sql
from storage.db.database import Database
from storage.errors import DatabaseError


@dataclass(frozen=True, slots=True)
class Decisions:
    """Consents as (user id, consent, when); Discord's ids of messages that were deleted, or are reworded.

    The latter come with their text, and whether their files were taken out.
    """

    consents: tuple[tuple[int, str, int], ...] = ()
    deleted: tuple[int, ...] = ()
    edited: tuple[tuple[int, str, bool], ...] = ()


def read(path: Path, since_ms: int) -> Decisions:
    """Return what was decided since a backup; nothing where the former database is missing or unreadable."""
    with contextlib.suppress(DatabaseError):
        if path.exists():
            with Database.open(path) as database:
                return database.read(lambda db: _decided(db, since_ms))
    return Decisions()


def apply(db: sqlite_utils.Database, decisions: Decisions) -> None:
    """Carry out in a restored database what was decided since; safe to repeat."""
    for user_id, consent, consent_ms in decisions.consents:
        if members.get(db, user_id) is None:
            members.ensure(db, user_id, "", members.UNKNOWN)
        sql.change(
            db,
            """UPDATE members SET consent = :consent, consent_ms = :at
               WHERE user_id = :user AND coalesce(consent_ms, 0) < :at""",
            {"consent": consent, "at": consent_ms, "user": user_id},
        )
    for discord_id in decisions.deleted:
        conversations.delete_message(db, discord_id)
    for discord_id, content, without_files in decisions.edited:
        conversations.edit_message(db, discord_id, content, without_files=without_files)


def _decided(db: sqlite_utils.Database, since_ms: int) -> Decisions:
    consents = sql.many(
        db,
        "SELECT user_id, consent, consent_ms FROM members WHERE consent_ms >= ? ORDER BY user_id",
        (since_ms,),
    )
    deleted = sql.many(
        db,
        "SELECT discord_id FROM messages WHERE deleted_ms >= ? AND discord_id IS NOT NULL ORDER BY id",
        (since_ms,),
    )
    edited = sql.many(
        db,
        """SELECT discord_id, content, attached_text = '' AS without_files FROM messages
           WHERE edited_ms >= ? AND deleted_ms IS NULL AND discord_id IS NOT NULL ORDER BY id""",
        (since_ms,),
    )
    return Decisions(
        tuple((row["user_id"], row["consent"], row["consent_ms"]) for row in consents),
        tuple(row["discord_id"] for row in deleted),
        tuple((row["discord_id"], row["content"], bool(row["without_files"])) for row in edited),
    )
