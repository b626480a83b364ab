"""Events that the database could not take: remembered in their order, and made up for as soon as it can.

That a message was deleted or reworded, or a channel closed, Discord tells once; the next session, which
compares everything, may be weeks away. What ratings say can be read from Discord once more, so that of those
the message is all there is to remember.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from functools import partial
from typing import Any

import structlog

from storage.errors import DatabaseError

TRY_AGAIN_S = 20.0
MOST_OWED = 10_000
Handler = Callable[..., Coroutine[Any, Any, object]]

# What is owed where more events came than are remembered.
_EVERYTHING = "everything"

_log = structlog.get_logger(__name__)


class UnstoredEvents:
    """Stands between events and what stores them; beyond MOST_OWED, ``compare_all`` finds the rest."""

    def __init__(
        self,
        compare_all: Callable[[], Awaitable[object]],
        *,
        try_again_s: float = TRY_AGAIN_S,
        most_owed: int = MOST_OWED,
    ) -> None:
        self._compare_all = compare_all
        self._try_again_s = try_again_s
        self._most_owed = most_owed
        self._owed: dict[Hashable, Callable[[], Awaitable[object]]] = {}
        self._task: asyncio.Task[None] | None = None

    def kept(self, handler: Handler) -> Handler:
        """Return a handler that remembers what can't be stored; what comes after it waits behind it."""

        async def keep(*event: Any) -> None:
            pay = partial(handler, *event)
            if self._owed:
                return self._owe(object(), pay)
            try:
                await pay()
            except DatabaseError as error:
                _log.warning("event.not_stored", error=type(error).__name__)
                self._owe(object(), pay)

        return keep

    def compared(self, handler: Handler, compare: Callable[[int], Awaitable[object]]) -> Handler:
        """Return a handler of events of messages; those of which one can't be stored are compared later."""

        async def keep(event: Any) -> None:
            try:
                await handler(event)
            except DatabaseError as error:
                _log.warning("event.not_stored", error=type(error).__name__)
                self._owe(event.message_id, partial(compare, event.message_id))

        return keep

    async def stop(self) -> None:
        """End the waiting; the next session compares everything."""
        if self._task is not None:
            self._task.cancel()

    def _owe(self, key: Hashable, pay: Callable[[], Awaitable[object]]) -> None:
        if key in self._owed or len(self._owed) < self._most_owed:
            self._owed[key] = pay
        else:
            self._owed[_EVERYTHING] = partial(self._compare_all)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._make_up())

    async def _make_up(self) -> None:
        while self._owed:
            await asyncio.sleep(self._try_again_s)
            try:
                await self._pay()
            except DatabaseError as error:
                _log.info("events.still_not_stored", owed=len(self._owed), error=type(error).__name__)

    async def _pay(self) -> None:
        paid = 0
        while self._owed:
            key, pay = next(iter(self._owed.items()))
            await _logged(pay)
            paid += 1
            # Unless it is owed anew, since another event of the message came in between.
            if self._owed[key] is pay:
                self._owed.pop(key)
        _log.info("events.made_up", count=paid)


async def _logged(pay: Callable[[], Awaitable[object]]) -> None:
    """Make up for an event; only that the database can't take it yet is the caller's matter."""
    try:
        await pay()
    except DatabaseError:
        raise
    except Exception:  # An event's boundary: the others are handled all the same.
        _log.exception("event.failed")
