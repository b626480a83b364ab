"""The page's event stream: a snapshot first, then every event, over one WebSocket for each open page."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

from aiohttp import WSMsgType, web

from bot.dashboard.guards import is_secret
from bot.playground.discord.backend import Payload

#: Events waiting for a slow page before it is cut off.
MAX_QUEUED_EVENTS = 2000
SECRET_WAIT_S = 10.0


class EventStream:
    """Sends to every open page; who doesn't know the page's secret is sent nothing."""

    def __init__(self, secret: str, snapshot: Callable[[], Payload]) -> None:
        self._secret = secret
        self._snapshot = snapshot
        self._pages: set[asyncio.Queue[str | None]] = set()

    def knows_secret(self, given: object) -> bool:
        """Whether this is the secret that is embedded in the served page."""
        return is_secret(given, self._secret)

    def publish(self, frame: Payload) -> None:
        """Queue a frame for every open page."""
        if not self._pages:
            return
        text = json.dumps(frame)
        for queue in self._pages:
            _put(queue, text)

    def close(self) -> None:
        """End every event stream, so that the server can stop."""
        for queue in self._pages:
            _put(queue, None)

    async def serve(self, request: web.Request) -> web.WebSocketResponse:
        """Serve one page until it leaves."""
        socket = web.WebSocketResponse(max_msg_size=1 << 16, heartbeat=30.0)
        await socket.prepare(request)
        if not await self._introduced(socket):
            await socket.close(code=4403, message=b"reload the page")
            return socket
        queue: asyncio.Queue[str | None] = asyncio.Queue(MAX_QUEUED_EVENTS)
        queue.put_nowait(json.dumps(self._snapshot()))
        self._pages.add(queue)
        sender = asyncio.create_task(_send_events(socket, queue))
        try:
            async for _ in socket:
                pass  # The page only listens; reading notices when it leaves.
        finally:
            self._pages.discard(queue)
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)
        return socket

    async def _introduced(self, socket: web.WebSocketResponse) -> bool:
        """Whether the first message carries the secret (a browser can't set headers on a WebSocket)."""
        try:
            message = await socket.receive(timeout=SECRET_WAIT_S)
            first = json.loads(message.data) if message.type is WSMsgType.TEXT else None
        except (TimeoutError, ValueError):
            return False
        return isinstance(first, dict) and self.knows_secret(first.get("secret"))


async def _send_events(socket: web.WebSocketResponse, queue: asyncio.Queue[str | None]) -> None:
    while (text := await queue.get()) is not None:
        try:
            await socket.send_str(text)
        except (ConnectionError, RuntimeError):
            return
    await socket.close(code=1001, message=b"the playground stopped or the page was too slow")


def _put(queue: asyncio.Queue[str | None], text: str | None) -> None:
    """Queue a frame; a page too slow to follow is cut off, and reloads its snapshot when it comes back."""
    if queue.full():
        while not queue.empty():
            queue.get_nowait()
        text = None
    queue.put_nowait(text)
