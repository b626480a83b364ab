"""How often the bot may sign in at Discord."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import structlog

from bot.errors import IdentifyBudgetError
from storage.db import key_values
from storage.db.clock import now_ms
from storage.db.database import Connection, Database

IDENTIFIES_PER_HOUR = 20
"""Discord resets the token of a bot that signs in more than 1,000 times a day; this is half of that."""

FREE_IDENTIFIES = 6
"""So many sign-ins in an hour wait for nothing: a few restarts. Each later one waits twice as long."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 10.0, 300.0
HOUR_MS = 3_600_000
_FACT = "gateway.identifies"
# discord.py gives a connection attempt 60 s, this wait included.
_HOOK_WAIT_S = 45.0

_log = structlog.get_logger(__name__)


class IdentifyBudget:
    """Counts the gateway sign-ins of the last hour, across restarts, and holds back what is too many.

    With several ``shards`` one start takes as many sign-ins, so that an hour always has room for two starts.
    """

    def __init__(self, database: Database, limit: int = IDENTIFIES_PER_HOUR, shards: int = 1) -> None:
        self._database = database
        self._limit = limit if shards == 1 else max(limit, 2 * shards)
        self._shards = shards

    async def wait_s(self) -> float:
        """Return the seconds until the next sign-in is allowed; 0.0 means now."""
        now = now_ms()
        used = await self._database.aread(lambda db: _recent(key_values.get(db, _FACT), now))
        allowed_ms = used[-1] + round(1000 * _pause_s(len(used) // self._shards)) if used else now
        if len(used) >= self._limit:
            allowed_ms = max(allowed_ms, used[-self._limit] + HOUR_MS)
        return max(0.0, (allowed_ms - now) / 1000)

    async def wait(self) -> None:
        """Wait, however long, until a sign-in is allowed."""
        while (wait_s := await self.wait_s()) > 0:
            _log.warning("gateway.sign_in_waits", limit_per_hour=self._limit, wait_s=round(wait_s))
            await asyncio.sleep(min(wait_s, 300.0))

    async def spend(self) -> None:
        """Record one sign-in, after a short wait if need be; raises IdentifyBudgetError for a long one."""
        wait_s = await self.wait_s()
        if wait_s > 0:
            await asyncio.sleep(min(wait_s, _HOOK_WAIT_S))
        if wait_s > _HOOK_WAIT_S:
            raise IdentifyBudgetError(
                f"There were many gateway sign-ins in the last hour; the next may come in {wait_s:.0f} s."
            )

        def record(db: Connection) -> None:
            used = [*_recent(key_values.get(db, _FACT), now_ms()), now_ms()]
            key_values.put(db, _FACT, json.dumps(used[-4 * self._limit :]))

        await self._database.awrite(record)


def _pause_s(used: int) -> float:
    """Return how long the next sign-in keeps away from the last one, after so many in an hour."""
    beyond = used - FREE_IDENTIFIES
    return 0.0 if beyond < 0 else min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(beyond, 30))


def _recent(stored: str | None, now: int) -> Sequence[int]:
    try:
        moments = [int(moment) for moment in json.loads(stored or "[]")]
    except (ValueError, TypeError):
        return []
    return [moment for moment in moments if 0 <= now - moment < HOUR_MS]
