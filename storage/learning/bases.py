"""Which base a base hash stands for, and what that base reached on this machine.

The first is the bridge from champions' hashes to servers that know no such hash.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

import sqlite_utils

from storage.db import sql
from storage.db.clock import now_ms

# Newest first; older ones may come from another machine or version.
REPLIES, RUNS = 200, 10
# A shorter reply says more of its beginning than of the speed.
LEAST_TOKENS = 8


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


@dataclass(frozen=True, slots=True)
class Measured:
    """Medians; None where nothing was measured. `tokens_per_s` is one reply's, whoever else was served."""

    tokens_per_s: float | None = None
    run_minutes: float | None = None


def read_measured(db: sqlite_utils.Database, base_hashes: Collection[str]) -> Measured:
    """Return what the base of these hashes reached."""
    if not base_hashes:
        return Measured()
    marks, values = ", ".join("?" * len(base_hashes)), list(base_hashes)
    replies = sql.many(
        db,
        f"""SELECT (completion_tokens - 1) * 1000.0 / (duration_ms - first_token_ms) AS speed FROM replies
            WHERE base_hash IN ({marks}) AND status = 'complete' AND completion_tokens >= ?
                  AND duration_ms > first_token_ms
            ORDER BY created_ms DESC LIMIT ?""",
        (*values, LEAST_TOKENS, REPLIES),
    )
    # Where members voted the run waited for them.
    runs = sql.many(
        db,
        f"""SELECT (runs.finished_ms - runs.started_ms) / 60000.0 AS minutes FROM runs
            JOIN adapters ON adapters.id = runs.adapter_id
            WHERE adapters.base_hash IN ({marks}) AND runs.state = 'finished' AND runs.attempts = 1
                  AND NOT EXISTS (SELECT 1 FROM duels WHERE duels.run_id = runs.id)
            ORDER BY runs.finished_ms DESC LIMIT ?""",
        (*values, RUNS),
    )
    return Measured(_median([row["speed"] for row in replies]), _median([row["minutes"] for row in runs]))


def _median(values: list[float]) -> float | None:
    return float(statistics.median(values)) if values else None
