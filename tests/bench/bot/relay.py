"""Between the bot and its model server: passes every byte on, and notes when chats begin and first speak."""

from __future__ import annotations

import contextlib
import json
import re
import time
from dataclasses import dataclass

import aiohttp
from aiohttp import web

_FIRST_WORDS = re.compile(rb'"content": ?"[^"]')
_PASSED_ON = ("Content-Type", "Retry-After")


@dataclass
class Exchange:
    """One chat request: when it came in, and when the server's first words came back (monotonic seconds)."""

    asked_at: float
    spoke_at: float | None = None

    @property
    def thought_s(self) -> float | None:
        """The engine's own time to its first words."""
        return None if self.spoke_at is None else self.spoke_at - self.asked_at


class Relay:
    """Serves on a free port of this machine; ``exchanges`` are by the last message of their prompt."""

    def __init__(self, target: str) -> None:
        self.base_url = ""
        self.exchanges: dict[str, Exchange] = {}
        self._target = target
        self._runner: web.AppRunner | None = None
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Relay:
        app = web.Application(client_max_size=2**24)
        app.router.add_route("*", "/{path:.*}", self._pass)
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None)
        )
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.base_url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
        if self._http is not None:
            await self._http.close()

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        now, body = time.monotonic(), await request.read()
        exchange = None
        if request.path == "/v1/chat/completions":
            exchange = self.exchanges[json.loads(body)["messages"][-1]["content"]] = Exchange(now)
        if self._http is None:
            raise web.HTTPServiceUnavailable
        url = self._target + request.path_qs
        headers = {"Content-Type": request.content_type}
        async with self._http.request(request.method, url, data=body, headers=headers) as answer:
            kept = {name: answer.headers[name] for name in _PASSED_ON if name in answer.headers}
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(request)
            with contextlib.suppress(ConnectionError):  # A bot that stops a reply hangs up.
                async for chunk in answer.content.iter_any():
                    if exchange is not None and exchange.spoke_at is None and _FIRST_WORDS.search(chunk):
                        exchange.spoke_at = time.monotonic()
                    await response.write(chunk)
        return response
