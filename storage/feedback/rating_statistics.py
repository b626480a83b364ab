"""Ratings and votes over time and by adapter, as counts: never who gave them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, islice

import sqlite_utils

from storage.db import sql
from storage.db.clock import DAY_MS, now_ms
from storage.feedback.rating_days import COUNTED, counted_since

# The normal quantile of a two-sided 95 % interval.
Z_95 = 1.959964


@dataclass(frozen=True, slots=True)
class Day:
    """One day's ratings in UTC; `number` is the day since the epoch."""

    number: int
    liked: int
    disliked: int


@dataclass(frozen=True, slots=True)
class Votes:
    """How an adapter's replies did beside another adapter's; ties count for neither."""

    won: int
    lost: int

    @property
    def count(self) -> int:
        """Votes for it and against it."""
        return self.won + self.lost

    @property
    def share(self) -> float:
        """The share of votes that it won, 0 to 1."""
        return self.won / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the share."""
        return wilson_interval(self.won, self.count)


class LikeCounts:
    """What follows from counts of likes and dislikes, of which there is at least one."""

    __slots__ = ()
    liked: int
    disliked: int

    @property
    def ratings(self) -> int:
        """How many ratings there are."""
        return self.liked + self.disliked

    @property
    def share(self) -> float:
        """The share of ratings that like the reply, 0 to 1."""
        return self.liked / self.ratings

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the share (Wilson, 1927)."""
        return wilson_interval(self.liked, self.ratings)


@dataclass(frozen=True, slots=True)
class AdapterShare(LikeCounts):
    """How an adapter's replies were rated; None is the base model."""

    adapter_id: str | None
    liked: int
    disliked: int
    votes: Votes | None = None


def by_day(db: sqlite_utils.Database, scope: str, days: int) -> list[Day]:
    """Return the last `days` days up to today, the oldest first, those without a rating too."""
    today = now_ms() // DAY_MS
    rows = sql.many(
        db,
        """SELECT day AS number, sum(liked) AS liked, sum(disliked) AS disliked FROM rating_days
           WHERE scope = ? AND day > ? GROUP BY 1""",
        (scope, today - days),
    )
    counted = {row["number"]: Day(**row) for row in rows}
    return [counted.get(number, Day(number, 0, 0)) for number in range(today - days + 1, today + 1)]


def by_adapter(db: sqlite_utils.Database, scope: str, days: int, limit: int) -> list[AdapterShare]:
    """Return how the adapters rated in the last `days` days did, the latest rated first."""
    since_ms = now_ms() - days * DAY_MS
    rows = sql.many(
        db,
        f"""SELECT nullif(adapter_id, '') AS adapter_id, sum(liked) AS liked, sum(disliked) AS disliked,
                   max(day) AS last_day
            FROM {COUNTED} GROUP BY 1""",
        counted_since(scope, since_ms),
    )
    votes = _votes(db, scope, since_ms)
    return [
        AdapterShare(row["adapter_id"], row["liked"], row["disliked"], votes.get(row["adapter_id"]))
        for row in islice(_latest_first(db, scope, since_ms, rows), limit)
    ]


def _latest_first(
    db: sqlite_utils.Database, scope: str, since_ms: int, rows: list[sql.Row]
) -> Iterator[sql.Row]:
    """Put adapters in the order of their last ratings; those of the same day by that day's ratings."""
    for day, group in groupby(sorted(rows, key=_last_day, reverse=True), key=_last_day):
        same_day = list(group)
        if len(same_day) > 1:
            times = _last_times(db, scope, max(day * DAY_MS, since_ms), (day + 1) * DAY_MS)
            same_day.sort(key=lambda row: times[row["adapter_id"]], reverse=True)
        yield from same_day


def _last_day(row: sql.Row) -> int:
    return int(row["last_day"])


def _last_times(db: sqlite_utils.Database, scope: str, since_ms: int, until_ms: int) -> dict[str | None, int]:
    """Return when each adapter was last rated in a time, in milliseconds."""
    rows = sql.many(
        db,
        """SELECT replies.adapter_id, max(ratings.updated_ms) AS at_ms
           FROM ratings JOIN replies INDEXED BY replies_sources ON replies.id = ratings.reply_id
           WHERE ratings.scope = ? AND ratings.retracted = 0 AND ratings.kind = 'thumb'
                 AND ratings.value <> 0 AND ratings.updated_ms >= ? AND ratings.updated_ms < ?
           GROUP BY 1""",
        (scope, since_ms, until_ms),
    )
    return {row["adapter_id"]: row["at_ms"] for row in rows}


def _votes(db: sqlite_utils.Database, scope: str, since_ms: int) -> dict[str | None, Votes]:
    """Count votes between two adapters, in the chat and on challengers.

    Of a challenger that is still voted on nothing is told: its voters must not know who leads.
    """
    rows = sql.many(
        db,
        """SELECT adapter_id, sum(value > 0) AS won, sum(value < 0) AS lost FROM (
               SELECT mine.adapter_id, ratings.value
               FROM ratings JOIN replies AS mine ON mine.id = ratings.reply_id
               JOIN comparisons ON first_id = ratings.reply_id OR second_id = ratings.reply_id
               JOIN replies AS other ON other.id = iif(first_id = mine.id, second_id, first_id)
               WHERE ratings.scope = :scope AND ratings.retracted = 0 AND ratings.kind = 'vote'
                     AND ratings.updated_ms >= :since AND other.adapter_id IS NOT mine.adapter_id
               UNION ALL
               SELECT iif(side, challenger_id, duels.champion_id),
                      iif(first_is_challenger, choice, -choice) * iif(side, 1, -1)
               FROM duel_votes JOIN duels ON duels.id = duel_votes.duel_id JOIN runs ON runs.id = duels.run_id
               JOIN (SELECT 1 AS side UNION ALL SELECT 0)
               WHERE duels.scope = :scope AND runs.outcome <> 'votes' AND duel_votes.created_ms >= :since
           ) WHERE value <> 0 GROUP BY adapter_id""",
        {"scope": scope, "since": since_ms},
    )
    return {row["adapter_id"]: Votes(row["won"], row["lost"]) for row in rows}


def wilson_interval(hits: float, n: float, z: float = Z_95) -> tuple[float, float]:
    """Return the interval of a share, after Wilson (1927): sound for small counts too, 95 % by default."""
    share = hits / n
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    # Rounding must not put the share outside where all agree.
    return max(min(middle - half, share), 0.0), min(max(middle + half, share), 1.0)
