"""Measure every query at scale: `python -m tests.bench.storage --ratings 1000000`.

Fills a temporary database, calls each function that a person or the trainer waits for, and prints for every
statement how long it took and how SQLite finds its rows. Exits with 1 if one takes over 20 ms of a processor
(median).
"""

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import sqlite_utils
from rich.console import Console
from rich.table import Table
from sqlite_utils.utils import sqlite3

from storage.db.database import Database
from tests.bench.storage.large_database import fill
from tests.bench.storage.operations import operations
from tests.bench.storage.statements import Statement, TimedConnection


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
