"""SQLite's errors, told once where they enter: what happened, and what to do."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from sqlite_utils.utils import sqlite3  # pysqlite3 where installed: never both in one process

from storage.errors import (
    CorruptDatabaseError,
    DatabaseBusyError,
    DatabaseError,
    DatabaseUnavailableError,
    DiskFullError,
)

BUSY_TIMEOUT_S = 30.0


@contextlib.contextmanager
def translate_errors(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into ours, once, where they enter."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        translated = _translation(path, error)
        if translated is None:
            raise
        raise translated from error


def _translation(path: Path, error: Exception) -> DatabaseError | None:
    code = primary_code(error)
    if code == sqlite3.SQLITE_FULL:
        return DiskFullError(
            f"The disk that holds {path} is full: nothing was lost and the last change was not made. "
            "Free some space; no restart is needed."
        )
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return CorruptDatabaseError(
            f"{path} is damaged or not a database ({error}): stop Strop and `strop restore` a backup."
        )
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return DatabaseBusyError(
            f"Another process kept {path} locked for {BUSY_TIMEOUT_S:.0f} s: nothing was changed; try again."
        )
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_IOERR):
        return DatabaseUnavailableError(
            f"{path} cannot be read or written ({error}): check the disk and the file's permissions."
        )
    return None


def primary_code(error: Exception) -> int:
    """Return SQLite's primary result code (the low byte of the extended one)."""
    return int(getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF
