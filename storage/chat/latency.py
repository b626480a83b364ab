"""How long replies took lately, hour by hour: from the question to the first word, and to the last."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import sqlite_utils

from storage.db import sql
from storage.db.clock import now_ms

HOUR_MS = 60 * 60 * 1000
#: What a busy day's figures are taken from: the latest so many replies.
MOST_REPLIES = 20_000
#: The share of replies that are as quick as the slow ones, or quicker.
SLOW = 0.95


@dataclass(frozen=True, slots=True)
class Wait:
    """How long people waited for the first word of their replies: the median, and that of the slow ones."""

    replies: int
    median_ms: int
    slow_ms: int


@dataclass(frozen=True, slots=True)
class Speed:
    """The last hours: `hours` has the oldest first, None where nobody asked; `whole` is all of them.

    `queued_ms` is the median time until the model was asked, `done_ms` until the last word.
    """

    hours: tuple[Wait | None, ...]
    whole: Wait | None
    queued_ms: int | None
    done_ms: int | None


def measure_speed(db: sqlite_utils.Database, scope: str, hours: int) -> Speed:
    """Return how quick the finished replies of a scope were in the last `hours` hours up to now."""
    now = now_ms()
    rows = sql.many(
        db,
        """SELECT (? - created_ms) / ? AS ago, queue_ms, first_token_ms, duration_ms FROM replies
           WHERE created_ms > ? AND created_ms <= ? AND scope = ? AND status = 'complete'
                 AND first_token_ms IS NOT NULL
           ORDER BY created_ms DESC LIMIT ?""",
        (now, HOUR_MS, now - hours * HOUR_MS, now, scope, MOST_REPLIES),
    )
    found: defaultdict[int, list[int]] = defaultdict(list)
    for row in rows:
        found[row["ago"]].append(row["first_token_ms"])
    return Speed(
        hours=tuple(_wait(found.get(ago, ())) for ago in range(hours - 1, -1, -1)),
        whole=_wait([row["first_token_ms"] for row in rows]),
        queued_ms=_median([row["queue_ms"] for row in rows]),
        done_ms=_median([row["duration_ms"] for row in rows]),
    )


def _wait(first_ms: Sequence[int]) -> Wait | None:
    if not first_ms:
        return None
    ordered = sorted(first_ms)
    return Wait(len(ordered), _at(ordered, 0.5), _at(ordered, SLOW))


def _median(values: Sequence[int | None]) -> int | None:
    known = sorted(value for value in values if value is not None)
    return _at(known, 0.5) if known else None


def _at(ordered: Sequence[int], share: float) -> int:
    """Return the smallest value that `share` of all values don't exceed."""
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]
