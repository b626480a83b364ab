"""Waiting for a model server that is busy, loading or restarting: a run has minutes of work to lose."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from bot.serving.errors import ServerBusyError, ServerLoadingError, ServerUnavailableError
from trainer.errors import EvaluationError

T = TypeVar("T")

RETRY_S = 2.0
PATIENCE_S = 180.0


async def patiently(ask: Callable[[], Awaitable[T]], patience_s: float = PATIENCE_S) -> T:
    """Ask again while the server is busy, loading or restarting.

    Raises:
        EvaluationError: it stayed away for `patience_s` seconds.
    """
    ends_at = time.monotonic() + patience_s
    while True:
        try:
            return await ask()
        except (ServerBusyError, ServerLoadingError, ServerUnavailableError) as error:
            wait_s = max(RETRY_S, getattr(error, "retry_after_s", 0.0))
            if time.monotonic() + wait_s > ends_at:
                raise EvaluationError(f"The model server did not answer for minutes: {error}") from error
            await asyncio.sleep(wait_s)
