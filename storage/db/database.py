"""One SQLite file, shared by every process of Strop.

Writes go through one thread per process (`writer.py`) and run inside BEGIN IMMEDIATE: a deferred BEGIN that
reads first and writes later fails with "database is locked" across processes, whatever the busy timeout
(https://sqlite.org/lang_transaction.html). A write is acknowledged only after its COMMIT.
"""

import asyncio
import contextlib
import contextvars
import os
import queue
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias, TypeVar

import sqlite_utils
import structlog
from sqlite_utils.utils import sqlite3  # pysqlite3 where installed: never both in one process

from storage.db import migrations
from storage.db.sqlite_errors import BUSY_TIMEOUT_S, primary_code, translate_errors
from storage.db.writer import Writer, begin
from storage.errors import (
    CorruptDatabaseError,
    DatabaseBusyError,
    DatabaseClosedError,
    DatabaseUnavailableError,
)

T = TypeVar("T")
Connection: TypeAlias = sqlite_utils.Database
"""What a repository function reads from, or writes to inside the caller's transaction."""

Work = Callable[[Connection], T]

READERS = 4
# Every connection keeps a page cache of its own, which fills up as the database grows: 12 MiB in all. More
# saves little, since what falls out of it is still in the system's cache.
WRITER_CACHE_KIB = 4_000
READER_CACHE_KIB = 2_000
# More than there are statements. pysqlite3 drops the one that was used the least, which is always the newest:
# once its 128 are full, as after a migration, two new ones that take turns are prepared again each time.
CACHED_STATEMENTS = 1_024
CHECKPOINT_WAIT_MS = 500
_SMALLEST_PAGE = 512

log = structlog.get_logger()

# A checkpoint racing a commit could corrupt the file: https://sqlite.org/wal.html#walresetbug
_WAL_RESET_FIXED = (3, 51, 3)


def sqlite_version_problem(version: Sequence[int] = sqlite3.sqlite_version_info) -> str | None:
    """Return one sentence if this SQLite has the WAL-reset bug (before 3.51.3), else None."""
    if tuple(version) >= _WAL_RESET_FIXED:
        return None
    return (
        f"SQLite {'.'.join(map(str, version))} has a rare bug that can corrupt a busy database (fixed in "
        "3.51.3): install the Python package pysqlite3, or a newer SQLite, and back up often."
    )


class Database:
    """The database file: one writer thread, read-only connections for readers."""

    def __init__(self, path: Path, writer: sqlite_utils.Database) -> None:
        self.path = path
        self._writer = Writer(path, writer)
        self._local = threading.local()
        self._readers: weakref.WeakSet[sqlite_utils.Database] = weakref.WeakSet()
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="strop-read")
        self._closed = False

    @classmethod
    def open_patiently(cls, path: Path, stopping: Callable[[], bool] = lambda: False) -> "Database":
        """Open the database, however long another program keeps it locked, and say what is waited for.

        For a process that serves: it has nothing better to do. `stopping` ends the wait.
        """
        while True:
            try:
                return cls.open(path)
            except DatabaseBusyError:
                log.warning("database.locked", path=str(path), waiting="until another program releases it")
                if stopping():
                    raise

    @classmethod
    def open(cls, path: Path) -> "Database":
        """Open or create the database and bring its schema up to date; safe in several processes at once.

        Raises NewerDatabaseError, CorruptDatabaseError, DatabaseUnavailableError, DiskFullError,
        DatabaseBusyError.
        """
        with translate_errors(path):
            _create_private(path)
            _require_a_database(path)
            writer = _connect(path)
            try:
                _enter_wal(writer)
                begin(writer)
                migrations.apply(writer, path)
                writer.conn.execute("COMMIT")
            except BaseException:
                writer.close()
                raise
        return cls(path, writer)

    @staticmethod
    def is_outdated(path: Path) -> bool:
        """Return whether opening this database would change its schema, without opening it for writing.

        Raises CorruptDatabaseError, DatabaseUnavailableError.
        """
        with translate_errors(path):
            _require_a_database(path)
            reader = _connect(path, read_only=True)
            try:
                return bool(migrations.steps.pending(reader))
            finally:
                reader.close()

    def write(self, work: Work[T]) -> T:
        """Run `work` in one write transaction and return its result once that is on disk.

        Whatever `work` raises rolls everything back and is raised here.
        """
        return self._writer.write(work).result()

    def read(self, work: Work[T]) -> T:
        """Run `work` on this thread against one consistent, read-only snapshot."""
        with translate_errors(self.path):
            db = self._reader()
            if db.conn.in_transaction:  # a read within a read shares its snapshot
                return work(db)
            db.conn.execute("BEGIN")
            try:
                return work(db)
            finally:
                if db.conn.in_transaction:
                    db.conn.execute("ROLLBACK")

    async def awrite(self, work: Work[T]) -> T:
        """Like `write`, off the event loop; the write completes even if its caller is cancelled.

        Both run `work` in a copy of their caller's context.
        """
        try:
            future = self._writer.write(work, block=False)
        except queue.Full:
            future = await asyncio.shield(asyncio.to_thread(self._writer.write, work))
        return await _await_through_cancellation(future)

    async def aread(self, work: Work[T]) -> T:
        """Like `read`, on one of a few reader threads. Raises DatabaseClosedError."""
        if self._closed:
            raise DatabaseClosedError(f"{self.path} is closed.")
        context = contextvars.copy_context()
        return await _await_through_cancellation(self._pool.submit(context.run, self.read, work))

    def checkpoint_truncate(self, wait_ms: int = CHECKPOINT_WAIT_MS) -> bool:
        """Copy the write-ahead log into the database and cut it to zero bytes, so that erased text is gone.

        Returns False if a reader still needed the log for `wait_ms`, in which nothing is written; try again
        later.
        """
        return self._writer.task(lambda db: _checkpoint(db, wait_ms)).result()

    def release_memory(self) -> None:
        """Drop the pages that the connections keep in memory, where erased text still stands."""
        self._writer.task(_shrink).result()
        for reader in list(self._readers):
            # SQLite serializes the use of a connection; a page that a statement holds at the moment stays.
            _shrink(reader)

    def close(self) -> None:
        """Finish the writes that were accepted, then close every connection. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._pool.shutdown(wait=True)
        for reader in list(self._readers):
            reader.close()
        # Last: what closes a database for good puts the write-ahead log into it, if it may write.
        self._writer.close()

    def __enter__(self) -> "Database":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _reader(self) -> sqlite_utils.Database:
        if self._closed:
            raise DatabaseClosedError(f"{self.path} is closed.")
        reader: sqlite_utils.Database | None = getattr(self._local, "reader", None)
        if reader is None:
            reader = self._local.reader = _connect(self.path, read_only=True)
            self._readers.add(reader)
        return reader


def _checkpoint(db: sqlite_utils.Database, wait_ms: int) -> bool:
    # While it waits for readers, nothing is written: a short wait, and another try later.
    db.conn.execute(f"PRAGMA busy_timeout={wait_ms}")
    try:
        busy, _, _ = db.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    finally:
        db.conn.execute(f"PRAGMA busy_timeout={round(BUSY_TIMEOUT_S * 1000)}")
    return not busy


def _shrink(db: sqlite_utils.Database) -> None:
    db.conn.execute("PRAGMA shrink_memory")


async def _await_through_cancellation(future: Future[T]) -> T:
    """Await a thread's result; cancelling the waiter leaves the work alone."""
    waiter = asyncio.wrap_future(future)
    # Retrieved even when nobody waits any more, so that asyncio does not report it as forgotten.
    waiter.add_done_callback(lambda done: done.cancelled() or done.exception())
    return await asyncio.shield(waiter)


