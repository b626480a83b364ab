"""Two candidates for one question, side by side in a chat, and which of them members like better.

Both candidates are replies and versions of each other; a vote is a rating of kind "vote" on each: 1 for the
one preferred, -1 for the other, 0 on both for a tie. So votes are exported, erased and consented to like
every rating. Pairs that decide a training run are `duels`.
"""

from dataclasses import dataclass
from typing import Literal

import sqlite_utils

from storage.chat import replies, reply_versions
from storage.db import sql
from storage.db.clock import now_ms
from storage.errors import UnknownRowError
from storage.feedback import ratings

Choice = Literal[-1, 0, 1]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A pair in the order shown; `usual_id` is the candidate that would have answered alone."""

    first_id: str
    second_id: str
    usual_id: str
    scope: str
    created_ms: int


@dataclass(frozen=True, slots=True)
class Tally:
    """How many members preferred the first, the second, or neither."""

    first: int
    second: int
    ties: int

    @property
    def votes(self) -> int:
        """All votes, ties included."""
        return self.first + self.second + self.ties


def add(db: sqlite_utils.Database, *, first_id: str, second_id: str, usual_id: str) -> Comparison:
    """Record that two replies stand side by side; the usual one counts as shown until a vote says otherwise.

    Safe to repeat. Raises UnknownRowError.
    """
    first = replies.get(db, first_id)
    if first is None or replies.get(db, second_id) is None or usual_id not in (first_id, second_id):
        raise UnknownRowError(
            "There are no replies {first} and {second} to compare.", first=first_id, second=second_id
        )
    reply_versions.add(db, second_id, beside=first_id)
    reply_versions.show(db, usual_id)
    values = {
        "first_id": first_id,
        "second_id": second_id,
        "usual_id": usual_id,
        "scope": first.scope,
        "created_ms": now_ms(),
    }
    sql.insert(db, "comparisons", values, on_conflict="DO NOTHING")
    return _expect(db, first_id)


def of(db: sqlite_utils.Database, reply_id: str) -> Comparison | None:
    """Return the comparison that a reply is a candidate of, or None."""
    row = sql.one(db, "SELECT * FROM comparisons WHERE first_id = ?1 OR second_id = ?1", (reply_id,))
    return None if row is None else Comparison(**row)


def drop(db: sqlite_utils.Database, reply_id: str) -> None:
    """Forget a pair that never stood in its channel whole."""
    sql.change(db, "DELETE FROM comparisons WHERE first_id = ?1 OR second_id = ?1", (reply_id,))


def vote(
    db: sqlite_utils.Database,
    *,
    first_id: str,
    user_id: int,
    choice: Choice,
    permission_reference: str = "",
) -> bool:
    """Store a member's choice (1 first, -1 second, 0 tie) in place of an earlier one; say if it changed.

    The candidate that more members prefer is the one that later turns go on from. Raises UnknownRowError.
    """
    pair = _expect(db, first_id)
    changed = False
    for reply_id, value in ((pair.first_id, choice), (pair.second_id, -choice)):
        changed |= ratings.rate(
            db,
            reply_id=reply_id,
            user_id=user_id,
            kind="vote",
            means="button",
            value=value,
            permission_reference=permission_reference,
        )
    _show_leader(db, pair)
    return changed


def retract(db: sqlite_utils.Database, *, first_id: str, user_id: int) -> bool:
    """Take a member's vote back; return whether one stood. Raises UnknownRowError."""
    pair = _expect(db, first_id)
    taken = [
        ratings.retract(db, reply_id=reply_id, user_id=user_id, kind="vote")
        for reply_id in (pair.first_id, pair.second_id)
    ]
    _show_leader(db, pair)
    return any(taken)


def choice_of(db: sqlite_utils.Database, first_id: str, user_id: int) -> int | None:
    """Return what a member chose (1 first, -1 second, 0 tie), or None."""
    value: int | None = sql.value(
        db,
        "SELECT value FROM ratings WHERE reply_id = ? AND user_id = ? AND kind = 'vote' AND retracted = 0",
        (first_id, user_id),
    )
    return value


def was_told(db: sqlite_utils.Database, first_id: str, user_id: int) -> bool:
    """Whether a member ever voted on a pair, and so was told which candidate is whose."""
    found = sql.value(
        db, "SELECT 1 FROM ratings WHERE reply_id = ? AND user_id = ? AND kind = 'vote'", (first_id, user_id)
    )
    return found is not None


def is_closed(db: sqlite_utils.Database, first_id: str) -> bool:
    """Whether somebody whose words led to a pair opted out: votes on it would serve nothing."""
    found = sql.value(
        db,
        """SELECT 1 FROM reply_context JOIN messages ON messages.id = reply_context.message_id
           JOIN members ON members.user_id = messages.author_id
           WHERE reply_context.reply_id = ? AND members.consent = 'out'""",
        (first_id,),
    )
    return found is not None


def tally(db: sqlite_utils.Database, first_id: str) -> Tally:
    """Count the votes on one pair."""
    rows = sql.many(
        db,
        """SELECT value, count(*) AS votes FROM ratings
           WHERE reply_id = ? AND kind = 'vote' AND retracted = 0 GROUP BY value""",
        (first_id,),
    )
    found = {row["value"]: int(row["votes"]) for row in rows}
    return Tally(found.get(1, 0), found.get(-1, 0), found.get(0, 0))


def totals(db: sqlite_utils.Database, scope: str) -> tuple[int, int]:
    """Return how many pairs a scope has had, and how many votes on them stand."""
    row = sql.one(
        db,
        """SELECT count(DISTINCT first_id) AS pairs, count(ratings.id) AS votes
           FROM comparisons LEFT JOIN ratings
                ON ratings.reply_id = first_id AND ratings.kind = 'vote' AND ratings.retracted = 0
           WHERE comparisons.scope = ?""",
        (scope,),
    )
    return (0, 0) if row is None else (int(row["pairs"]), int(row["votes"]))


def _show_leader(db: sqlite_utils.Database, pair: Comparison) -> None:
    """Let later turns go on from the candidate that more members prefer, at a draw from the usual one."""
    counted = tally(db, pair.first_id)
    leader = pair.usual_id
    if counted.first != counted.second:
        leader = pair.first_id if counted.first > counted.second else pair.second_id
    reply_versions.show(db, leader)


def _expect(db: sqlite_utils.Database, first_id: str) -> Comparison:
    row = sql.one(db, "SELECT * FROM comparisons WHERE first_id = ?", (first_id,))
    if row is None:
        raise UnknownRowError("There is no comparison {comparison}.", comparison=first_id)
    return Comparison(**row)
