"""Ratings over time and by adapter, as counts: never who gave them."""

import math
from dataclasses import dataclass

import sqlite_utils

from storage import sql
from storage.clock import DAY_MS, now_ms

# The normal quantile of a two-sided 95 % interval.
_Z = 1.959964


@dataclass(frozen=True, slots=True)
class Day:
    """One day's ratings in UTC; `number` is the day since the epoch."""

    number: int
    liked: int
    disliked: int


@dataclass(frozen=True, slots=True)
class AdapterShare:
    """How an adapter's replies were rated; None is the base model."""

    adapter_id: str | None
    liked: int
    disliked: int

    @property
    def share(self) -> float:
        """The share of its ratings that like the reply, 0 to 1."""
        return self.liked / (self.liked + self.disliked)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the share, after Wilson (1927): sound for few ratings too."""
        n, share = self.liked + self.disliked, self.share
        middle = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
        half = _Z / (1 + _Z**2 / n) * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
        # Rounding must not put the share outside where all ratings agree.
        return max(min(middle - half, share), 0.0), min(max(middle + half, share), 1.0)


def by_day(db: sqlite_utils.Database, scope: str, days: int) -> list[Day]:
    """Return the last `days` days up to today, the oldest first, those without a rating too."""
    today = now_ms() // DAY_MS
    rows = sql.many(
        db,
        """SELECT updated_ms / ? AS number, sum(value > 0) AS liked, sum(value < 0) AS disliked FROM ratings
           WHERE scope = ? AND retracted = 0 AND kind = 'thumb' AND updated_ms >= ? GROUP BY 1""",
        (DAY_MS, scope, (today - days + 1) * DAY_MS),
    )
    counted = {row["number"]: Day(**row) for row in rows}
    return [counted.get(number, Day(number, 0, 0)) for number in range(today - days + 1, today + 1)]


def by_adapter(db: sqlite_utils.Database, scope: str, days: int, limit: int) -> list[AdapterShare]:
    """Return how the adapters rated in the last `days` days did, the latest rated first."""
    rows = sql.many(
        db,
        """SELECT replies.adapter_id, sum(ratings.value > 0) AS liked, sum(ratings.value < 0) AS disliked
           FROM ratings JOIN replies ON replies.id = ratings.reply_id
           WHERE ratings.scope = ? AND ratings.retracted = 0 AND ratings.kind = 'thumb'
                 AND ratings.value <> 0 AND ratings.updated_ms >= ?
           GROUP BY replies.adapter_id ORDER BY max(ratings.updated_ms) DESC LIMIT ?""",
        (scope, now_ms() - days * DAY_MS, limit),
    )
    return [AdapterShare(**row) for row in rows]
