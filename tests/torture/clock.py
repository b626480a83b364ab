"""A clock that jumps days ahead and back: order is by row, and what comes last counts."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from storage.chat import replies
from storage.config_sections import TrainerConfig
from storage.db import clock
from storage.db.clock import DAY_MS
from storage.db.database import Database
from storage.feedback import ratings
from storage.learning import runs
from tests.storage.conftest import SCOPE, Community, thumb
from trainer.schedule.scheduler import enqueue_due

ENOUGH = 3
LONG_AGO_MS = -(10**15)


class JumpingClock:
    """The standard library's clock, as far as storage reads it, some milliseconds beside the real one."""

    def __init__(self) -> None:
        self.ahead_ms = 0

    def time_ns(self) -> int:
        return time.time_ns() + self.ahead_ms * 1_000_000


@contextlib.contextmanager
def jumping() -> Iterator[JumpingClock]:
    made = JumpingClock()
    real, clock.time = clock.time, made  # type: ignore[assignment]
    try:
        yield made
    finally:
        clock.time = real


@dataclass
class _World:
    """What was done, in its order."""

    database: Database
    draw: random.Random
    community: Community = field(default_factory=Community)
    values: dict[tuple[str, int], int] = field(default_factory=dict)
    changed: int = 0
    last_run: str = ""

    def ask(self) -> list[str]:
        who, text = self.draw.randint(1, 4), f"question {self.draw.random()}"
        self.database.write(lambda db: self.community.asks(db, who, text))
        return []

    def rate(self) -> list[str]:
        there = self.database.read(lambda db: replies.recent(db, LONG_AGO_MS, 100))
        if there:
            reply_id, who, value = (
                self.draw.choice(there).id,
                self.draw.randint(1, 4),
                self.draw.choice((1, -1)),
            )
            self.changed += self.database.write(lambda db: thumb(db, reply_id, who, value))
            self.values[reply_id, who] = value
        return []

    def train(self) -> list[str]:
        queued = enqueue_due(self.database, TrainerConfig(min_new_ratings=ENOUGH), "ratings", ENOUGH)
        if [self.changed >= ENOUGH] != [bool(queued)]:
            return [f"{self.changed} new ratings, {len(queued)} runs queued"]
        wrong = []
        for run_id in queued:
            taken = self.database.write(lambda db: runs.lease_next(db, "torture", 60_000))
            if taken is None or taken.id != run_id:
                wrong.append("another run was taken")
            self._finish(run_id)
        return wrong

    def _finish(self, run_id: str) -> None:
        self.database.write(lambda db: runs.finish(db, run_id, outcome="refused", message="No better."))
        self.changed, self.last_run = 0, run_id

    def disorder(self) -> list[str]:
        newest = self.database.read(lambda db: runs.latest(db, SCOPE, 1))
        wrong = [f"the newest run is {run.id}" for run in newest if run.id != self.last_run]
        standing = {
            (each.reply_id, each.user_id): each.value
            for reply in self.database.read(lambda db: replies.recent(db, LONG_AGO_MS, 200))
            for each in self._ratings(reply.id)
            if not each.retracted
        }
        return wrong + (["a last rating doesn't stand"] if standing != self.values else [])

    def _ratings(self, reply_id: str) -> list[ratings.Rating]:
        return self.database.read(lambda db: ratings.list_for_reply(db, reply_id))


def jumps(folder: Path, seed: int, steps: int = 80) -> list[str]:
    """Ask, rate and train while the clock jumps; return what went wrong."""
    draw, wrong = random.Random(seed), list[str]()
    with jumping() as now, Database.open(folder / f"clock-{seed}.db") as database:
        world = _World(database, draw)
        for step in range(steps):
            now.ahead_ms = draw.choice((0, 0, 1, -1)) * draw.randrange(5 * DAY_MS)
            act = draw.choice((world.ask, world.rate, world.rate, world.rate, world.train))
            wrong += [f"seed {seed}, step {step}: {each}" for each in [*act(), *world.disorder()]]
    return wrong
