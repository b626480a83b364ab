"""The loop at a glance for a page: storage's word, with the model server's and the rehearsal's state."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

from bot.serving.client import ModelClient
from bot.serving.errors import ServingError
from storage.db import key_values
from storage.db.database import Connection, Database
from storage.errors import StorageError
from storage.learning import loop_status

Payload = dict[str, Any]

#: How often the page may hear of a change.
REFRESH_S = 1.0
#: How long the model server's answer about itself is good for.
HEALTH_LIFETIME_S = 2.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class LoopSources:
    """Where the loop's state comes from."""

    database: Database
    client: ModelClient
    scope: str
    trainer_is_running: Callable[[], bool]
    min_liked: int
    min_raters: int
    min_votes: int
    min_new_ratings: int


class LoopView:
    """Reads the loop's state and tells a listener whenever it has changed."""

    def __init__(self, sources: LoopSources) -> None:
        self.latest: Payload = {}
        self.base_hash = ""
        self._sources = sources
        self._server: Payload = {"status": "down", "detail": "The model server hasn't started yet."}
        self._asked_s = -HEALTH_LIFETIME_S
        self._rehearsal: Callable[[], Payload | None] = lambda: None

    def show_rehearsal(self, state: Callable[[], Payload | None]) -> None:
        """Include the state of a rehearsal."""
        self._rehearsal = state

    async def refresh(self) -> Payload:
        """Read everything now and return it."""
        await self._ask_server()
        scope, base_hash = self._sources.scope, self.base_hash

        def work(db: Connection) -> Payload:
            next_ms = key_values.get(db, key_values.NEXT_RUN)
            status = loop_status.read(
                db,
                scope,
                # While the model loads, and after an outage, it is the base that was served last.
                base_hash or key_values.get(db, key_values.SERVED_BASE) or "",
                min_liked=self._sources.min_liked,
                min_raters=self._sources.min_raters,
                min_votes=self._sources.min_votes,
            )
            due = {"at_ms": int(next_ms) if next_ms else None, "after_ratings": self._sources.min_new_ratings}
            return {**status.as_json(), "next_run": due}

        glance = await self._sources.database.aread(work)
        alive = await asyncio.to_thread(self._sources.trainer_is_running)
        self.latest = {
            **glance,
            "rehearsal": self._rehearsal(),
            "server": self._server,
            "trainer_alive": alive,
        }
        return self.latest

    async def watch(self, changed: Callable[[Payload], None]) -> None:
        """Refresh every second until cancelled, and call `changed` when something differs."""
        while True:
            before = self.latest
            try:
                now = await self.refresh()
            except StorageError as error:
                log.warning("loop_view.unreadable", error=str(error))
            except Exception:  # the loop's boundary: the panel must not freeze for good
                log.exception("loop_view.failed")
            else:
                if now != before:
                    changed(now)
            await asyncio.sleep(REFRESH_S)

    async def _ask_server(self) -> None:
        if time.monotonic() - self._asked_s < HEALTH_LIFETIME_S:
            return
        try:
            health = await self._sources.client.health()
        except ServingError as error:
            self._server = {"status": "down", "detail": str(error)}
        else:
            self._server = {"status": health.status, "detail": health.detail}
            if health.base is not None:
                self.base_hash = health.base.hash
        self._asked_s = time.monotonic()
