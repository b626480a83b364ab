"""Several versions of one reply in one place: all are kept, one is shown, and ratings go to the one shown.

A reply that was written once has no rows here. The Discord messages of a reply belong to the version shown,
so that whoever looks a message up finds what people see.
"""

from dataclasses import dataclass

import sqlite_utils

from storage.chat import replies
from storage.db import sql
from storage.errors import UnknownRowError


@dataclass(frozen=True, slots=True)
class Versions:
    """The versions of one reply, oldest first, and which of them is shown."""

    reply_ids: tuple[str, ...]
    shown_id: str

    @property
    def first_id(self) -> str:
        """The id that stands for all of them."""
        return self.reply_ids[0]

    @property
    def number(self) -> int:
        """The place of the one that is shown, from 1."""
        return self.reply_ids.index(self.shown_id) + 1

    @property
    def total(self) -> int:
        """How many there are."""
        return len(self.reply_ids)

    def neighbour(self, step: int) -> str:
        """Return the version `step` places from the one shown; beyond an end, that end."""
        place = self.number - 1 + step
        return self.reply_ids[min(max(place, 0), self.total - 1)]


def of(db: sqlite_utils.Database, reply_id: str) -> Versions:
    """Return the versions that a reply is one of; a reply alone is its own only version."""
    rows = sql.many(
        db,
        """SELECT theirs.reply_id, theirs.shown FROM reply_versions AS mine
           JOIN reply_versions AS theirs ON theirs.first_id = mine.first_id
           WHERE mine.reply_id = ? ORDER BY theirs.number""",
        (reply_id,),
    )
    if not rows:
        return Versions((reply_id,), reply_id)
    shown = next((row["reply_id"] for row in rows if row["shown"]), rows[-1]["reply_id"])
    return Versions(tuple(row["reply_id"] for row in rows), shown)


def add(db: sqlite_utils.Database, reply_id: str, *, beside: str) -> Versions:
    """Add a reply as the newest version beside another one, without showing it. Safe to repeat."""
    known = of(db, beside)
    if reply_id in known.reply_ids:
        return known
    if known.total == 1:
        _insert(db, beside, beside, 1, shown=True)
    number = sql.value(db, "SELECT max(number) + 1 FROM reply_versions WHERE first_id = ?", (known.first_id,))
    _insert(db, reply_id, known.first_id, int(number), shown=False)
    return of(db, beside)


def show(db: sqlite_utils.Database, reply_id: str) -> Versions:
    """Make this version the one shown: Discord's messages are its own from now on. Raises UnknownRowError."""
    versions = of(db, reply_id)
    if versions.shown_id == reply_id:
        return versions
    before, now = replies.get(db, versions.shown_id), replies.get(db, reply_id)
    if before is None or now is None:
        raise UnknownRowError("There is no reply {reply}.", reply=reply_id)
    sql.change(db, "UPDATE reply_versions SET shown = 0 WHERE first_id = ?", (versions.first_id,))
    sql.change(db, "UPDATE reply_versions SET shown = 1 WHERE reply_id = ?", (reply_id,))
    sql.change(db, "UPDATE reply_parts SET reply_id = ? WHERE reply_id = ?", (reply_id, before.id))
    discord_id = sql.value(db, "SELECT discord_id FROM messages WHERE id = ?", (before.message_id,))
    sql.change(db, "UPDATE messages SET discord_id = NULL WHERE id = ?", (before.message_id,))
    sql.change(db, "UPDATE messages SET discord_id = ? WHERE id = ?", (discord_id, now.message_id))
    return of(db, reply_id)


def drop(db: sqlite_utils.Database, reply_id: str) -> Versions | None:
    """Take a version out that never came to be, and show the newest one left; None if there is no other."""
    versions = of(db, reply_id)
    left = [each for each in versions.reply_ids if each != reply_id]
    if not left:
        return None
    if versions.shown_id == reply_id:
        show(db, left[-1])
    # The id that stands for all must stay theirs: the oldest one left inherits the name.
    sql.change(db, "DELETE FROM reply_versions WHERE reply_id = ?", (reply_id,))
    sql.change(db, "UPDATE reply_versions SET first_id = ? WHERE first_id = ?", (left[0], versions.first_id))
    if len(left) == 1:
        sql.change(db, "DELETE FROM reply_versions WHERE reply_id = ?", (left[0],))
    return of(db, left[-1])


def _insert(db: sqlite_utils.Database, reply_id: str, first_id: str, number: int, *, shown: bool) -> None:
    values = {"reply_id": reply_id, "first_id": first_id, "number": number, "shown": int(shown)}
    sql.insert(db, "reply_versions", values)
