"""How often the bot signs in, over real sockets: as at Discord, since the playground counts nothing."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import yarl
from discord.gateway import DiscordWebSocket
from discord.http import Route

from bot.app import make_client
from bot.learning.run_progress import ProgressReporter
from bot.playground.discord import community
from bot.playground.server import Playground, PlaygroundSettings
from bot.services import Services
from bot.serving.client import ModelClient
from storage.config import load_config
from storage.db import key_values
from storage.db.clock import now_ms
from storage.db.database import Database
from tests.bot.fake_server import FakeModelServer
from tests.bot.playground.conftest import connected, until
from tests.e2e.stand_in import add_guild

FACT = "gateway.identifies"


@pytest.fixture(autouse=True)
def real_addresses_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Route, "BASE", Route.BASE)
    monkeypatch.setattr(DiscordWebSocket, "DEFAULT_GATEWAY", yarl.URL(DiscordWebSocket.DEFAULT_GATEWAY))


@asynccontextmanager
async def at_discord(home: Path, settings: str = "") -> AsyncIterator[tuple[Services, Playground]]:
    """Services that take the stand-in for Discord itself."""
    (home / "strop.toml").write_text(settings)
    config = load_config(home / "strop.toml", {"STROP_HOME": str(home), "DISCORD_TOKEN": "x"})
    server = FakeModelServer()
    await server.start()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(server.stop)
        database = stack.enter_context(Database.open(home / "strop.db"))
        playground = await stack.enter_async_context(Playground(PlaygroundSettings()))
        model = await stack.enter_async_context(ModelClient(server.base_url))
        yield Services(config, database, model), playground


def remember(database: Database, count: int, last_s_ago: float) -> None:
    last = now_ms() - round(last_s_ago * 1000)
    database.write(lambda db: key_values.put(db, FACT, json.dumps([last - 1000] * (count - 1) + [last])))


def remembered(database: Database) -> int:
    return len(json.loads(database.read(lambda db: key_values.get(db, FACT)) or "[]"))


async def test_sign_ins_of_earlier_processes_make_this_one_wait_and_so_does_its_own(tmp_path: Path) -> None:
    async with at_discord(tmp_path) as (services, playground):
        # Nine keep the next one 80 seconds away from the last.
        remember(services.database, 9, last_s_ago=78.0)
        started = time.monotonic()
        async with connected(make_client(services), playground):
            assert time.monotonic() - started > 1.0
            assert (len(playground.gateway.identified_s), remembered(services.database)) == (1, 10)
            # An invalid session: discord.py would sign in again five seconds later.
            playground.gateway.invalidate_sessions()
            await asyncio.sleep(6.5)
            assert (len(playground.gateway.identified_s), remembered(services.database)) == (1, 10)


@pytest.mark.torture
async def test_a_shard_without_a_budget_waits_and_the_client_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bot.gateway.sign_in._HOOK_WAIT_S", 0.01)
    async with at_discord(tmp_path, "[discord]\nshards = 2\n") as (services, playground):
        add_guild(playground, community.GUILD_ID + (1 << 22))
        bot = make_client(services)
        async with connected(bot, playground):
            shard = (community.GUILD_ID >> 22) % 2
            remember(services.database, 20, last_s_ago=1.0)
            playground.gateway.invalidate_sessions(shard=shard)
            await asyncio.sleep(15.0)
            assert not bot.is_closed() and len(playground.gateway.identified_s) == 2
            services.database.write(lambda db: key_values.put(db, FACT, "[]"))
            await until(lambda: len(playground.gateway.identified_s) == 3, 90)
            text = f"<@{community.BOT_ID}> hello"
            playground.backend.send_message(community.GENERAL_ID, community.OWNER.user_id, text)
            general = str(community.GENERAL_ID)
            last = lambda: playground.backend.history(1)[general][-1]["content"]  # noqa: E731
            await until(lambda: last() == "Hello there, friend.", 30)
            await bot.feature(ProgressReporter).stop()
