"""Where pictures are drawn: in one thread beside the event loop, one after the other, each with a deadline.

A thread and no process: a picture takes 20 to 35 ms of processor time, of which the longest step that holds
the interpreter takes 5 ms, while a child process would take ten times as long to start.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import structlog

from bot.charts.picture import Picture

#: Whoever waits longer, because many ask at once, gets the text alone.
DEADLINE_S = 5.0

_log = structlog.get_logger(__name__)


class Studio:
    """Draws pictures; `stop` when nobody asks any more."""

    def __init__(self, deadline_s: float = DEADLINE_S) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="charts")
        self._deadline_s = deadline_s

    async def picture(self, draw: Callable[[], Picture]) -> Picture | None:
        """Return what `draw` makes in the caller's language; None where it failed or took too long."""
        loop, context = asyncio.get_running_loop(), contextvars.copy_context()
        started = loop.time()
        try:
            async with asyncio.timeout(self._deadline_s):
                made = await loop.run_in_executor(self._thread, context.run, draw)
        except Exception as error:  # A picture's boundary: the text says everything, and goes out without it.
            _log.exception("picture.not_drawn", error=type(error).__name__)
            return None
        duration_ms = round((loop.time() - started) * 1000)
        _log.info("picture.drawn", name=made.name, size_bytes=len(made.png), duration_ms=duration_ms)
        return made

    async def stop(self) -> None:
        """Let go of the thread; what waits is not drawn any more."""
        self._thread.shutdown(wait=False, cancel_futures=True)
