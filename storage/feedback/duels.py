"""Blind A/B votes between a challenger and the champion."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlite_utils

from storage.admin import blocks
from storage.chat import members
from storage.db import sql
from storage.db.clock import now_ms
from storage.errors import UnknownRowError

# Then a duel closes. Votes on one prompt say little of others: without a limit a challenger that is no better
# on prompts at large is promoted on twelve of them several times as often as it may be (EXPERIMENTS, 17).
MOST_VOTES = 8


@dataclass(frozen=True, slots=True)
class Duel:
    """Two answers to one prompt. Show the texts, never which is whose."""

    id: str
    run_id: str
    scope: str
    challenger_id: str
    champion_id: str | None
    reply_id: str | None
    prompt: list[dict[str, str]]
    first_text: str
    second_text: str
    first_is_challenger: bool
    created_ms: int
    closed_ms: int | None


@dataclass(frozen=True, slots=True)
class Home:
    """The server whose members' words a duel shows, and the channel that they were said in."""

    guild_id: int | None
    channel_id: int


@dataclass(frozen=True, slots=True)
class DuelTally:
    """Votes of a run: `outcomes` in the order they were cast, 1 for the challenger, -1 against, 0 a tie."""

    duels: int
    wins: int
    losses: int
    ties: int
    voters: int
    outcomes: tuple[int, ...]

    @property
    def votes(self) -> int:
        """All votes, ties included."""
        return len(self.outcomes)


@dataclass(frozen=True, slots=True)
class CastVote:
    """One vote that counts: 1 for the challenger, -1 against it, 0 a tie."""

    duel_id: str
    user_id: int
    outcome: int


def add(
    db: sqlite_utils.Database,
    *,
    duel_id: str,
    run_id: str,
    scope: str,
    challenger_id: str,
    champion_id: str | None,
    prompt: Sequence[Mapping[str, str]],
    first_text: str,
    second_text: str,
    first_is_challenger: bool,
    reply_id: str | None = None,
) -> None:
    """Store a duel; one with this id is left as it is. `reply_id` names the reply whose prompt it borrows."""
    values = {
        "id": duel_id,
        "run_id": run_id,
        "scope": scope,
        "challenger_id": challenger_id,
        "champion_id": champion_id,
        "reply_id": reply_id,
        "prompt_json": json.dumps([dict(message) for message in prompt]),
        "first_text": first_text,
        "second_text": second_text,
        "first_is_challenger": int(first_is_challenger),
        "created_ms": now_ms(),
    }
    sql.insert(db, "duels", values, on_conflict="DO NOTHING")


def get(db: sqlite_utils.Database, duel_id: str) -> Duel | None:
    """Return the duel, or None."""
    row = sql.one(db, "SELECT * FROM duels WHERE id = ?", (duel_id,))
    return None if row is None else _duel(row)


def open_for(db: sqlite_utils.Database, scope: str, limit: int = 50) -> list[Duel]:
    """Return the duels of a scope that still take votes, the oldest first."""
    rows = sql.many(
        db,
        "SELECT * FROM duels WHERE scope = ? AND closed_ms IS NULL ORDER BY created_ms, id LIMIT ?",
        (scope, limit),
    )
    return [_duel(row) for row in rows]


def count_open(db: sqlite_utils.Database, scope: str) -> int:
    """Return how many duels of a scope still take votes."""
    return int(sql.value(db, "SELECT count(*) FROM duels WHERE scope = ? AND closed_ms IS NULL", (scope,)))


def vote(
    db: sqlite_utils.Database,
    *,
    duel_id: str,
    user_id: int,
    choice: int,
    source: str,
    guild_id: int | None = None,
) -> bool:
    """Store a member's choice (1 first, -1 second, 0 tie) in place of an earlier one; say if it changed.

    The last of MOST_VOTES closes the duel. A closed one takes no votes, and a member who is blocked in
    `guild_id`, where the vote is cast, has none. Raises UnknownRowError for one that is not there.
    """
    duel = get(db, duel_id)
    if duel is None:
        raise UnknownRowError("There is no duel {duel}.", duel=duel_id)
    where = guild_of(duel.scope) if guild_id is None else guild_id
    if duel.closed_ms is not None or blocks.is_blocked(db, where, user_id):
        return False
    if members.get(db, user_id) is None:
        members.ensure(db, user_id, "", source)
    changed = bool(
        sql.change(
            db,
            """INSERT INTO duel_votes VALUES (?, ?, ?, ?, ?, ?)
               ON CONFLICT DO UPDATE SET choice = excluded.choice, guild_id = excluded.guild_id
               WHERE choice <> excluded.choice""",
            (duel_id, user_id, choice, source, now_ms(), where),
        )
    )
    if changed:
        sql.change(
            db,
            """UPDATE duels SET closed_ms = :now WHERE id = :duel
               AND (SELECT count(*) FROM duel_votes WHERE duel_id = :duel) >= :most""",
            {"now": now_ms(), "duel": duel_id, "most": MOST_VOTES},
        )
    return changed


