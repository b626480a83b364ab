"""A connection that times every statement that it runs, and asks how SQLite finds its rows."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from sqlite_utils.utils import sqlite3

LIMIT_MS = 20.0


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
