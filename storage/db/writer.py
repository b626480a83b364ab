"""The one thread of a process that writes, and what shares a transaction.

With `synchronous=FULL` each commit waits for the disk, which takes longer than what it commits. So the writes
that wait meanwhile are committed together next, each in a savepoint of its own: one that fails is taken back
alone. A write is acknowledged after the COMMIT that it is in, and not before.
"""

import contextlib
import contextvars
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import sqlite_utils

from storage.db.sqlite_errors import translate_errors
from storage.errors import DatabaseClosedError

T = TypeVar("T")

WAITING_WRITES = 1_024
# While they are carried out, other processes wait to write: 64 of the bot's take about 30 ms.
TOGETHER = 64


@dataclass(frozen=True, slots=True)
class _Write:
    """Work that needs a transaction, in the context of whoever asked for it."""

    work: Callable[[sqlite_utils.Database], Any]
    context: contextvars.Context
    done: Future[Any]

    def run(self, db: sqlite_utils.Database) -> Any:
        return self.context.run(self.work, db)


@dataclass(frozen=True, slots=True)
class _Task:
    """Something else that needs the writing connection, outside of every transaction."""

    work: Callable[[sqlite_utils.Database], Any]
    done: Future[Any]


_Item: TypeAlias = _Write | _Task | None


class Writer:
    """Carries out writes in the order in which they came, on a connection that is its own."""

    def __init__(self, path: Path, db: sqlite_utils.Database) -> None:
        self._path = path
        self._db = db
        self._queue: queue.Queue[_Item] = queue.Queue(WAITING_WRITES)
        # At most one: what was taken from the queue and comes after a batch.
        self._held: list[_Item] = []
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="strop-write", daemon=True)
        self._thread.start()

    def write(self, work: Callable[[sqlite_utils.Database], T], *, block: bool = True) -> Future[T]:
        """Queue work for a transaction.

        Raises:
            DatabaseClosedError: after `close`; queue.Full: the queue is, and `block` is False.
        """
        done: Future[T] = Future()
        self._submit(_Write(work, contextvars.copy_context(), done), block=block)
        return done

    def task(self, work: Callable[[sqlite_utils.Database], T]) -> Future[T]:
        """Queue what has to be done between two transactions; raises DatabaseClosedError."""
        done: Future[T] = Future()
        self._submit(_Task(work, done), block=True)
        return done

    def close(self) -> None:
        """Finish what was accepted, then close the connection."""
        self._closed = True
        self._queue.put(None)
        self._thread.join()
        self._refuse_leftovers()
        self._db.close()

    def _submit(self, item: _Write | _Task, *, block: bool) -> None:
        if threading.current_thread() is self._thread:
            raise RuntimeError("a write may not start another write; compose the domain functions instead")
        if self._closed:
            raise DatabaseClosedError(f"{self._path} is closed.")
        self._queue.put(item, block=block)
        if not self._thread.is_alive():  # closed by another thread in between
            self._refuse_leftovers()

    def _refuse_leftovers(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                item = self._queue.get_nowait()
                if item is not None:
                    item.done.set_exception(DatabaseClosedError(f"{self._path} is closed."))

    def _loop(self) -> None:
        while (item := self._next()) is not None:
            if isinstance(item, _Task):
                self._carry_out(item)
            else:
                self._commit(self._with_those_waiting(item))
            del item  # what it holds may be a member's words

    def _next(self) -> _Item:
        return self._held.pop() if self._held else self._queue.get()

    def _with_those_waiting(self, first: _Write) -> list[_Write]:
        """Return the writes that come next, without waiting for any."""
        batch = [first]
        with contextlib.suppress(queue.Empty):
            while len(batch) < TOGETHER:
                item = self._queue.get_nowait()
                if not isinstance(item, _Write):
                    self._held.append(item)
                    break
                batch.append(item)
        return batch

    def _carry_out(self, task: _Task) -> None:
        try:
            with translate_errors(self._path):
                result = task.work(self._db)
        except BaseException as error:  # the caller's to handle: this thread must outlive it
            task.done.set_exception(error)
        else:
            task.done.set_result(result)

    def _commit(self, batch: Sequence[_Write]) -> None:
        """Carry out writes in one transaction; acknowledge them once it is on disk."""
        results: list[tuple[Future[Any], Any]] = []
        try:
            with translate_errors(self._path):
                begin(self._db)
                for write in batch:
                    if len(batch) == 1:
                        results.append((write.done, write.run(self._db)))
                    else:
                        results += self._in_savepoint(write)
                self._db.conn.execute("COMMIT")
        except BaseException as error:  # as above
            if self._db.conn.in_transaction:
                self._db.conn.execute("ROLLBACK")
            for write in batch:
                if not write.done.done():
                    write.done.set_exception(error)
        else:
            for done, result in results:
                done.set_result(result)

    def _in_savepoint(self, write: _Write) -> list[tuple[Future[Any], Any]]:
        """Carry out one write among several; one that fails is taken back alone, and its caller told."""
        self._db.conn.execute("SAVEPOINT one_write")
        result = []
        try:
            with translate_errors(self._path):
                result = [(write.done, write.run(self._db))]
        except BaseException as error:
            if not self._db.conn.in_transaction:
                raise  # SQLite has taken back everything, as it may where a disk is full
            self._db.conn.execute("ROLLBACK TO one_write")
            write.done.set_exception(error)
        self._db.conn.execute("RELEASE one_write")
        return result


def begin(db: sqlite_utils.Database) -> None:
    """Begin to write: a deferred BEGIN that reads first would fail where another process writes meanwhile."""
    db.conn.execute("BEGIN IMMEDIATE")
