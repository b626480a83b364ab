"""The typing indicator beside a reply that is being written."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import structlog

_log = structlog.get_logger(__name__)


@contextlib.asynccontextmanager
async def beside(typing: AbstractAsyncContextManager[Any]) -> AsyncIterator[None]:
    """Show the typing indicator where Discord lets us; it never delays the reply, and may fail."""

    async def show() -> bool:
        try:
            await typing.__aenter__()
        except Exception as error:  # The boundary to discord.py's typing task.
            _log.debug("typing.failed", error=type(error).__name__)
            return False
        return True

    showing = asyncio.create_task(show())
    try:
        yield
    finally:
        showing.cancel()
        await asyncio.wait({showing})
        if not showing.cancelled() and showing.result():
            await typing.__aexit__(None, None, None)
