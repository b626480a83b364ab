"""A copy of the database for other programs: the live file is never held, and times are readable."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from sqlite_utils.utils import sqlite3

from storage.db.database import Database
from storage.db.sqlite_errors import translate_errors

# Columns in milliseconds that are no points in time.
_DURATIONS = frozenset({"queue_ms", "first_token_ms", "duration_ms", "lease_ms"})


def write(database: Database, dest: Path) -> None:
    """Write the copy, which only this user can read; each table with times has a view `readable_<table>`.

    Raises DatabaseError where it can't be read or written.
    """
    os.close(os.open(dest, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
    with translate_errors(dest), contextlib.closing(sqlite3.connect(str(dest))) as copy:
        database.read(lambda db: db.conn.backup(copy))
        copy.execute("PRAGMA journal_mode=DELETE")
        for (table,) in copy.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            columns = [row[1] for row in copy.execute(f"PRAGMA table_info([{table}])").fetchall()]
            if any(_is_time(column) for column in columns):
                shown = ", ".join(map(_readable, columns))
                copy.execute(f"CREATE VIEW [readable_{table}] AS SELECT {shown} FROM [{table}]")
        copy.commit()


def _is_time(column: str) -> bool:
    return column.endswith("_ms") and column not in _DURATIONS


def _readable(column: str) -> str:
    """Return a column as it is, or a point in time as text in UTC."""
    if not _is_time(column):
        return f"[{column}]"
    return f"datetime([{column}] / 1000, 'unixepoch') AS [{column.removesuffix('_ms')}_utc]"
