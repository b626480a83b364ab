"""Measure every query at scale: `python -m tests.bench.storage --ratings 1000000`.

Fills a temporary database, calls each function that a person or the trainer waits for, and prints for every
statement how long it took and how SQLite finds its rows. Exits with 1 if one takes over 20 ms of a processor
(median).
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlite_utils
from rich.console import Console
from rich.table import Table
from sqlite_utils.utils import sqlite3

from storage.admin import audit, left_out
from storage.chat import conversations, latency, members, open_replies, replies
from storage.db import key_values
from storage.db.clock import DAY_MS, now_ms
from storage.db.database import Database
from storage.feedback import duels, like_rate, my_ratings, rating_statistics, ratings
from storage.learning import (
    adapters,
    eligibility,
    evaluations,
    loop_status,
    run_summary,
    runs,
    wrongly_rejected,
)
from storage.learning.signals import of_replies
from storage.privacy import erasure
from storage.sentences import Sentence
from storage.telemetry import counts

LIMIT_MS = 20.0
BIG, BASE = "guild:1", "base"
RUNS = 200

Operation = Callable[[sqlite_utils.Database], object]


@dataclass
class Statement:
    """One SQL text as one operation ran it."""

    operation: str
    text: str
    plan: list[str]
    times_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)

    def run(self, call: Callable[[], Any], rows: int = 1) -> Any:
        """Time a call: on the wall, and on the processor (what a busy machine does not distort)."""
        wall, cpu = time.perf_counter(), time.thread_time()
        result = call()
        self.times_ms.append((time.perf_counter() - wall) * 1_000 / rows)
        self.cpu_ms.append((time.thread_time() - cpu) * 1_000 / rows)
        return result

    @property
    def median_ms(self) -> float:
        """By the clock, which also shows what else the machine was doing."""
        return statistics.median(self.times_ms)

    @property
    def median_cpu_ms(self) -> float:
        """Of a processor: what decides."""
        return statistics.median(self.cpu_ms)

    @property
    def is_slow(self) -> bool:
        """Whether it takes longer than it may."""
        return self.median_cpu_ms > LIMIT_MS


class _Fetched:
    """A cursor whose rows are here already, so that fetching them was timed too."""

    def __init__(self, cursor: Any) -> None:
        self.description, self.rowcount, self.lastrowid = (
            cursor.description,
            cursor.rowcount,
            cursor.lastrowid,
        )
        self._rows = iter(cursor.fetchall() if cursor.description else ())

    def __iter__(self) -> Iterator[Any]:
        return self._rows

    def fetchone(self) -> Any:
        return next(self._rows, None)

    def fetchall(self) -> list[Any]:
        return list(self._rows)


class TimedConnection(sqlite3.Connection):  # type: ignore[misc]
    """A connection that times every statement and asks for its query plan."""

    operation = ""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.seen: dict[tuple[str, str], Statement] = {}

    def execute(self, text: str, parameters: Any = ()) -> Any:
        """Run one statement, timed with the fetching of its rows."""
        if not self.operation or text.split(maxsplit=1)[0] in ("BEGIN", "ROLLBACK", "PRAGMA"):
            return super().execute(text, parameters)
        statement = self._statement(text, parameters)
        execute = super().execute
        return statement.run(lambda: _Fetched(execute(text, parameters)))

    def executemany(self, text: str, rows: Any) -> Any:
        """Run a statement for many rows; its time is that of one row."""
        rows = list(rows)
        statement = self._statement(text, rows[0])
        executemany = super().executemany
        return statement.run(lambda: executemany(text, rows), len(rows))

    def _statement(self, text: str, parameters: Any) -> Statement:
        key = (self.operation, " ".join(text.split()))
        if key not in self.seen:
            plan = super().execute(f"EXPLAIN QUERY PLAN {text}", parameters).fetchall()
            self.seen[key] = Statement(*key, [row[3] for row in plan])
        return self.seen[key]


def fill(db: sqlite_utils.Database, ratings_count: int) -> None:
    """Insert members, conversations, replies and ratings the way a large community would have left them.

    Every reply has one rating and many have up to four; nine of ten rows are in one guild.
    """
    replies_count = ratings_count * 2 // 5
    parameters = {
        "members": max(ratings_count // 50, 10),
        "replies": replies_count,
        "ratings": ratings_count,
        "now": now_ms(),
        "step": max(365 * DAY_MS // replies_count, 1),
    }
    db.conn.execute("PRAGMA cache_size=-500000")
    for statement in _FILL.split("\n\n"):
        db.conn.execute(statement, parameters)
    adapters.ensure_champion_row(db, BIG, BASE)
    for number in range(RUNS):
        run_id, adapter_id = f"run{number:04}", f"a{number:04}"
        path = f"adapters/{adapter_id}"
        adapters.insert_candidate(
            db, adapter_id=adapter_id, scope=BIG, base_hash=BASE, path=path, run_id=run_id
        )
        adapters.promote(
            db, scope=BIG, base_hash=BASE, adapter_id=adapter_id, actor="bench", reason="bench", run_id=run_id
        )
        evaluations.add(db, run_id=run_id, adapter_id=adapter_id, champion_id=None, metric="m", value=0.1)


_NUMBERS = "WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < {})"

_FILL = f"""
INSERT INTO members (user_id, display_name, source, consent, created_ms)
{_NUMBERS.format(":members")} SELECT i, 'member ' || i, 'discord', 'in', :now FROM n

