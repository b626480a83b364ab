"""Who the operators are, read anew every hour: who left the application's team decides nothing any more."""

from __future__ import annotations

import asyncio

from bot.client import StropClient

READ_EVERY_S = 3600.0


class TeamReader:
    """Asks Discord now and then who owns the application."""

    def __init__(self, app: StropClient, every_s: float = READ_EVERY_S) -> None:
        self._app = app
        self._every_s = every_s
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, unless strop.toml names the operators."""
        if self._task is None and not self._app.services.config.discord.operators:
            self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            await self._app.read_application()
