"""The figures of the database that monitoring reads: counts, times, ids of adapters; nobody's words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import sqlite_utils

from storage.db import sql
from storage.feedback import like_rate
from storage.feedback.like_rate import Drift, LikeRate
from storage.learning import runs
from storage.learning.runs import Run

# The busiest scopes are told apart: a label's values must stay few.
MOST_SCOPES = 20
LATELY_DAYS = 28


@dataclass(frozen=True, slots=True)
class ScopeCounts:
    """Where one scope stands. An `adapter_id` of None is the base model, a time of None means never."""

    scope: str
    liked: int = 0
    disliked: int = 0
    corrections: int = 0
    changes: int = 0
    raters: int = 0
    last_rating_ms: int | None = None
    adapter_id: str | None = None
    champion_since_ms: int | None = None
    last_run: Run | None = None


@dataclass(frozen=True, slots=True)
class Counts:
    """Where a deployment stands.

    `runs` counts the ended ones by outcome, without those that votes still decide (`awaiting_votes`).
    """

    base_hash: str
    scopes: tuple[ScopeCounts, ...] = ()
    runs: Mapping[str, int] = field(default_factory=dict)
    awaiting_votes: int = 0
    queued: int = 0
    running: int = 0
    promotions: Mapping[str, int] = field(default_factory=dict)
    trials: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Trend:
    """The like rate of a scope in the last four weeks, and its last week beside those before."""

    lately: LikeRate | None
    drift: Drift | None


def read(db: sqlite_utils.Database, base_hash: str) -> Counts:
    """Return where the deployment stands; champions are those of the base that serves."""
    ended = _grouped(
        db,
        """SELECT outcome AS name, count(*) AS n FROM runs
           WHERE state IN ('finished', 'failed', 'cancelled') AND outcome IS NOT NULL GROUP BY 1""",
    )
    states = _grouped(db, "SELECT state AS name, count(*) AS n FROM runs GROUP BY 1")
    return Counts(
        base_hash,
        tuple(_scope(db, scope, base_hash) for scope in scopes(db)),
        {outcome: n for outcome, n in ended.items() if outcome != "votes"},
        ended.get("votes", 0),
        states.get("queued", 0),
        states.get("running", 0),
        _grouped(db, "SELECT kind AS name, count(*) AS n FROM promotions GROUP BY 1"),
        _grouped(db, "SELECT kind AS name, count(*) AS n FROM trials WHERE ended_ms IS NULL GROUP BY 1"),
    )


def scopes(db: sqlite_utils.Database) -> list[str]:
    """Return the scopes that were rated most, at most MOST_SCOPES of them."""
    rows = sql.many(
        db,
        """SELECT scope FROM scope_counts ORDER BY liked + disliked + corrections DESC, scope LIMIT ?""",
        (MOST_SCOPES,),
    )
    return [row["scope"] for row in rows]


def trends(db: sqlite_utils.Database) -> dict[str, Trend]:
    """Return the like rate of each scope over weeks: on a large database this takes a moment."""
    return {
        scope: Trend(like_rate.rate_of_last(db, scope, LATELY_DAYS), like_rate.drift(db, scope))
        for scope in scopes(db)
    }


def _scope(db: sqlite_utils.Database, scope: str, base_hash: str) -> ScopeCounts:
    counted = sql.one(
        db, "SELECT liked, disliked, corrections, changes FROM scope_counts WHERE scope = ?", (scope,)
    )
    champion = sql.one(
        db,
        """SELECT champions.adapter_id, promotions.created_ms AS champion_since_ms FROM champions
           JOIN promotions ON promotions.id = champions.promotion_id
           WHERE champions.scope = ? AND champions.base_hash = ?""",
        (scope, base_hash),
    )
    return ScopeCounts(
        scope,
        **(counted or {}),
        **(champion or {}),
        raters=sql.value(db, "SELECT count(*) FROM scope_raters WHERE scope = ?", (scope,)),
        last_rating_ms=sql.value(
            db, "SELECT max(updated_ms) FROM ratings WHERE scope = ? AND retracted = 0", (scope,)
        ),
        last_run=next(iter(runs.list_finished(db, scope, 1)), None),
    )


def _grouped(db: sqlite_utils.Database, question: str) -> dict[str, int]:
    return {row["name"]: row["n"] for row in sql.many(db, question)}
