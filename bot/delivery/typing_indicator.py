"""The typing indicator before a reply's first message."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import Any

import structlog

_log = structlog.get_logger(__name__)


class TypingIndicator:
    """Shows that the bot is about to write, where Discord lets us; it never delays the reply, and may fail.

    Use it as a context manager, and `end` it once words are there: Discord shows it for ten seconds after it
    was last asked to, and takes it away by itself only when a new message comes.
    """

    def __init__(self, typing: AbstractAsyncContextManager[Any]) -> None:
        self._typing = typing
        self._showing: asyncio.Task[bool] | None = None

    async def __aenter__(self) -> TypingIndicator:
        self._showing = asyncio.create_task(self._show())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.end()

    async def end(self) -> None:
        """Show it no longer; a second time changes nothing."""
        showing, self._showing = self._showing, None
        if showing is None:
            return
        showing.cancel()
        await asyncio.wait({showing})
        if not showing.cancelled() and showing.result():
            await self._typing.__aexit__(None, None, None)

    async def _show(self) -> bool:
        try:
            await self._typing.__aenter__()
        except Exception as error:  # The boundary to discord.py's typing task.
            _log.debug("typing.failed", error=type(error).__name__)
            return False
        return True
