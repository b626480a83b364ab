"""The bot as a process of its own; Discord's stand-in and the model server in the test's, with every knob."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bot.playground.discord import community
from bot.playground.server import Playground, PlaygroundSettings
from storage.chat import replies
from storage.db import key_values
from storage.db.database import Database
from storage.feedback import ratings
from tests.bot.fake_server import FakeModelServer
from tests.e2e.forked_bot import BotForks, ForkedBot

YOU = community.OWNER.user_id
ADA = community.PEOPLE[1].user_id
GENERAL = community.GENERAL_ID

Payload = dict[str, Any]
Process = subprocess.Popen[bytes] | ForkedBot


@dataclass
class StandIn:
    """What Discord, the model and the database see of one bot process."""

    home: Path
    playground: Playground
    model: FakeModelServer
    database: Database
    environment: dict[str, str]
    process: Process | None = None
    others: dict[int, Process] = field(default_factory=dict)
    forks: BotForks | None = None
    events: list[tuple[str, Payload]] = field(default_factory=list)

    @property
    def gateway(self) -> Any:
        return self.playground.gateway

    @property
    def log(self) -> str:
        return (self.home / "bot.log").read_text("utf-8", "replace")

    def lines(self, event: str) -> list[Payload]:
        """The bot's log lines of one event."""
        rows = [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]
        return [row for row in rows if row.get("event") == event]

    async def start_bot(self, shards: int = 1) -> None:
        before = len(self.lines("gateway.ready")) if self.process is not None else 0
        self.process = self._spawn()
        await self.until(lambda: len(self.lines("gateway.ready")) > before)
        assert sum(session.connection is not None for session in self.gateway.sessions.values()) == shards

    def _spawn(self, name: str = "bot", *arguments: str) -> Process:
        if self.forks is not None:
            return self.forks.start(self.home, self.environment, name, arguments)
        with (self.home / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "bot", "--config", str(self.home / "strop.toml"), *arguments],
                env=self.environment,
                stdout=log,
                stderr=log,
            )

    async def start_process(self, number: int) -> Process:
        """Start one of the bot's further processes (`discord.processes`), which has a log of its own."""
        log = self.home / f"bot-{number}.log"
        before = log.read_text("utf-8").count('"gateway.ready"') if log.exists() else 0
        self.others[number] = self._spawn(f"bot-{number}", "--process", str(number))
        await self.until(lambda: log.read_text("utf-8").count('"gateway.ready"') > before)
        return self.others[number]

    async def stop_bot(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return await asyncio.to_thread(self.process.wait, 60)

    def ask(self, text: str, who: int = YOU, channel: int = GENERAL) -> int:
        message = f"<@{community.BOT_ID}> {text}"
        return int(self.playground.backend.send_message(channel, who, message)["id"])

    def react(self, message_id: int, who: int, emoji: str = "👍", channel: int = GENERAL) -> None:
        self.playground.backend.set_reaction(channel, message_id, who, emoji, reacted=True)

    def said(self, channel: int = GENERAL) -> list[Payload]:
        """What everybody sees of the bot in a channel, oldest first."""
        history = self.playground.backend.history(500)[str(channel)]
        return [m for m in history if m["author"].get("bot") and not m["flags"] & 64]

    async def answered(self, text: str, channel: int = GENERAL, times: int = 1) -> list[Payload]:
        """Wait until the bot's last messages in a channel say ``text``, and nothing is being written."""

        def found() -> list[Payload] | None:
            last = self.said(channel)[-times:]
            done = len(last) == times and all(message["content"] == text for message in last)
            rows = self.replies()
            return last if done and all(row.status != "streaming" for row in rows) else None

        return await self.until(found)

    def replies(self) -> list[replies.Reply]:
        return self.database.read(lambda db: replies.recent(db, 0, 500))[::-1]

    def fact(self, name: str) -> str | None:
        return self.database.read(lambda db: key_values.get(db, name))

    def standing(self) -> list[tuple[int, int]]:
        """Who rates what: (user, value) of every rating that stands."""
        rows = [each for reply in self.replies() for each in self._ratings(reply.id)]
        return sorted((row.user_id, row.value) for row in rows if not row.retracted)

    def _ratings(self, reply_id: str) -> list[ratings.Rating]:
        return self.database.read(lambda db: ratings.list_for_reply(db, reply_id))

    async def told(self, words: str) -> str:
        """Wait for a private answer with these words in it."""

        def found() -> str | None:
            hidden = [
                data
                for event, data in self.events
                if event.startswith("MESSAGE_") and data.get("flags", 0) & 64
            ]
            return next((data["content"] for data in hidden if words in (data.get("content") or "")), None)

        return await self.until(found)

    async def until(self, check: Callable[[], Any], timeout_s: float = 120.0) -> Any:
        ends_at = time.monotonic() + timeout_s
        while not (found := check()):
            alive = self.process is not None and self.process.poll() is None
            assert alive, f"the bot ended:\n{self.log[-4000:]}"
            assert time.monotonic() < ends_at, f"it never came:\n{self.log[-4000:]}"
            await asyncio.sleep(0.05)
        return found


def add_channel(playground: Playground, name: str, guild_id: int = community.GUILD_ID) -> int:
    """Open one more text channel."""
    return int(playground.backend._backend.create_channel(guild_id, name).id)


def add_guild(playground: Playground, guild_id: int) -> int:
    """Found a second server, with the same owner, Ada and the bot in it; return its channel."""
    backend = playground.backend._backend
    backend.create_guild("The other server", id=guild_id, owner_id=YOU)
    backend.add_member(guild_id, ADA)
    return add_channel(playground, "other", guild_id)


@asynccontextmanager
async def stand_in(
    home: Path, settings: str = "", *, middleware: Any = None, **playground: Any
) -> AsyncIterator[StandIn]:
    """Stand-in, model server and database, without a bot yet; whatever was started ends with the block.

    ``middleware`` (aiohttp's) sees every request that the bot makes, to Discord and to the model server.
    """
    (home / "strop.toml").write_text(settings)
    model = FakeModelServer()
    model.middlewares += [middleware] if middleware else []
    await model.start()
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("DISCORD_", "STROP_"))}
    (home / "strop.toml").write_text(f'{settings}\n[server]\nbase_url = "{model.base_url}"\n')
    async with AsyncExitStack() as stack:
        stack.push_async_callback(model.stop)
        data = home / "playground"
        database = stack.enter_context(Database.open(data / "strop.db"))
        discord = Playground(PlaygroundSettings(**playground))
        if middleware:
            discord.app.middlewares.append(middleware)
        running = await stack.enter_async_context(discord)
        run = data / "run"
        run.mkdir(parents=True)
        addresses = {"api": running.api_url, "gateway": running.gateway_url, "token": running.token}
        (run / "playground.json").write_text(json.dumps(addresses))
        environment = {**kept, "STROP_HOME": str(home), "STROP_PLAYGROUND": "1"}
        made = StandIn(home, running, model, database, environment)
        running.backend.on_page_event(lambda event, data: made.events.append((event, data)))
        try:
            yield made
        finally:
            started = [made.process] if made.process is not None else []
            for process in [*started, *made.others.values()]:
                if process.poll() is None:
                    process.kill()
                process.wait()
