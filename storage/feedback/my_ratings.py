"""What one member rated, for that member alone: every kind, the newest first, and taking any of them back."""

from dataclasses import dataclass
from typing import Any, Literal

import sqlite_utils

from storage.db import sql
from storage.feedback import duels, ratings, side_by_side

OwnKind = Literal["thumb", "correction", "vote", "duel"]


@dataclass(frozen=True, slots=True)
class OwnRating:
    """One rating that stands. `key` names it; `reply` is what was rated, `text` a correction's words.

    `by_reaction`: it is taken back by removing the reaction from the message, which the ids name (on a
    message that is gone there is none to remove). `final`: its voting is over, so that it stays.
    """

    key: str
    kind: OwnKind
    value: int
    emoji: str
    text: str
    reply: str
    guild_id: int | None
    channel_id: int | None
    discord_id: int | None
    by_reaction: bool
    final: bool
    updated_ms: int


@dataclass(frozen=True, slots=True)
class OwnCounts:
    """How much is stored on a member: messages, answers to them, ratings that stand, runs that used any."""

    messages: int
    replies: int
    thumbs: int
    corrections: int
    votes: int
    runs: int

    @property
    def ratings(self) -> int:
        """All ratings that stand."""
        return self.thumbs + self.corrections + self.votes


def page(db: sqlite_utils.Database, user_id: int, *, limit: int, offset: int = 0) -> list[OwnRating]:
    """Return some of a member's ratings, the newest first."""
    rows = sql.many(
        db, f"{_MINE} ORDER BY updated_ms DESC, key DESC LIMIT ?2 OFFSET ?3", (user_id, limit, offset)
    )
    return [
        OwnRating(**{**row, "by_reaction": bool(row["by_reaction"]), "final": bool(row["final"])})
        for row in rows
    ]


def counts(db: sqlite_utils.Database, user_id: int) -> OwnCounts:
    """Count what is stored on a member."""
    (row,) = sql.many(
        db,
        f"""SELECT
            (SELECT count(*) FROM messages WHERE author_id = ?1 AND deleted_ms IS NULL) AS messages,
            (SELECT count(*) FROM replies WHERE asker_id = ?1 AND prompt_json <> '[]') AS replies,
            (SELECT count(*) FROM ({_MINE}) WHERE kind = 'thumb') AS thumbs,
            (SELECT count(*) FROM ({_MINE}) WHERE kind = 'correction') AS corrections,
            (SELECT count(*) FROM ({_MINE}) WHERE kind IN ('vote', 'duel')) AS votes,
            (SELECT count(DISTINCT run_rows.run_id) FROM run_rows WHERE reply_id IN (
                SELECT reply_id FROM reply_context WHERE user_id = ?1
                UNION SELECT reply_id FROM ratings WHERE user_id = ?1)) AS runs""",
        (user_id,),
    )
    return OwnCounts(**row)


def take_back(db: sqlite_utils.Database, user_id: int, key: str) -> bool:
    """Take back one of the member's ratings by its key; return whether it stood and could be taken back."""
    if key.startswith("d:"):
        return duels.retract(db, duel_id=key[2:], user_id=user_id)
    row = sql.one(
        db,
        "SELECT reply_id, kind FROM ratings WHERE id = ? AND user_id = ? AND retracted = 0",
        (int(key) if key.isdecimal() else None, user_id),
    )
    if row is None:
        return False
    return _retract(db, user_id, row)


def find_pressed_reply(db: sqlite_utils.Database, user_id: int, key: str) -> str | None:
    """Return the shown reply whose buttons count this rating, or None where no button does."""
    found: str | None = sql.value(
        db,
        """SELECT coalesce(shown.reply_id, ratings.reply_id) FROM ratings
           LEFT JOIN reply_versions AS mine ON mine.reply_id = ratings.reply_id
           LEFT JOIN reply_versions AS shown ON shown.first_id = mine.first_id AND shown.shown = 1
           WHERE ratings.id = ? AND ratings.user_id = ? AND ratings.kind = 'thumb'""",
        (int(key) if key.isdecimal() else None, user_id),
    )
    return found


def _retract(db: sqlite_utils.Database, user_id: int, row: dict[str, Any]) -> bool:
    if row["kind"] == "vote":
        pair = side_by_side.of(db, row["reply_id"])
        return pair is not None and side_by_side.retract(db, first_id=pair.first_id, user_id=user_id)
    return ratings.retract(db, reply_id=row["reply_id"], user_id=user_id, kind=row["kind"])


# A vote between two answers is a rating on each of them: only the first one is shown. Blind votes that decide
# a run are kept apart.
_MINE = """
SELECT CAST(ratings.id AS TEXT) AS key, ratings.kind, ratings.value, coalesce(ratings.emoji, '') AS emoji,
       coalesce(ratings.text, '') AS text, messages.content AS reply, conversations.guild_id,
       reply_parts.channel_id, reply_parts.discord_id,
       ratings.kind = 'thumb' AND ratings.means = 'reaction' AND messages.deleted_ms IS NULL
           AND reply_parts.discord_id IS NOT NULL AS by_reaction,
       0 AS final, ratings.updated_ms
FROM ratings
JOIN replies ON replies.id = ratings.reply_id
JOIN messages ON messages.id = replies.message_id
JOIN conversations ON conversations.id = replies.conversation_id
LEFT JOIN reply_versions AS mine ON mine.reply_id = replies.id
LEFT JOIN reply_versions AS shown ON shown.first_id = mine.first_id AND shown.shown = 1
LEFT JOIN reply_parts
     ON reply_parts.reply_id = coalesce(shown.reply_id, replies.id) AND reply_parts.position = 0
WHERE ratings.user_id = ?1 AND ratings.retracted = 0
      AND (ratings.kind <> 'vote' OR ratings.reply_id IN (SELECT first_id FROM comparisons))
UNION ALL
SELECT 'd:' || duels.id, 'duel', duel_votes.choice, '', '', '', NULL, NULL, NULL, 0,
       duels.closed_ms IS NOT NULL, duel_votes.created_ms
FROM duel_votes JOIN duels ON duels.id = duel_votes.duel_id
WHERE duel_votes.user_id = ?1"""
