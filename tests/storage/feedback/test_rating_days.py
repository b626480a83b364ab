"""The counts of days and weeks that triggers keep say what the ratings say, whatever happens to those."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
import sqlite_utils

from storage.db import sql
from storage.db.clock import DAY_MS, now_ms
from storage.db.database import Database
from storage.feedback import like_rate, rating_statistics, ratings
from storage.imports import imports
from storage.imports.examples import Example, Turn
from storage.privacy import erasure
from tests.storage.conftest import SCOPE, Community

HOUR_MS = DAY_MS // 24
TABLES = ("rating_days", "rater_weeks")
Row = dict[str, Any]


class Life:
    """Everything that happens to ratings, at random."""

    def __init__(self, seed: int, db: sqlite_utils.Database, community: Community) -> None:
        self.draw, self.db = random.Random(seed), db
        self.now = now_ms()
        self.replies = [community.asks(db, user_id, "a question") for user_id in range(1, 13)]
        begun = imports.begin(
            db,
            scope=SCOPE,
            **dict.fromkeys(("name", "sha256", "format_name", "rights", "licence", "actor"), "x"),
        )
        turns = (Turn("user", "Which flour?"),)
        example = Example(turns, Turn("assistant", "Rye."), "line 1", liked=2, disliked=3)
        imports.store(db, begun, [example], permission_reference="")

    def step(self) -> None:
        self.draw.choices(
            (self.rate, self.retract, self.other_time, self.other_adapter, self.other_place, self.erase),
            (60, 6, 40, 6, 6, 1),
        )[0]()

    def rate(self) -> None:
        kind: ratings.Kind = self.draw.choice(("thumb", "thumb", "thumb", "vote", "correction"))
        value = self.draw.choice((-1, 0, 1, 1))
        reply_id, user_id = self.draw.choice(self.replies), self.draw.randint(20, 40)
        ratings.rate(self.db, reply_id=reply_id, user_id=user_id, kind=kind, means="button", value=value)

    def retract(self) -> None:
        ratings.retract_all(self.db, self.draw.choice(self.replies))
        self._change("UPDATE ratings SET retracted = 1 - retracted WHERE id % 7 = ?", self.draw.randrange(7))

    def other_time(self) -> None:
        # Half an hour off every edge of a window that ends now, on any side of midnight.
        at = self.now - self.draw.randrange(60 * 24) * HOUR_MS - HOUR_MS // 2
        self._change("UPDATE ratings SET updated_ms = ? WHERE id % 31 = ?", at, self.draw.randrange(31))

    def other_adapter(self) -> None:
        adapter_id = self.draw.choice((None, "a1", "a2", "a3"))
        self._change(
            "UPDATE replies SET adapter_id = ? WHERE id = ?", adapter_id, self.draw.choice(self.replies)
        )

    def other_place(self) -> None:
        self._change(
            "UPDATE conversations SET channel_id = ?, public = ? WHERE id % 5 = ?",
            self.draw.randint(1, 4),
            self.draw.randint(0, 1),
            self.draw.randrange(5),
        )

    def erase(self) -> None:
        erasure.erase_member(self.db, self.draw.randint(20, 40), "1")

    def _change(self, statement: str, *parameters: object) -> None:
        sql.change(self.db, statement, parameters)


def thumbs(db: sqlite_utils.Database) -> list[Row]:
    return sql.many(
        db,
        """SELECT ratings.*, adapter_id, channel_id, public, reply_id LIKE 'import-%' AS imported
           FROM ratings JOIN replies ON replies.id = reply_id
           JOIN conversations ON conversations.id = conversation_id
           WHERE ratings.scope = ? AND kind = 'thumb' AND retracted = 0 AND value <> 0""",
        (SCOPE,),
    )


def grouped(rows: list[Row], key: str) -> dict[Any, tuple[int, int]]:
    counts: defaultdict[Any, Counter[int]] = defaultdict(Counter)
    for row in rows:
        counts[row[key]][row["value"]] += 1
    return {name: (count[1], count[-1]) for name, count in counts.items()}


def check(db: sqlite_utils.Database) -> None:
    """Compare every statistic with the same counted from the rows in Python."""
    now, rows = now_ms(), thumbs(db)
    for row in rows:
        row["day"], row["week"] = row["updated_ms"] // DAY_MS, (row["updated_ms"] // DAY_MS - 4) // 7
    days = rating_statistics.by_day(db, SCOPE, 30)
    assert {day.number: (day.liked, day.disliked) for day in days if day.liked or day.disliked} == {
        day: counts for day, counts in grouped(rows, "day").items() if day > now // DAY_MS - 30
    }
    late = [row for row in rows if row["updated_ms"] >= now - 28 * DAY_MS]
    shares = rating_statistics.by_adapter(db, SCOPE, 28, 3)
    assert {share.adapter_id: (share.liked, share.disliked) for share in shares}.items() <= grouped(
        late, "adapter_id"
    ).items()
    last = {row["adapter_id"]: row["updated_ms"] for row in sorted(late, key=lambda row: row["updated_ms"])}
    times = [last[share.adapter_id] for share in shares]
    assert times == sorted(last.values(), reverse=True)[:3]
    here = [row for row in late if not row["imported"]]
    channels = grouped([row for row in here if row["public"]], "channel_id")
    found = like_rate.by_channel(db, SCOPE, 28, 9)
    assert {channel: (rate.liked, rate.disliked) for channel, rate in found} == channels
    assert [rate.ratings for _, rate in found] == sorted((sum(c) for c in channels.values()), reverse=True)
    rate = like_rate.rate_of_last(db, SCOPE, 28)
    assert (rate.ratings if rate else 0) == len(here)
    raters = defaultdict(set)
    for row in rows:
        if not row["imported"]:
            raters[row["week"]].add(row["user_id"])
    weekly = grouped([row for row in rows if not row["imported"]], "week")
    for week in like_rate.by_week(db, SCOPE, 6):
        number = (week.first_day - 4) // 7
        assert week.raters == len(raters[number])
        counts = (week.rate.liked, week.rate.disliked) if week.rate else (0, 0)
        assert counts == weekly.get(number, (0, 0))


def kept(database: Database) -> dict[str, list[Row]]:
    def work(db: sqlite_utils.Database) -> dict[str, list[Row]]:
        rows = {
            table: sql.many(db, f"SELECT * FROM {table} ORDER BY 1, 2, 3, 4, 5, 6") for table in TABLES[:1]
        }
        rows[TABLES[1]] = sql.many(db, "SELECT * FROM rater_weeks ORDER BY 1, 2, 3")
        return rows | {TABLES[0]: [row for row in rows[TABLES[0]] if row["liked"] or row["disliked"]]}

    return database.read(work)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_statistics_are_those_of_the_ratings_after_anything_that_happens_to_them(
    seed: int, database: Database, community: Community
) -> None:
    def live(db: sqlite_utils.Database) -> None:
        life = Life(seed, db, community)
        for _ in range(12):
            for _ in range(25):
                life.step()
            check(db)

    database.write(live)
    assert sum(row["liked"] for row in kept(database)["rating_days"]) > 20


def test_a_database_of_before_is_counted_as_one_that_was_counted_all_along(
    database: Database, community: Community, tmp_path: Path
) -> None:
    def live(db: sqlite_utils.Database) -> None:
        life = Life(4, db, community)
        for _ in range(150):
            life.step()

    def undo(db: sqlite_utils.Database) -> None:
        for (trigger,) in db.conn.execute(
            "SELECT name FROM sqlite_master WHERE type = 'trigger' AND sql LIKE '%rating_days%'"
        ).fetchall():
            db.conn.execute(f"DROP TRIGGER {trigger}")
        for table in TABLES:
            db.conn.execute(f"DROP TABLE {table}")
        sql.change(db, "DELETE FROM _sqlite_migrations WHERE name = 'm0042_counts_of_days'")

    database.write(live)
    all_along = kept(database)
    database.write(undo)
    database.close()
    with Database.open(database.path) as again:
        assert kept(again) == all_along


def test_of_more_ratings_than_a_drift_is_told_from_the_newest_are_compared(
    database: Database, community: Community, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(db: sqlite_utils.Database) -> None:
        for index in range(80):
            reply_id = community.asks(db, 1 + index % 8, "a question")
            ratings.rate(
                db,
                reply_id=reply_id,
                user_id=1 + index % 8,
                kind="thumb",
                means="button",
                value=1 - index % 2 * 2,
            )
            at = now_ms() - (index if index < 40 else 1_000 + index) * HOUR_MS // 4 - HOUR_MS
            sql.change(db, "UPDATE ratings SET updated_ms = ? WHERE reply_id = ?", (at, reply_id))

    database.write(fill)
    monkeypatch.setattr(like_rate, "MOST_RATINGS", 24)
    found = database.read(lambda db: like_rate.drift(db, SCOPE))
    assert found is not None
    assert (found.recent.ratings, found.before.ratings) == (24, 24)
