"""Tastings: the operator's own prompts, answered in a channel one by one, for members to rate.

Prompt and reply are the operator's and the bot's, so that a rated one trains without Discord's permission for
members' messages (`eligibility` says what else it takes). The prompts are asked in the name of a member that
is nobody, which is how everything around replies goes on knowing whose words they are.
"""

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import sqlite_utils

from storage.admin import audit
from storage.db import sql
from storage.db.clock import now_ms
from storage.errors import TastingError, UnknownRowError
from storage.feedback import prompt_bank
from storage.feedback.prompt_bank import BankPrompt
from storage.sentences import Sentence

State = Literal["running", "done", "stopped"]

MIN_EVERY_S = 5.0
MAX_EVERY_S = 24 * 3600.0
DEFAULT_EVERY_S = 300.0
# So many replies that nobody rated wait for a rating before the next prompt is asked.
MOST_UNRATED = 5

OFFER = Sentence(
    "Or start a tasting: I answer prompts of your own in a channel (`/tasting`, `strop tasting`), so that "
    "nobody's messages are trained on and only those who rate have to opt in."
)


@dataclass(frozen=True, slots=True)
class Tasting:
    """One tasting in one channel. `wanted` prompts, one every `every_s`; `again` also asks known ones."""

    id: str
    guild_id: int
    channel_id: int
    scope: str
    wanted: int
    every_s: float
    pairs: bool
    again: bool
    state: State
    why: str
    requested_by: str
    next_ms: int
    created_ms: int
    ended_ms: int | None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a tasting is: prompts asked and answered, answers with a rating, ratings and who gave them."""

    asked: int
    answered: int
    rated: int
    ratings: int
    raters: int


def start(
    db: sqlite_utils.Database,
    *,
    guild_id: int,
    channel_id: int,
    scope: str,
    base_hash: str,
    champion_id: str | None,
    wanted: int | None,
    every_s: float,
    pairs: bool,
    again: bool,
    requested_by: str,
) -> Tasting:
    """Begin a tasting; without `wanted` all prompts that are new to the present champion are asked once.

    Raises TastingError where one is on in this channel or there is nothing to ask.
    """
    if running_in(db, channel_id) is not None:
        raise TastingError("A tasting is on in this channel already: stop it first.")
    bank = prompt_bank.askable(db)
    if not bank:
        raise TastingError("There are no prompts yet: add some first.")
    known = _answered_keys(db, scope, base_hash, champion_id)
    left = len(bank) if again else sum(prompt.key not in known for prompt in bank)
    if not left:
        raise TastingError(
            "Whoever answers now has answered every prompt already: add new ones, or ask them again."
        )
    tasting_id = f"t{secrets.token_hex(6)}"
    values = {
        "id": tasting_id,
        "guild_id": guild_id,
        "channel_id": channel_id,
        "scope": scope,
        "wanted": min(wanted or left, prompt_bank.MAX_PROMPTS) if again else min(wanted or left, left),
        "every_s": min(max(every_s, MIN_EVERY_S), MAX_EVERY_S),
        "pairs": int(pairs),
        "again": int(again),
        "state": "running",
        "requested_by": requested_by,
        "next_ms": now_ms(),
        "created_ms": now_ms(),
    }
    sql.insert(db, "tastings", values)
    audit.record(db, requested_by, "tasting.start", {"tasting_id": tasting_id, "channel_id": channel_id})
    return expect(db, tasting_id)


def end(db: sqlite_utils.Database, tasting_id: str, state: State, why: str = "", actor: str = "") -> bool:
    """End a running tasting as "done" or "stopped"; False if it was over. `why` is one sentence."""
    changed = sql.change(
        db,
        "UPDATE tastings SET state = ?, why = ?, ended_ms = ? WHERE id = ? AND state = 'running'",
        (state, why, now_ms(), tasting_id),
    )
    if changed and actor:
        audit.record(db, actor, "tasting.stop", {"tasting_id": tasting_id})
    return bool(changed)


def put_off(db: sqlite_utils.Database, tasting_id: str, wait_s: float) -> None:
    """Ask the next prompt no earlier than so many seconds from now."""
    until_ms = now_ms() + round(wait_s * 1000)
    sql.change(db, "UPDATE tastings SET next_ms = max(next_ms, ?) WHERE id = ?", (until_ms, tasting_id))


def due(db: sqlite_utils.Database) -> list[Tasting]:
    """Return the running tastings whose next prompt may be asked now, the longest waiting first."""
    rows = sql.many(
        db, "SELECT * FROM tastings WHERE state = 'running' AND next_ms <= ? ORDER BY next_ms", (now_ms(),)
    )
    return [_tasting(row) for row in rows]


def take_turn(
    db: sqlite_utils.Database, tasting_id: str, discord_id: int, base_hash: str, champion_id: str | None
) -> BankPrompt | None:
    """Choose the next prompt and note that it is asked as the message `discord_id`; None when all is asked.

    What this tasting asked least often comes first, then what was asked least often anywhere. Written before
    the prompt is asked, so that a restart never asks it twice.
    """
    tasting = expect(db, tasting_id)
    if tasting.state != "running" or progress(db, tasting_id).asked >= tasting.wanted:
        return None
    known = frozenset() if tasting.again else _answered_keys(db, tasting.scope, base_hash, champion_id)
    here = _asked_here(db, tasting_id)
    left = [
        prompt
        for prompt in prompt_bank.askable(db)
        if tasting.again or (prompt.key not in known and prompt.key not in here)
    ]
    if not left:
        return None
    chosen = min(left, key=lambda prompt: (here.get(prompt.key, 0), prompt.asked, prompt.id))
    turn = {"discord_id": discord_id, "tasting_id": tasting_id, "key": chosen.key, "created_ms": now_ms()}
    sql.insert(db, "tasting_turns", turn)
    put_off(db, tasting_id, tasting.every_s)
    return chosen


def withdraw_turn(db: sqlite_utils.Database, discord_id: int) -> None:
    """Take back a turn from which no answer came, so that its prompt counts as not asked."""
    sql.change(db, "DELETE FROM tasting_turns WHERE discord_id = ?", (discord_id,))


def withdraw_unanswered(
    db: sqlite_utils.Database, shard_count: int = 1, shard_ids: Sequence[int] = (0,)
) -> int:
    """Take back the turns that an earlier process left without an answer; return how many there were.

    Only on servers of these shards: of others another process is asking.
    """
    return sql.change(
        db,
        f"""DELETE FROM tasting_turns
            WHERE tasting_id IN (SELECT id FROM tastings WHERE state = 'running'
                                 AND (guild_id >> 22) % ? IN (SELECT value FROM json_each(?)))
                  AND NOT EXISTS (SELECT 1 FROM {_REPLIES_OF_TURN}
                                  WHERE messages.discord_id = tasting_turns.discord_id
                                        AND replies.status IN ('complete', 'stopped'))""",
        (shard_count, json.dumps(list(shard_ids))),
    )


def waits_for_ratings(db: sqlite_utils.Database, tasting_id: str) -> bool:
    """Whether the last few answers of a tasting all wait for their first rating."""
    rows = sql.many(
        db,
        f"""SELECT EXISTS (SELECT 1 FROM {_REPLIES_OF_TURN} JOIN ratings
                   ON ratings.reply_id = replies.id AND ratings.retracted = 0
                   WHERE messages.discord_id = tasting_turns.discord_id) AS rated
            FROM tasting_turns WHERE tasting_id = ? ORDER BY created_ms DESC, discord_id DESC LIMIT ?""",
        (tasting_id, MOST_UNRATED),
    )
    return len(rows) == MOST_UNRATED and not any(row["rated"] for row in rows)


def progress(db: sqlite_utils.Database, tasting_id: str) -> Progress:
    """Return how far a tasting is; two candidates side by side count as one answer."""
    row = sql.one(
        db,
        f"""SELECT (SELECT count(*) FROM tasting_turns WHERE tasting_id = :id) AS asked,
                   count(DISTINCT tasting_turns.discord_id) FILTER (WHERE replies.status = 'complete')
                       AS answered,
                   count(DISTINCT tasting_turns.discord_id) FILTER (WHERE ratings.id IS NOT NULL) AS rated,
                   count(DISTINCT tasting_turns.discord_id || ':' || ratings.user_id || ':' || ratings.kind)
                       AS ratings,
                   count(DISTINCT ratings.user_id) AS raters
            FROM tasting_turns
            {_AND_REPLIES}
            LEFT JOIN ratings ON ratings.reply_id = replies.id AND ratings.retracted = 0
            WHERE tasting_turns.tasting_id = :id""",
        {"id": tasting_id},
    )
    return Progress(**row) if row else Progress(0, 0, 0, 0, 0)


def expect(db: sqlite_utils.Database, tasting_id: str) -> Tasting:
    """Return the tasting. Raises UnknownRowError."""
    row = sql.one(db, "SELECT * FROM tastings WHERE id = ?", (tasting_id,))
    if row is None:
        raise UnknownRowError("There is no tasting {tasting}.", tasting=tasting_id)
    return _tasting(row)


def running_in(db: sqlite_utils.Database, channel_id: int) -> Tasting | None:
    """Return the tasting that is on in a channel, or None."""
    row = sql.one(db, "SELECT * FROM tastings WHERE channel_id = ? AND state = 'running'", (channel_id,))
    return None if row is None else _tasting(row)


def latest(db: sqlite_utils.Database, guild_id: int | None = None, limit: int = 10) -> list[Tasting]:
    """Return tastings (of one server), those that run first, then the newest first."""
    rows = sql.many(
        db,
        """SELECT * FROM tastings WHERE :guild IS NULL OR guild_id = :guild
           ORDER BY state <> 'running', created_ms DESC, rowid DESC LIMIT :limit""",
        {"guild": guild_id, "limit": limit},
    )
    return [_tasting(row) for row in rows]


_REPLIES_OF_TURN = "messages JOIN replies ON replies.prompt_message_id = messages.id"
_AND_REPLIES = """JOIN messages ON messages.discord_id = tasting_turns.discord_id
            JOIN replies ON replies.prompt_message_id = messages.id"""


def _answered_keys(
    db: sqlite_utils.Database, scope: str, base_hash: str, champion_id: str | None
) -> frozenset[str]:
    """Return the keys of the prompts that the present champion of a scope has answered already."""
    rows = sql.many(
        db,
        f"""SELECT DISTINCT tasting_turns.key FROM tasting_turns
            {_AND_REPLIES}
            WHERE replies.scope = ? AND replies.base_hash = ? AND replies.adapter_id IS ?
                  AND replies.status = 'complete' AND messages.deleted_ms IS NULL""",
        (scope, base_hash, champion_id),
    )
    return frozenset(row["key"] for row in rows)


def _asked_here(db: sqlite_utils.Database, tasting_id: str) -> dict[str, int]:
    rows = sql.many(
        db,
        "SELECT key, count(*) AS times FROM tasting_turns WHERE tasting_id = ? GROUP BY key",
        (tasting_id,),
    )
    return {row["key"]: row["times"] for row in rows}


def _tasting(row: sql.Row) -> Tasting:
    return Tasting(**{**row, "pairs": bool(row["pairs"]), "again": bool(row["again"])})
