"""Whether a database file is whole, as far as SQLite can tell."""

import contextlib
from pathlib import Path

from sqlite_utils.utils import sqlite3


def find_damage(path: Path) -> str | None:
    """Read every page of a database file and return the first thing that is wrong, or None.

    Changes nothing, and yet doesn't open the file read-only: SQLite then knows no CHECK constraints, so that
    damage to what only they describe is passed over (build.c, sqlite3AddCheckConstraint). A file that is
    write-protected is read without them. Raises sqlite3.DatabaseError where the file is no database.
    """
    with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True)) as connection:
        connection.execute("PRAGMA query_only=ON")
        (verdict,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    return None if verdict == "ok" else str(verdict)