def choice_of(db: sqlite_utils.Database, duel_id: str, user_id: int) -> int | None:
    """Return what a member chose (1 first, -1 second, 0 tie), or None."""
    chosen: int | None = sql.value(
        db, "SELECT choice FROM duel_votes WHERE duel_id = ? AND user_id = ?", (duel_id, user_id)
    )
    return chosen


def retract(db: sqlite_utils.Database, *, duel_id: str, user_id: int) -> bool:
    """Take a member's vote back while the duel is open; return whether one stood."""
    return bool(
        sql.change(
            db,
            """DELETE FROM duel_votes WHERE duel_id = :duel AND user_id = :user
               AND EXISTS (SELECT 1 FROM duels WHERE id = :duel AND closed_ms IS NULL)""",
            {"duel": duel_id, "user": user_id},
        )
    )


def tally(db: sqlite_utils.Database, run_id: str) -> DuelTally:
    """Count a run's votes."""
    cast = votes_of(db, run_id)
    outcomes = tuple(vote.outcome for vote in cast)
    return DuelTally(
        duels=int(sql.value(db, "SELECT count(*) FROM duels WHERE run_id = ?", (run_id,))),
        wins=outcomes.count(1),
        losses=outcomes.count(-1),
        ties=outcomes.count(0),
        voters=len({vote.user_id for vote in cast}),
        outcomes=outcomes,
    )


def votes_of(db: sqlite_utils.Database, run_id: str) -> list[CastVote]:
    """Return the votes of a run that count, in the order in which they were cast.

    What members say who opted out counts nothing, nor what was said after a block where the vote was cast.
    """
    rows = sql.many(
        db,
        """SELECT duels.id AS duel_id, duel_votes.user_id,
                  iif(first_is_challenger, choice, -choice) AS outcome
           FROM duels
           JOIN duel_votes ON duel_votes.duel_id = duels.id
           JOIN members ON members.user_id = duel_votes.user_id AND members.consent <> 'out'
           WHERE duels.run_id = ? AND NOT EXISTS (
               SELECT 1 FROM blocks WHERE blocks.user_id = duel_votes.user_id
               AND blocks.guild_id IN (0, duel_votes.guild_id)
               AND blocks.created_ms < duel_votes.created_ms)
           ORDER BY duel_votes.created_ms, duels.id, duel_votes.user_id""",
        (run_id,),
    )
    return [CastVote(**row) for row in rows]


def open_prompts(db: sqlite_utils.Database) -> dict[str, list[str]]:
    """Return the open duels that borrow a reply's prompt, by that reply."""
    found: dict[str, list[str]] = {}
    for row in sql.many(
        db, "SELECT id, reply_id FROM duels WHERE closed_ms IS NULL AND reply_id IS NOT NULL ORDER BY id"
    ):
        found.setdefault(row["reply_id"], []).append(row["id"])
    return found


def withdraw(db: sqlite_utils.Database, duel_ids: Sequence[str]) -> None:
    """Close duels whose words may not be shown any more, and forget their texts."""
    for duel_id in duel_ids:
        sql.change(
            db,
            """UPDATE duels SET prompt_json = '[]', first_text = '', second_text = '',
                      closed_ms = coalesce(closed_ms, ?) WHERE id = ?""",
            (now_ms(), duel_id),
        )


def close(db: sqlite_utils.Database, run_id: str) -> int:
    """End the voting of a run; return how many duels were open."""
    return sql.change(
        db, "UPDATE duels SET closed_ms = ? WHERE run_id = ? AND closed_ms IS NULL", (now_ms(), run_id)
    )


def home_of(db: sqlite_utils.Database, duel: Duel) -> Home | None:
    """Return where the prompt of a duel was said; None for one with nobody's words in it.

    Its words stay there: it is shown nowhere else, also where all servers train one model.
    """
    row = sql.one(
        db,
        """SELECT guild_id, coalesce(parent_channel_id, channel_id) AS channel_id
           FROM replies JOIN conversations ON conversations.id = replies.conversation_id
           WHERE replies.id = ?""",
        (duel.reply_id,),
    )
    return None if row is None else Home(**row)


def find_in_server(db: sqlite_utils.Database, duel_id: str, guild_id: int | None) -> Duel | None:
    """Return a duel where it may be seen in this server (None: in direct messages)."""
    duel = get(db, duel_id)
    if duel is None or guild_of(duel.scope) not in (None, guild_id):
        return None
    home = home_of(db, duel)
    return duel if home is None or home.guild_id == guild_id else None


def guild_of(scope: str) -> int | None:
    """Return the server that a scope is, or None."""
    kind, _, guild_id = scope.partition(":")
    return int(guild_id) if kind == "guild" and guild_id.isdecimal() else None


def _duel(row: dict[str, Any]) -> Duel:
    return Duel(
        prompt=json.loads(row.pop("prompt_json")),
        **{**row, "first_is_challenger": bool(row["first_is_challenger"])},
    )
