"""Events that the database could not take: remembered in their order, and handled as soon as it can.

That a message was deleted or reworded, or a channel closed, Discord tells once; the next session, which
compares everything, may be weeks away.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from storage.errors import DatabaseError

TRY_AGAIN_S = 20.0
MOST_OWED = 10_000
Handler = Callable[..., Coroutine[Any, Any, object]]

_log = structlog.get_logger(__name__)


class UnstoredEvents:
    """Stands between the events and what stores them; beyond MOST_OWED, ``compare_all`` finds the rest."""

    def __init__(
        self,
        compare_all: Callable[[], object],
        *,
        try_again_s: float = TRY_AGAIN_S,
        most_owed: int = MOST_OWED,
    ) -> None:
        self._compare_all = compare_all
        self._try_again_s = try_again_s
        self._most_owed = most_owed
        self._owed: deque[tuple[Handler, tuple[Any, ...]]] = deque()
        self._too_many = False
        self._task: asyncio.Task[None] | None = None

    def kept(self, handler: Handler) -> Handler:
        """Return a handler that remembers what can't be stored; what comes after it waits behind it."""

        async def keep(*event: Any) -> None:
            if self._owed:
                return self._owe(handler, event)
            try:
                await handler(*event)
            except DatabaseError as error:
                _log.warning("event.not_stored", error=type(error).__name__)
                self._owe(handler, event)

        return keep

    async def stop(self) -> None:
        """End the waiting; the next session compares everything."""
        if self._task is not None:
            self._task.cancel()

    def _owe(self, handler: Handler, event: tuple[Any, ...]) -> None:
        if len(self._owed) < self._most_owed:
            self._owed.append((handler, event))
        else:
            self._too_many = True
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._make_up())

    async def _make_up(self) -> None:
        made_up = 0
        while self._owed:
            await asyncio.sleep(self._try_again_s)
            try:
                made_up += await self._pay()
            except DatabaseError as error:
                _log.info("events.still_not_stored", events_owed=len(self._owed), error=type(error).__name__)
        _log.info("events.made_up", count=made_up, compared_all=self._too_many)
        if self._too_many:
            self._too_many = False
            self._compare_all()

    async def _pay(self) -> int:
        paid = 0
        while self._owed:
            handler, event = self._owed[0]
            try:
                await handler(*event)
            except DatabaseError:
                raise
            except Exception:  # An event's boundary: the others are handled all the same.
                _log.exception("event.failed")
            self._owed.popleft()
            paid += 1
        return paid
