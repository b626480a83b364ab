"""Which base a base hash stands for: the bridge from champions' hashes to servers that know no such hash."""

from __future__ import annotations

from typing import Protocol

import sqlite_utils

from storage.db import sql
from storage.db.clock import now_ms


class Identity(Protocol):
    """Which base it is, as the model server says it."""

    @property
    def key(self) -> str:
        """One hash of the rest."""

    @property
    def source(self) -> str:
        """Where it comes from."""

    @property
    def revision(self) -> str:
        """Which version of that."""

    @property
    def chat_template_hash(self) -> str:
        """How it is spoken to."""

    def is_known(self) -> bool:
        """Whether nothing is missing."""


def remember(db: sqlite_utils.Database, base_hash: str, identity: Identity | None, precision: str) -> None:
    """Record that a hash stands for this base; an identity with gaps stands for nothing, and is left out."""
    if identity is None or not identity.is_known():
        return
    row = {
        "base_hash": base_hash,
        "identity": identity.key,
        "source": identity.source,
        "revision": identity.revision,
        "chat_template_hash": identity.chat_template_hash,
        "precision": precision,
        "created_ms": now_ms(),
    }
    sql.insert(db, "base_identities", row, on_conflict="DO NOTHING")


def hash_of(db: sqlite_utils.Database, identity: str) -> str | None:
    """Return the hash under which champions of this base are kept, or None where none was ever seen.

    Of several the one with the newest change of champion, else the oldest.
    """
    found: str | None = sql.value(
        db,
        """SELECT base_identities.base_hash FROM base_identities
           LEFT JOIN promotions ON promotions.base_hash = base_identities.base_hash
           WHERE base_identities.identity = ?
           GROUP BY base_identities.base_hash
           ORDER BY MAX(promotions.id) DESC NULLS LAST, MIN(base_identities.rowid)
           LIMIT 1""",
        (identity,),
    )
    return found
