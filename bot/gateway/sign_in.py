"""How often the bot may sign in at Discord."""

from __future__ import annotations

import asyncio
import json
import time
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
APART_S = 5.0
"""Discord's `max_concurrency` sign-ins may come in each 5 s, and never fewer than one:

https://discord.com/developers/docs/events/gateway#session-start-limit-object
"""

HOUR_MS = 3_600_000
_FACT = "gateway.identifies"
# discord.py gives a connection attempt 60 s, this wait included.
_HOOK_WAIT_S = 45.0

_log = structlog.get_logger(__name__)


class IdentifyBudget:
    """Counts the gateway sign-ins of the last hour, across restarts, and holds back what is too many.

    With several ``shards`` one start takes as many sign-ins, so that an hour always has room for two starts.
    It belongs to the token: several ``processes`` count in one database, and take turns there.
    """

    def __init__(
        self, database: Database, limit: int = IDENTIFIES_PER_HOUR, shards: int = 1, processes: int = 1
    ) -> None:
        self._database = database
        self._limit = limit if shards == 1 else max(limit, 2 * shards)
        self._shards = shards
        # Within a process discord.py keeps them apart.
        self._apart_ms = round(1000 * APART_S) if processes > 1 else 0

    async def wait_s(self) -> float:
        """Return the seconds until the next sign-in is allowed; 0.0 means now."""
        now = now_ms()
        return self._wait_s(await self._database.aread(lambda db: _used(db, now)), now)

    def _wait_s(self, used: Sequence[int], now: int) -> float:
        pause_ms = round(1000 * _pause_s(len(used) // self._shards))
        allowed_ms = used[-1] + max(pause_ms, self._apart_ms) if used else now
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
        ends_at = time.monotonic() + _HOOK_WAIT_S
        while (wait_s := await self._database.awrite(self._take)) > 0:
            left_s = ends_at - time.monotonic()
            await asyncio.sleep(max(min(wait_s, left_s), 0.0))
            if wait_s > left_s:
                raise IdentifyBudgetError(
                    f"There were many gateway sign-ins in the last hour; the next may come in {wait_s:.0f} s."
                )

    def _take(self, db: Connection) -> float:
        """Record one sign-in where it is allowed now; else return the seconds until it is."""
        now = now_ms()
        used = _used(db, now)
        wait_s = self._wait_s(used, now)
        if wait_s == 0:
            key_values.put(db, _FACT, json.dumps([*used, now][-4 * self._limit :]))
        return wait_s


def _pause_s(used: int) -> float:
    """Return how long the next sign-in keeps away from the last one, after so many in an hour."""
    beyond = used - FREE_IDENTIFIES
    return 0.0 if beyond < 0 else min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(beyond, 30))


def _used(db: Connection, now: int) -> Sequence[int]:
    return _recent(key_values.get(db, _FACT), now)


def _recent(stored: str | None, now: int) -> Sequence[int]:
    try:
        moments = [int(moment) for moment in json.loads(stored or "[]")]
    except (ValueError, TypeError):
        return []
    return [moment for moment in moments if 0 <= now - moment < HOUR_MS]
