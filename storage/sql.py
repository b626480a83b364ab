"""Three ways to ask a question in SQL: one row, many rows, one value."""

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


def change(db: sqlite_utils.Database, statement: str, parameters: Parameters = ()) -> int:
    """Run one INSERT, UPDATE or DELETE inside the caller's transaction; return the rows it touched."""
    return int(db.conn.execute(statement, parameters).rowcount)
