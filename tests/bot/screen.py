"""A surface that a reply is rendered on, without a Discord behind it."""

from __future__ import annotations

import asyncio
from typing import Any

from bot.delivery.streaming import KEEP
from bot.errors import MessageGoneError


class Screen:
    """What a channel shows; calls can be slow, fail, or be refused."""

    def __init__(self, first_id: int = 100) -> None:
        self.first_id = first_id
        self.messages: dict[int, str] = {}
        self.calls: list[tuple[str, str]] = []
        self.at: list[float] = []
        self.failures: list[Exception] = []
        self.delay_s = 0.0
        # Nothing is answered before it is set.
        self.gate: asyncio.Event | None = None
        self.gone: set[int] = set()

    async def _call(self, kind: str, content: str) -> None:
        self.calls.append((kind, content))
        self.at.append(asyncio.get_running_loop().time())
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        if self.gate is not None:
            await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)

    async def send(self, content: str, buttons: Any = None) -> int:
        await self._call("send", content)
        message_id = self.first_id + len(self.messages)
        self.messages[message_id] = content
        return message_id

    async def edit(self, message_id: int, content: str, buttons: Any = KEEP) -> None:
        if message_id in self.gone:
            raise MessageGoneError("gone")
        await self._call("edit", content)
        self.messages[message_id] = content

    async def delete(self, message_id: int) -> None:
        await self._call("delete", "")
        del self.messages[message_id]


class Parts:
    """The note that is kept of a reply's messages: `sent_parts` holds (message id, position)."""

    def __init__(self) -> None:
        self.sent_parts: list[tuple[int, int]] = []

    async def sending(self, position: int) -> None:
        pass

    async def record_sent(self, message_id: int, position: int) -> None:
        self.sent_parts.append((message_id, position))

    async def withdrawing(self, message_id: int) -> None:
        pass

    async def withdrawn(self, message_id: int) -> None:
        self.sent_parts = [part for part in self.sent_parts if part[0] != message_id]
