"""Measure how much one database carries: `python -m tests.bench.ceiling --rows 1000000`.

Fills a database as `tests.bench.storage` does, and lets questions of 10,000 servers come in, each with all
that a reply and its ratings write, through the bot's own recorder and writer and `synchronous=FULL`. First
as many as will go, alone, then beside a trainer that reads everything again and again and a backup; then at a
given rate, in bursts. Prints what they took of a processor, how long a reply's rows kept it waiting, and how
late the event loop was. With `--processes 1 2 4` only as many as will go, from so many processes at once,
which share the database by its own locks.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import multiprocessing
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import structlog
from rich.console import Console
from rich.table import Table

from bot.chat.draft import Draft, Plan, Progress
from bot.chat.prompt import Prompt
from bot.chat.question import Question
from bot.chat.reply_recorder import ReplyRecorder
from bot.feedback.reactions import EmojiValues
from bot.services import Person, Services
from bot.serving.client import ModelClient
from bot.serving.protocol import BaseDescription, ChatMessage, Sampling
from storage.chat import replies
from storage.config import Config
from storage.db.database import Connection, Database
from storage.feedback import ratings
from storage.learning import eligibility
from storage.privacy.backup import backup
from tests.bench.storage.large_database import BIG, fill

GUILDS = 10_000
# So many replies are on their way to the database at once where it is to show how much it can take.
AT_ONCE = 256
RATINGS_A_REPLY = 2
# A burst: everybody asks at once after a server's announcement, then the rate's average holds again.
BURST = 50
LAG_EVERY_S = 0.01
FIRST_NEW_ID = 10**15
BASE = BaseDescription("base", hash="base", context_tokens=2048)
WORDS = "What would you take along on a walk of two days in the hills, and what not?"


@dataclass
class Case:
    """What came of one load: seconds on the wall, processor seconds, waits and lags in milliseconds."""

    name: str
    rows: int
    replies: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    writer_cpu_s: float = 0.0
    commits: int = 0
    waits_ms: list[float] = field(default_factory=list)
    lags_ms: list[float] = field(default_factory=list)

    @property
    def per_s(self) -> float:
        """Replies a second on the wall, each with its question and its ratings."""
        return self.replies / self.wall_s

    @property
    def cpu_ms(self) -> float:
        """Processor milliseconds of the bot's process for one reply."""
        return 1000 * self.cpu_s / self.replies

    def as_json(self) -> dict[str, Any]:
        """The figures, percentiles in place of every single wait."""
        found = asdict(self)
        for name in ("waits_ms", "lags_ms"):
            found[name] = {each: percentile(found[name], each) for each in (50, 95, 99)}
        return found | {"per_s": self.per_s, "cpu_ms": self.cpu_ms}


def percentile(values: Sequence[float], share: int) -> float:
    """Return a percentile; 0 of nothing."""
    return statistics.quantiles(values, n=100)[share - 1] if len(values) > 1 else 0.0


