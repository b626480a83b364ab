"""A full disk at every write: nothing is half written or lost, and no restart is needed."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from storage.admin import blocks
from storage.chat import conversations, members
from storage.db.database import Connection, Database
from storage.errors import DiskFullError
from storage.learning import runs
from storage.privacy import consent, erasure
from tests.storage.conftest import GUILD, SCOPE, Community, thumb

WITHOUT_LIMIT = 1_000_000_000


def fill(folder: Path, seed: int, writes: int = 60) -> tuple[int, list[str]]:
    """Make each write on a full disk, then with room; return (how many were refused, what is wrong)."""
    draw, refused, wrong = random.Random(seed), 0, list[str]()
    community, known = Community(), list[str]()
    with Database.open(folder / f"full-{seed}.db") as database:
        for number in range(writes):
            work, kept = _work(draw, community, known, number), list(known)
            before = database.read(_everything)
            _limit(database, full=True)
            try:
                database.write(work)
            except DiskFullError:
                refused, known[:] = refused + 1, kept
                if database.read(_everything) != before:
                    wrong.append(f"write {number} was refused and left something")
                _limit(database, full=False)
                database.write(work)
            _limit(database, full=False)
        if database.read(lambda db: db.conn.execute("PRAGMA integrity_check").fetchone()[0]) != "ok":
            wrong.append("the database is damaged")
    return refused, wrong


def _limit(database: Database, *, full: bool) -> None:
    """Let the file grow no further, which SQLite reports as it does a full disk."""

    def work(db: Connection) -> None:
        pages = db.conn.execute("PRAGMA page_count").fetchone()[0] if full else WITHOUT_LIMIT
        db.conn.execute(f"PRAGMA max_page_count={pages}").fetchone()

    database.write(work)


def _work(
    draw: random.Random, community: Community, known: list[str], number: int
) -> Callable[[Connection], Any]:
    who, text = draw.randint(1, 5), f"question {number} " + "word " * draw.randint(1, 900)
    which = draw.choice(known) if known else ""
    value, choice = draw.choice((1, -1)), draw.choice(("in", "out"))

    def ask(db: Connection) -> None:
        known.append(community.asks(db, who, text))

    acts: list[Callable[[Connection], Any]] = [
        ask,
        ask,
        lambda db: thumb(db, which, who, value),
        lambda db: consent.decide(db, who, choice, str(who), permission_reference="P"),  # type: ignore[arg-type]
        lambda db: blocks.block(db, guild_id=GUILD, user_id=who, actor="99", reason=text[:300]),
        lambda db: conversations.delete_message(db, 1_000 + 2 * number),
        lambda db: erasure.erase_member(db, who, str(who)),
        lambda db: runs.enqueue(db, scope=SCOPE, trigger="manual", requested_by=text),
        lambda db: members.ensure(db, 100 + number, text, "playground"),
    ]
    return draw.choice(acts) if known else ask


def _everything(db: Connection) -> list[str]:
    names = [name for (name,) in db.conn.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    return [repr(db.conn.execute(f"SELECT * FROM {name}").fetchall()) for name in names]
