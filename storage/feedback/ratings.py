"""Ratings: one per reply, member and kind. The last one counts; one taken back stays, as taken back."""

from dataclasses import dataclass
from typing import Any, Literal

import sqlite_utils

from storage.admin import blocks
from storage.chat import members
from storage.db import key_values, sql
from storage.db.clock import now_ms
from storage.errors import UnknownRowError

Kind = Literal["thumb", "correction", "vote"]
Means = Literal["reaction", "button", "modal", "page", "sample"]
_SET_ASIDE = "ratings.set_aside"


@dataclass(frozen=True, slots=True)
class Rating:
    """What one member thinks of one reply: `value` -1, 0 or 1; `text` is a correction's."""

    id: int
    reply_id: str
    user_id: int
    scope: str
    kind: Kind
    means: Means
    value: int
    emoji: str | None
    text: str | None
    retracted: bool
    source: str
    consent: members.Consent
    permission_reference: str | None
    created_ms: int
    updated_ms: int


@dataclass(frozen=True, slots=True)
class RatingCounts:
    """Ratings that stand: thumbs up, thumbs down, corrections, and how many members gave them."""

    liked: int
    disliked: int
    corrections: int
    raters: int


def rate(
    db: sqlite_utils.Database,
    *,
    reply_id: str,
    user_id: int,
    kind: Kind,
    means: Means,
    value: int,
    emoji: str | None = None,
    text: str | None = None,
    permission_reference: str = "",
) -> bool:
    """Store the member's rating in place of an earlier one; return whether anything changed.

    What a blocked member rates changes nothing. Raises UnknownRowError for a reply that is not there.
    """
    scope_source = sql.one(db, "SELECT scope, source FROM replies WHERE id = ?", (reply_id,))
    if scope_source is None:
        raise UnknownRowError("There is no reply {reply} to rate.", reply=reply_id)
    if blocks.blocks_rating(db, reply_id, user_id):
        return False
    rater = members.get(db, user_id) or members.ensure(db, user_id, "", scope_source["source"])
    now = now_ms()
    return bool(
        sql.change(
            db,
            """INSERT INTO ratings (reply_id, user_id, scope, kind, means, value, emoji, text, source,
                                    consent, permission_reference, created_ms, updated_ms)
               VALUES (:reply_id, :user_id, :scope, :kind, :means, :value, :emoji, :text, :source,
                       :consent, :permission_reference, :now, :now)
               ON CONFLICT (reply_id, user_id, kind) DO UPDATE SET
                   means = :means, value = :value, emoji = :emoji, text = :text, retracted = 0,
                   consent = :consent, permission_reference = :permission_reference, updated_ms = :now
               WHERE retracted = 1 OR value <> :value OR emoji IS NOT :emoji OR text IS NOT :text""",
            {
                "reply_id": reply_id,
                "user_id": user_id,
                "scope": scope_source["scope"],
                "kind": kind,
                "means": means,
                "value": value,
                "emoji": emoji,
                "text": text,
                "source": rater.source,
                "consent": rater.consent,
                "permission_reference": permission_reference or None,
                "now": now,
            },
        )
    )


def retract(
    db: sqlite_utils.Database, *, reply_id: str, user_id: int, kind: Kind, emoji: str | None = None
) -> bool:
    """Take a rating back; return whether one stood. With `emoji`, only if it is the one that stands:

    removing an old 👍 after a newer 👎 leaves the 👎. The words of a correction go with it.
    """
    return bool(
        sql.change(
            db,
            """UPDATE ratings SET retracted = 1, updated_ms = :now, text = NULL
               WHERE reply_id = :reply_id AND user_id = :user_id AND kind = :kind AND retracted = 0
                     AND (:emoji IS NULL OR emoji = :emoji)""",
            {"reply_id": reply_id, "user_id": user_id, "kind": kind, "emoji": emoji, "now": now_ms()},
        )
    )


def retract_all(db: sqlite_utils.Database, reply_id: str, emoji: str | None = None) -> int:
    """Take back every reaction on a reply (or every one of `emoji`); return how many stood."""
    return sql.change(
        db,
        """UPDATE ratings SET retracted = 1, updated_ms = :now
           WHERE reply_id = :reply_id AND kind = 'thumb' AND means = 'reaction' AND retracted = 0
                 AND (:emoji IS NULL OR emoji = :emoji)""",
        {"reply_id": reply_id, "emoji": emoji, "now": now_ms()},
    )


def list_for_reply(db: sqlite_utils.Database, reply_id: str) -> list[Rating]:
    """Return the ratings of a reply in the order they were first given, those taken back included."""
    rows = sql.many(db, "SELECT * FROM ratings WHERE reply_id = ? ORDER BY id", (reply_id,))
    return [_rating(row) for row in rows]


def counts(db: sqlite_utils.Database, scope: str) -> RatingCounts:
    """Return the ratings that stand in a scope."""
    (row,) = sql.many(
        db,
        """SELECT coalesce(sum(liked), 0) AS liked, coalesce(sum(disliked), 0) AS disliked,
                  coalesce(sum(corrections), 0) AS corrections,
                  (SELECT count(*) FROM scope_raters WHERE scope = :scope) AS raters
           FROM scope_counts WHERE scope = :scope""",
        {"scope": scope},
    )
    return RatingCounts(**row)


def changes(db: sqlite_utils.Database, scope: str) -> int:
    """Return how often a rating of this scope was given, changed or taken back; it only grows."""
    return int(sql.value(db, "SELECT changes FROM scope_counts WHERE scope = ?", (scope,)) or 0)


def put_aside(db: sqlite_utils.Database, scope: str, *, but: int) -> None:
    """Let the ratings so far, but for so many, start no run by themselves; one asked for uses them all."""
    key_values.put(db, f"{_SET_ASIDE}:{scope}", str(changes(db, scope) - but))


def set_aside(db: sqlite_utils.Database, scope: str) -> int:
    """Return up to which count of changes ratings start no run by themselves."""
    return int(key_values.get(db, f"{_SET_ASIDE}:{scope}") or 0)


def _rating(row: dict[str, Any]) -> Rating:
    return Rating(**{**row, "retracted": bool(row["retracted"])})