INSERT INTO conversations (id, key, guild_id, channel_id, scope, source, public, split, created_ms)
{_NUMBERS.format(":replies")}
SELECT i, 'discord:' || i, 1 + (i % 10 = 0), i % 50, 'guild:' || (1 + (i % 10 = 0)), 'discord', 1,
       CASE WHEN i % 10 < 7 THEN 'train' WHEN i % 10 < 8 THEN 'development' ELSE 'gate' END, :now FROM n

INSERT INTO messages (id, discord_id, conversation_id, parent_id, author_id, role, content, source, consent,
                      created_ms)
{_NUMBERS.format(":replies * 2")}
SELECT i, 1000000000 + i, i / 2, iif(i % 2, i - 1, NULL), iif(i % 2, NULL, (i / 2 * 7919) % :members),
       iif(i % 2, 'assistant', 'user'),
       iif(i % 20, '', '@member ' || i % 1000 || ' ') || hex(randomblob(60)), 'discord', 'in',
       :now - (:replies - i / 2) * :step FROM n

INSERT INTO replies (id, message_id, prompt_message_id, conversation_id, asker_id, scope, base_hash,
                     prompt_json, sampling_json, status, source, created_ms)
{_NUMBERS.format(":replies")}
SELECT printf('%08x%08x', i * 2654435761 % 4294967296, i), i * 2 + 1, i * 2, i, (i * 7919) % :members,
       'guild:' || (1 + (i % 10 = 0)), 'base',
       json_array(json_object('role', 'user', 'content', hex(randomblob(60)))), '{{}}', 'complete', 'discord',
       :now - (:replies - i) * :step FROM n

INSERT INTO reply_context SELECT id, prompt_message_id, asker_id FROM replies

INSERT INTO reply_parts SELECT 1000000000 + message_id, id, 1, 0 FROM replies

INSERT INTO ratings (reply_id, user_id, scope, kind, means, value, emoji, source, consent, created_ms,
                     updated_ms)
{_NUMBERS.format("4")}
SELECT id, (asker_id + i * 31 + 1) % :members, scope, 'thumb', 'reaction', iif((message_id + i) % 3, -1, 1),
       '👍', 'discord', 'in', created_ms, created_ms
FROM replies CROSS JOIN n
WHERE i = 0 OR (message_id / 2 % 5 > 1 AND (i < 3 OR message_id / 2 % 2)) LIMIT :ratings

INSERT INTO runs (id, scope, trigger, requested_by, state, outcome, ratings_seen, created_ms, started_ms,
                  finished_ms)
{_NUMBERS.format(RUNS)}
SELECT printf('run%04d', i), 'guild:1', 'schedule', '1', 'finished', 'refused', i * 4000, started, started,
       started + 600000 FROM (SELECT i, :now - ({RUNS} - i) * {DAY_MS} AS started FROM n)

INSERT INTO run_rows
{_NUMBERS.format(RUNS)}
SELECT printf('run%04d', n.i), replies.id, 'train', 'liked', 1.0
FROM n JOIN replies ON replies.message_id / 2 % 997 = n.i