class Load:
    """Questions of many servers, each recorded, answered and rated as the bot does it."""

    # Of all loads on a database: Discord gives no id twice.
    _ids = itertools.count(FIRST_NEW_ID)

    def __init__(self, database: Database, config: Config, known_messages: int) -> None:
        self._services = Services(config, database, ModelClient("http://127.0.0.1:9"))
        self._recorder = ReplyRecorder(self._services)
        self._dice = random.Random(5)
        self._known_messages = known_messages

    async def reply(self, case: Case) -> None:
        """Record one question, its reply from the first row to the last, and its ratings."""
        begun = time.perf_counter()
        draft = await self._asked()
        recorded = await self._recorder.question(draft, BASE)
        assert recorded is not None
        prompt = Prompt((ChatMessage("system", WORDS), ChatMessage("user", WORDS)))
        draft.plan = Plan(BASE, None, recorded.route, prompt, 60, Sampling(120, seed=1))
        await self._recorder.start(draft, recorded, draft.plan)
        sent = next(self._ids)
        await self._recorder.part(draft, sent, 0)
        draft.progress.text = 3 * WORDS
        await self._recorder.end(draft, time.monotonic(), "complete", delivered=False)
        await self._recorder.settle(draft, "complete")
        case.waits_ms.append(1000 * (time.perf_counter() - begun))
        for _ in range(RATINGS_A_REPLY):
            await self._rate(sent)
        case.replies += 1

    async def _asked(self) -> Draft:
        # A few servers are busy and most are quiet: Zipf's law, with Pareto's exponent.
        guild = min(int(self._dice.paretovariate(1.16)), GUILDS)
        channel = guild * 100 + self._dice.randrange(20)
        # Every other question goes on with a conversation that lies somewhere in the database.
        old = 1_000_000_000 + 2 * self._dice.randrange(self._known_messages // 2) + 1
        in_force = await self._services.settings(guild, channel)
        question = Question(
            discord_id=next(self._ids),
            channel_id=channel,
            guild_id=guild,
            public=True,
            author=Person(self._dice.randrange(200_000), "member", "discord"),
            text=WORDS,
            in_force=in_force,
            parent_discord_id=old if self._dice.random() < 0.5 else None,
        )
        # The recorder shows nothing: it needs no renderer.
        return Draft(f"c{question.discord_id}", question, cast("Any", None), Progress(time.monotonic()))

    async def _rate(self, message_id: int) -> None:
        """As `RatingRecorder.added`: what the emoji says there is read, then the rating is written."""
        services, user_id = self._services, self._dice.randrange(200_000)

        def value(db: Connection) -> int | None:
            reply = replies.by_discord_id(db, message_id)
            return None if reply is None else EmojiValues.of(db, services.config, reply).value("👍")

        found = await services.database.aread(value)
        assert found is not None

        def work(db: Connection) -> None:
            reply = replies.by_discord_id(db, message_id)
            assert reply is not None
            Person(user_id, "member", "discord").ensure(db)
            rated: dict[str, Any] = {"reply_id": reply.id, "user_id": user_id, "kind": "thumb"}
            ratings.rate(db, **rated, means="reaction", value=found, emoji="👍")

        await services.database.awrite(work)


async def as_many_as_will_go(load: Load, case: Case, count: int, at_once: int = AT_ONCE) -> None:
    """Keep `at_once` replies under way until there were `count`."""
    left = iter(range(count))

    async def one_after_the_other() -> None:
        for _ in left:
            await load.reply(case)

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(one_after_the_other())


async def in_bursts(load: Load, case: Case, count: int, rate: float) -> None:
    """Let questions come in at an average rate, `BURST` of them at a time, however long they wait."""
    begun = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(0, count, BURST):
            await asyncio.sleep(max(0.0, begun + number / rate - time.perf_counter()))
            for _ in range(min(BURST, count - number)):
                group.create_task(load.reply(case))


async def _watch_lag(case: Case) -> None:
    while True:
        due = time.perf_counter() + LAG_EVERY_S
        await asyncio.sleep(LAG_EVERY_S)
        case.lags_ms.append(1000 * (time.perf_counter() - due))


def measured(
    database: Database, case: Case, drive: Callable[[Load, Case], Any], config: Config, known: int
) -> Case:
    """Drive one load through a database and fill in its case."""

    async def run() -> None:
        watch = asyncio.create_task(_watch_lag(case))
        load = Load(database, config, known)
        begun, cpu, writer = time.perf_counter(), time.process_time(), _writer_cpu(database)
        await drive(load, case)
        case.wall_s, case.cpu_s = time.perf_counter() - begun, time.process_time() - cpu
        case.writer_cpu_s = _writer_cpu(database) - writer
        watch.cancel()

    asyncio.run(run())
    return case


def _writer_cpu(database: Database) -> float:
    return database.write(lambda db: time.thread_time())


@contextlib.contextmanager
def reading_beside(path: Path, folder: Path) -> Iterator[None]:
    """A trainer that reads all rows again and again, and one backup after the other, at low priority."""
    spawn = multiprocessing.get_context("spawn")
    children = [
        spawn.Process(target=target, args=(path, folder), daemon=True) for target in (_read_all, _back_up)
    ]
    for child in children:
        child.start()
    try:
        yield
    finally:
        for child in children:
            child.kill()
            child.join()


def _read_all(path: Path, folder: Path) -> None:
    os.nice(10)
    with Database.open(path) as database:
        while True:
            database.read(lambda db: eligibility.eligible_rows(db, BIG, permission_reference="P"))


def _back_up(path: Path, folder: Path) -> None:
    os.nice(10)
    with Database.open(path) as database:
        for number in range(10**6):
            backup(database, folder / f"backup-{number}")


def cases(folder: Path, rows: int, count: int, rate: float) -> Iterator[Case]:
    """Fill a database of so many ratings and measure each load on it."""
    path = folder / "strop.db"
    config = Config.model_validate({"home": folder, "discord": {}})
    with Database.open(path) as database:
        database.write(lambda db: fill(db, rows))
        database.checkpoint_truncate()
        known = 2 * (rows * 2 // 5)
        many: Callable[[Load, Case], Any] = lambda load, case: as_many_as_will_go(load, case, count)  # noqa: E731
        steady: Callable[[Load, Case], Any] = lambda load, case: in_bursts(load, case, count, rate)  # noqa: E731
        yield measured(database, Case("as many as will go", rows), many, config, known)
        with reading_beside(path, folder):
            yield measured(database, Case("beside a trainer and a backup", rows), many, config, known)
        yield measured(database, Case(f"{rate:.0f} a second, in bursts", rows), steady, config, known)


def by_processes(folder: Path, rows: int, count: int, counts: Sequence[int]) -> Iterator[Case]:
    """Let so many processes write as much as will go, `count` replies in all, into one database."""
    path = folder / "strop.db"
    with Database.open(path) as database:
        database.write(lambda db: fill(db, rows))
        database.checkpoint_truncate()
    spawn = multiprocessing.get_context("spawn")
    for number, processes in enumerate(counts):
        with spawn.Pool(processes) as pool:
            # All of them have imported and opened before the first begins.
            begin = time.time() + 5.0
            parts = pool.starmap(
                _write_alone,
                [
                    (folder, rows, count // processes, AT_ONCE // processes, 100 * number + each, begin)
                    for each in range(processes)
                ],
                chunksize=1,
            )
        yield Case(
            f"{processes} processes",
            rows,
            sum(part.replies for part in parts),
            max(part.wall_s for part in parts),
            sum(part.cpu_s for part in parts),
            sum(part.writer_cpu_s for part in parts),
            waits_ms=[each for part in parts for each in part.waits_ms],
            lags_ms=[each for part in parts for each in part.lags_ms],
        )


def _write_alone(folder: Path, rows: int, count: int, at_once: int, number: int, begin: float) -> Case:
    """One of several processes: ids of its own, since Discord gives none twice."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    Load._ids = itertools.count(FIRST_NEW_ID + number * 10**9)
    config = Config.model_validate({"home": folder, "discord": {}})
    with Database.open(folder / "strop.db") as database:
        time.sleep(max(0.0, begin - time.time()))
        return measured(
            database,
            Case("", rows),
            lambda load, case: as_many_as_will_go(load, case, count, at_once),
            config,
            2 * (rows * 2 // 5),
        )


def report(found: Sequence[Case], console: Console) -> None:
    """Print the table."""
    heads = (
        "ratings",
        "load",
        "replies/s",
        "CPU ms a reply",
        "of it writer",
        "wait p50/p99 ms",
        "lag p99 ms",
    )
    table = Table(*heads)
    for case in found:
        waits = f"{percentile(case.waits_ms, 50):.0f} / {percentile(case.waits_ms, 99):.0f}"
        writer = f"{1000 * case.writer_cpu_s / case.replies:.2f}"
        figures = (f"{case.per_s:.0f}", f"{case.cpu_ms:.2f}", writer, waits)
        table.add_row(f"{case.rows:,}", case.name, *figures, f"{percentile(case.lags_ms, 99):.1f}")
    console.print(table)


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.ceiling", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000], help="ratings to fill in")
    parser.add_argument("--replies", type=int, default=3000, help="replies of each load")
    parser.add_argument("--rate", type=float, default=200.0, help="replies a second in the last load")
    parser.add_argument("--processes", type=int, nargs="+", default=[], help="so many write at once")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    found: list[Case] = []
    for rows in options.rows:
        with tempfile.TemporaryDirectory(prefix="strop-ceiling-") as folder:
            if options.processes:
                found += by_processes(Path(folder), rows, options.replies, options.processes)
            else:
                found += cases(Path(folder), rows, options.replies, options.rate)
    report(found, Console(width=140))
    if options.json:
        options.json.write_text(json.dumps([case.as_json() for case in found], indent=1))


if __name__ == "__main__":
    main()
