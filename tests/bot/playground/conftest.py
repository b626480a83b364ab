import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import discord
import pytest
import yarl
from discord.gateway import DiscordWebSocket
from discord.http import Route

from bot.playground.server import Playground, PlaygroundSettings


class Recorder(discord.Client):
    """An unmodified discord.py client that notes what happens to it."""

    def __init__(self, intents: discord.Intents | None = None) -> None:
        super().__init__(intents=intents or discord.Intents.all(), guild_ready_timeout=0.1)
        self.tree = discord.app_commands.CommandTree(self)
        self.happened: list[str] = []
        self.messages: asyncio.Queue[discord.Message] = asyncio.Queue()
        self.reactions: asyncio.Queue[discord.RawReactionActionEvent] = asyncio.Queue()
        self.resumed = asyncio.Event()

    def dispatch(self, event: str, /, *args: object, **kwargs: object) -> None:
        self.happened.append(event)
        super().dispatch(event, *args, **kwargs)

    async def before_identify_hook(self, shard_id: int | None, *, initial: bool = False) -> None:
        """discord.py's public hook; its default waits 5 s before a second IDENTIFY."""

    async def on_message(self, message: discord.Message) -> None:
        if message.author != self.user:
            await self.messages.put(message)

    async def on_raw_reaction_add(self, payload: discord.RawReactionActionEvent) -> None:
        await self.reactions.put(payload)

    async def on_resumed(self) -> None:
        self.resumed.set()


Connect = Callable[..., Awaitable[Recorder]]


@asynccontextmanager
async def connected(client: discord.Client, playground: Playground) -> AsyncIterator[discord.Client]:
    """Run a client against the playground until the block ends; it is ready inside.

    Afterwards other tests find discord.py's own addresses again.
    """
    own = Route.BASE, DiscordWebSocket.DEFAULT_GATEWAY
    Route.BASE = playground.api_url
    DiscordWebSocket.DEFAULT_GATEWAY = yarl.URL(playground.gateway_url)
    await client.login(playground.token)
    running = asyncio.create_task(client.connect())
    ready = asyncio.create_task(client.wait_until_ready())
    try:
        done, _ = await asyncio.wait({running, ready}, timeout=60, return_when=asyncio.FIRST_COMPLETED)
        if running in done:
            running.result()
        ready.result()
        yield client
    finally:
        ready.cancel()
        await client.close()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        Route.BASE, DiscordWebSocket.DEFAULT_GATEWAY = own


@pytest.fixture(autouse=True)
def real_addresses_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests must find discord.py's own addresses."""
    monkeypatch.setattr(Route, "BASE", Route.BASE)
    monkeypatch.setattr(DiscordWebSocket, "DEFAULT_GATEWAY", DiscordWebSocket.DEFAULT_GATEWAY)


@pytest.fixture
async def playground() -> AsyncIterator[Playground]:
    async with Playground(PlaygroundSettings()) as running:
        yield running


@pytest.fixture
async def client(playground: Playground) -> AsyncIterator[Recorder]:
    async with connected(Recorder(), playground) as running:
        assert isinstance(running, Recorder)
        yield running


async def until(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Wait for something that another task brings about."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - the condition is another task's, without an event
            await asyncio.sleep(0.01)
