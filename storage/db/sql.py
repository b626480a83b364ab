"""A few words of SQL: ask for one row, many rows or one value; insert a row; change some."""

from collections.abc import Mapping, Sequence
from typing import Any

import sqlite_utils

Parameters = Sequence[Any] | Mapping[str, Any]
Row = dict[str, Any]


def many(db: sqlite_utils.Database, question: str, parameters: Parameters = ()) -> list[Row]:
    """Return every row as a dict, fetched whole: a row outlives its transaction."""
    cursor = db.conn.execute(question, parameters)
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]


def one(db: sqlite_utils.Database, question: str, parameters: Parameters = ()) -> Row | None:
    """Return the first row as a dict, or None."""
    cursor = db.conn.execute(question, parameters)
    row = cursor.fetchone()
    if row is None:
        return None
    return dict(zip((column[0] for column in cursor.description), row, strict=True))


def value(db: sqlite_utils.Database, question: str, parameters: Parameters = ()) -> Any:
    """Return the first column of the first row, or None."""
    row = db.conn.execute(question, parameters).fetchone()
    return None if row is None else row[0]


def insert(db: sqlite_utils.Database, table: str, values: Mapping[str, Any], *, on_conflict: str = "") -> int:
    """Insert one row inside the caller's transaction and return its rowid (0 for a table without one).

    `on_conflict` is what follows ON CONFLICT, for example "DO NOTHING".
    """
    columns, marks = ", ".join(values), ", ".join(f":{column}" for column in values)
    clause = f" ON CONFLICT {on_conflict}" if on_conflict else ""
    cursor = db.conn.execute(f"INSERT INTO {table} ({columns}) VALUES ({marks}){clause}", values)
    return int(cursor.lastrowid or 0)


def insert_many(db: sqlite_utils.Database, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows that all have the first one's columns, inside the caller's transaction."""
    if rows:
        columns, marks = ", ".join(rows[0]), ", ".join(f":{column}" for column in rows[0])
        db.conn.executemany(f"INSERT INTO {table} ({columns}) VALUES ({marks})", rows)


def change(db: sqlite_utils.Database, statement: str, parameters: Parameters = ()) -> int:
    """Run one INSERT, UPDATE or DELETE inside the caller's transaction; return the rows it touched."""
    return int(db.conn.execute(statement, parameters).rowcount)