def _create_private(path: Path) -> None:
    """Create the file readable by its owner only; SQLite gives -wal and -shm the same mode."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _create_whole(path)
        os.close(os.open(path, os.O_RDWR))
        path.chmod(0o600)
    except OSError as error:
        raise DatabaseUnavailableError(
            f"{path} cannot be opened ({error.strerror or error}): make the folder writable for this user, "
            "or set STROP_HOME to one that is."
        ) from error


def _create_whole(path: Path) -> None:
    """Make an empty database that appears under its name only when its first page is on disk.

    So a file without one is never new: something cut it off.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".new")
    os.close(descriptor)
    new = Path(name)
    try:
        with contextlib.closing(sqlite3.connect(name, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA user_version=0")
            connection.execute("CREATE TABLE made (at INTEGER)")
            connection.execute("DROP TABLE made")
        try:
            os.link(new, path)
        except FileExistsError:
            pass  # another process was faster
        except OSError:  # a file system without hard links
            new.rename(path)
    finally:
        new.unlink(missing_ok=True)


def _require_a_database(path: Path) -> None:
    """Refuse a file that was cut off: to SQLite one without a first page is a new database."""
    size = path.stat().st_size
    if size < _SMALLEST_PAGE:
        raise CorruptDatabaseError(
            f"{path} is cut off: of a database only {size} bytes are left. Stop Strop and `strop restore` a "
            "backup, or delete the file to begin anew."
        )


def _connect(path: Path, *, read_only: bool = False) -> sqlite_utils.Database:
    # isolation_level None: the driver opens no transactions of its own.
    connection = sqlite3.connect(
        f"{path.resolve().as_uri()}?mode={'ro' if read_only else 'rw'}",
        uri=True,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=CACHED_STATEMENTS,
    )
    db = sqlite_utils.Database(connection, recursive_triggers=False, execute_plugins=False)
    for pragma in (
        "foreign_keys=ON",
        "synchronous=FULL",
        "secure_delete=ON",
        "temp_store=MEMORY",
        f"cache_size=-{READER_CACHE_KIB if read_only else WRITER_CACHE_KIB}",
    ):
        connection.execute(f"PRAGMA {pragma}")
    if read_only:
        connection.execute("PRAGMA query_only=ON")
    return db


def _enter_wal(db: sqlite_utils.Database) -> None:
    """Switch to WAL mode. SQLite does not wait for the lock this needs, so we do."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            db.conn.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if primary_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
