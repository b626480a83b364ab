"""Ratings that came while the database could not take them: remembered by their message, and made up for.

What they say is read from Discord once more, so that a message is all there is to remember. Beyond MOST_OWED
messages all recent replies are compared.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from storage.errors import StorageError

TRY_AGAIN_S = 20.0
MOST_OWED = 10_000

_log = structlog.get_logger(__name__)


class UnstoredRatings:
    """Stands between the events and what stores them."""

    def __init__(
        self,
        compare: Callable[[int], Awaitable[int]],
        compare_all: Callable[[], Awaitable[int]],
        *,
        try_again_s: float = TRY_AGAIN_S,
        most_owed: int = MOST_OWED,
    ) -> None:
        self._compare = compare
        self._compare_all = compare_all
        self._try_again_s = try_again_s
        self._most_owed = most_owed
        self._owed: dict[int, None] = {}
        self._too_many = 0
        self._task: asyncio.Task[None] | None = None

    async def keep(self, handler: Callable[[Any], Awaitable[None]], event: Any) -> None:
        """Handle an event; where the database can't take it, make up for it as soon as it can."""
        try:
            await handler(event)
        except StorageError as error:
            self._owe(event.message_id, error)

    async def stop(self) -> None:
        """End the waiting; the next session compares all recent replies."""
        if self._task is not None:
            self._task.cancel()

    def _owe(self, message_id: int, error: StorageError) -> None:
        if message_id in self._owed or len(self._owed) < self._most_owed:
            self._owed[message_id] = None
        else:
            self._too_many += 1
        _log.warning("rating.not_stored", messages_owed=len(self._owed), error=type(error).__name__)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._make_up())

    async def _make_up(self) -> None:
        recovered = 0
        while self._owed or self._too_many:
            await asyncio.sleep(self._try_again_s)
            try:
                recovered += await self._pay()
            except StorageError as error:
                _log.info(
                    "rating.still_not_stored", messages_owed=len(self._owed), error=type(error).__name__
                )
        _log.info("ratings.made_up", recovered=recovered)

    async def _pay(self) -> int:
        recovered = 0
        for message_id in list(self._owed):
            recovered += await self._compare(message_id)
            self._owed.pop(message_id, None)
        if self._too_many:
            recovered += await self._compare_all()
            self._too_many = 0
        return recovered