INSERT INTO audit (actor, action, detail_json, created_ms)
{_NUMBERS.format("20000")} SELECT '1', 'consent', json_object('user_id', i % 1000), :now FROM n"""


def operations(db: sqlite_utils.Database) -> dict[str, Operation]:
    """Return everything a person or the trainer waits for, by name."""
    reply = db.conn.execute(
        "SELECT id, message_id FROM replies WHERE scope = ? LIMIT 1 OFFSET 500", (BIG,)
    ).fetchone()
    member = db.conn.execute("SELECT user_id FROM ratings LIMIT 1 OFFSET 700").fetchone()[0]
    recently = now_ms() - 7 * DAY_MS
    thumb: dict[str, Any] = {"reply_id": reply[0], "user_id": 3, "kind": "thumb"}
    queue: dict[str, Any] = {"scope": BIG, "trigger": "manual", "requested_by": "1"}
    return {
        "chat: receive, answer": lambda db: _chat(db, reply[1]),
        "chat: chain": lambda db: conversations.chain(db, reply[1]),
        "chat: find by Discord id": lambda db: conversations.by_discord_id(db, 1_000_000_000 + reply[1]),
        "chat: find reply by part": lambda db: replies.by_discord_id(db, 1_000_000_000 + reply[1]),
        "chat: edit": lambda db: conversations.edit_message(db, 1_000_000_000, "x"),
        "chat: delete": lambda db: conversations.delete_message(db, 1_000_000_000),
        "chat: champion": lambda db: adapters.champion(db, BIG, BASE),
        "start: open replies": open_replies.all_open,
        "start: recent replies": lambda db: replies.recent(db, recently, 200),
        "rate: rate": lambda db: ratings.rate(db, **thumb, means="button", value=1),
        "rate: retract": lambda db: ratings.retract(db, **thumb),
        "rate: clear": lambda db: ratings.retract_all(db, reply[0]),
        "rate: ratings of a reply": lambda db: ratings.list_for_reply(db, reply[0]),
        "status: glance": lambda db: loop_status.read(db, BIG, BASE, permission_reference="P"),
        "status: counts": lambda db: ratings.counts(db, BIG),
        "status: adapters": lambda db: adapters.listing(db, BIG),
        "status: runs": lambda db: runs.latest(db, BIG),
        "status: audit": audit.latest,
        "privacy: consent": lambda db: members.set_consent(db, member, "out", "1"),
        "privacy: export": lambda db: erasure.export_member(db, member),
        "privacy: erase": lambda db: erasure.erase_member(db, member, "1"),
        "trainer: new ratings": lambda db: runs.new_ratings(db, BIG),
        "trainer: a page of rows": lambda db: _first_pages(db, 20),
        "trainer: a page of signals": lambda db: of_replies.of_replies(
            db, next(eligibility.pages(db, BIG)), permission_reference="P"
        ),
        "trainer: a run": lambda db: _run(db, queue),
        "trainer: roll back": lambda db: adapters.rollback(
            db, scope=BIG, base_hash=BASE, actor="1", reason=""
        ),
        "votes: duel and tally": _duel,
        "statistic: /stats": lambda db: (
            rating_statistics.by_day(db, BIG, 30),
            rating_statistics.by_adapter(db, BIG, 30, 10),
        ),
        "statistic: /stats weeks": lambda db: (
            like_rate.by_week(db, BIG, 26),
            like_rate.by_channel(db, BIG, 28, 8),
        ),
        "statistic: drift": lambda db: like_rate.drift(db, BIG),
        "statistic: monitoring": lambda db: (counts.read(db, BASE), counts.trends(db)),
        "statistic: speed": lambda db: latency.measure_speed(db, BIG, 24),
        "privacy: my ratings": lambda db: (
            my_ratings.counts(db, member),
            my_ratings.page(db, member, limit=10),
        ),
        "admin: left out": lambda db: left_out.listing(db, BIG),
        "admin: runs": lambda db: run_summary.page(db, BIG, skip=0, limit=20),
        "admin: wrongly rejected": wrongly_rejected.find,
        "facts": lambda db: key_values.get(db, "a"),
    }


def _chat(db: sqlite_utils.Database, message_id: int) -> None:
    members.ensure(db, 1, "new name", "discord")
    conversation = conversations.open_conversation(
        db, key="bench", guild_id=1, channel_id=1, scope=BIG, source="discord", public=True
    )
    asked = conversations.add_message(
        db,
        conversation_id=conversation.id,
        discord_id=1,
        parent_id=message_id,
        author_id=1,
        role="user",
        content="hello",
    )
    made_from: dict[str, Any] = {
        "adapter_id": None,
        "base_hash": BASE,
        "prompt": [],
        "seed": 1,
        "sampling": {},
    }
    replies.start(db, reply_id="bench", prompt_message_id=asked, scope=BIG, **made_from)
    replies.add_part(db, "bench", 2, 1, 0)
    figures = (
        "finish_reason",
        "prompt_tokens",
        "completion_tokens",
        "queue_ms",
        "first_token_ms",
        "duration_ms",
    )
    replies.finish(db, "bench", content="hi", status="complete", **dict.fromkeys(figures))


def _first_pages(db: sqlite_utils.Database, pages: int) -> None:
    for number, page in enumerate(eligibility.pages(db, BIG)):
        list(eligibility.judge_rows(db, page, "P"))
        if number == pages:
            return


def _run(db: sqlite_utils.Database, queue: dict[str, Any]) -> None:
    run = runs.enqueue(db, **queue)
    runs.lease_next(db, "bench", 60_000)
    runs.heartbeat(db, run.id, "bench", "train", 0.5)
    rows = db.conn.execute("SELECT id FROM replies LIMIT 2000").fetchall()
    runs.record_snapshot(
        db, run.id, snapshot_hash="h", rows=[runs.RunRow(row[0], "train", "liked", 1.0) for row in rows]
    )
    runs.rows_of(db, run.id)
    evaluations.list_for_run(db, run.id)
    runs.finish(db, run.id, outcome="refused", message=Sentence("no"))


def _duel(db: sqlite_utils.Database) -> None:
    texts = {"first_text": "a", "second_text": "b", "first_is_challenger": True}
    duels.add(
        db,
        duel_id="d",
        run_id="run0001",
        scope=BIG,
        challenger_id="a",
        champion_id=None,
        prompt=[],
        **texts,  # type: ignore[arg-type]
    )
    duels.vote(db, duel_id="d", user_id=1, choice=1, source="discord")
    duels.open_for(db, BIG)
    duels.tally(db, "run0001")
    duels.close(db, "run0001")


def measure(path: Path, repeats: int) -> list[Statement]:
    """Run every operation `repeats` times, each in a transaction that is rolled back."""
    connection = sqlite3.connect(str(path), isolation_level=None, factory=TimedConnection)
    db = sqlite_utils.Database(connection, recursive_triggers=False, execute_plugins=False)
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("PRAGMA secure_delete=ON")
    for name, operation in operations(db).items():
        for _ in range(repeats):
            connection.execute("BEGIN IMMEDIATE")
            connection.operation = name
            operation(db)
            connection.operation = ""
            connection.execute("ROLLBACK")
    connection.close()
    return list(connection.seen.values())


def report(statements: list[Statement], console: Console) -> bool:
    """Print the table, the slowest first in each operation; return whether everything is fast enough."""
    by_operation: defaultdict[str, list[Statement]] = defaultdict(list)
    for statement in statements:
        by_operation[statement.operation].append(statement)
    table = Table("operation", "median ms", "slowest ms", "cpu ms", "statement", "plan", show_lines=False)
    for name, group in by_operation.items():
        for statement in sorted(group, key=lambda statement: -statement.median_cpu_ms):
            median = f"{statement.median_ms:.2f}"
            table.add_row(
                name,
                f"[red]{median}[/red]" if statement.is_slow else median,
                f"{max(statement.times_ms):.2f}",
                f"{statement.median_cpu_ms:.2f}",
                statement.text[:70],
                "; ".join(statement.plan)[:120] or "-",
            )
    console.print(table)
    slow_count = sum(statement.is_slow for statement in statements)
    slowest = max(statement.median_cpu_ms for statement in statements)
    console.print(f"{len(statements)} statements, slowest {slowest:.1f} CPU-ms, {slow_count} over the limit")
    return slow_count == 0


def main() -> int:
    """Parse the command line, fill, measure, print; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.storage", description=__doc__)
    parser.add_argument("--ratings", type=int, default=1_000_000, help="how many ratings to fill in")
    parser.add_argument("--repeats", type=int, default=5, help="how often to run each operation")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 240)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "strop.db"
        started = time.monotonic()
        with Database.open(path) as database:
            database.write(lambda db: fill(db, options.ratings))
            database.checkpoint_truncate()
        size_mb = path.stat().st_size / 2**20
        console.print(
            f"{options.ratings:,} ratings, {size_mb:,.0f} MiB, filled in {time.monotonic() - started:.0f} s"
        )
        statements = measure(path, options.repeats)
    fine = report(statements, console)
    if options.json:
        options.json.write_text(json.dumps([vars(statement) for statement in statements], indent=1))
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
