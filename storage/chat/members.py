"""Members, and what each has said about training on their words."""

from dataclasses import dataclass
from typing import Literal

import sqlite_utils

from storage.admin import audit
from storage.db import sql
from storage.db.clock import now_ms

Consent = Literal["unset", "in", "out"]

UNKNOWN = "unknown"
# In whose name an operator's own prompts are asked: no account at Discord has this id.
OPERATOR_ID = 0
OPERATOR_NAME = "Operator"
OPERATOR_SOURCE = "operator"
# Whoever wrote what somebody forwarded: Discord doesn't name them, so they can never have opted in.
UNKNOWN_AUTHOR_ID = 1


@dataclass(frozen=True, slots=True)
class Member:
    """One person (or one simulated member of the rehearsal)."""

    user_id: int
    display_name: str
    source: str
    simulated: bool
    consent: Consent
    consent_ms: int | None
    erased_ms: int | None
    created_ms: int


_SELECT = "SELECT * FROM members WHERE user_id = ?"


def get(db: sqlite_utils.Database, user_id: int) -> Member | None:
    """Return the member, or None if never seen."""
    row = sql.one(db, _SELECT, (user_id,))
    return None if row is None else _member(row)


def ensure(
    db: sqlite_utils.Database, user_id: int, display_name: str, source: str, simulated: bool = False
) -> Member:
    """Return the member, inserted or with the display name brought up to date.

    The source is the one of the first sight: it says where this person's rows come from.
    """
    sql.insert(
        db,
        "members",
        {
            "user_id": user_id,
            "display_name": display_name,
            "source": source,
            "simulated": int(simulated),
            "created_ms": now_ms(),
        },
        on_conflict="""DO UPDATE SET
            display_name = iif(excluded.display_name = '', display_name, excluded.display_name),
            source = iif(source = 'unknown', excluded.source, source)
            WHERE excluded.display_name NOT IN ('', display_name)
                  OR (source = 'unknown' AND excluded.source <> 'unknown')""",
    )
    return _member(sql.many(db, _SELECT, (user_id,))[0])


def set_consent(db: sqlite_utils.Database, user_id: int, consent: Consent, actor: str) -> bool:
    """Record the member's decision about training; return whether it changed anything.

    Someone who decides before ever writing gets a placeholder of source "unknown".
    """
    member = get(db, user_id) or ensure(db, user_id, "", UNKNOWN)
    if member.consent == consent:
        return False
    sql.change(
        db, "UPDATE members SET consent = ?, consent_ms = ? WHERE user_id = ?", (consent, now_ms(), user_id)
    )
    audit.record(db, actor, "consent", {"user_id": user_id, "from": member.consent, "to": consent})
    return True


def _member(row: sql.Row) -> Member:
    return Member(**{**row, "simulated": bool(row["simulated"])})
