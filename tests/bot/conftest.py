"""The bot under simcord's virtual Discord, with real SQLite and a model server on a real socket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import simcord

from bot.app import make_client
from bot.chat.answerer import Answerer
from bot.client import StropClient
from bot.delivery.streaming import Paces
from bot.learning.run_progress import ProgressReporter
from bot.learning.tasting_host import TastingHost
from bot.services import Services
from bot.serving.client import ModelClient
from storage.admin import settings as settings_of
from storage.admin.settings import InForce
from storage.chat import replies
from storage.config import Config, load_config
from storage.db.database import Database
from tests.bot.fake_server import FakeModelServer
from tests.bot.patient_env import PatientEnv
from tests.databases import copied

# Nobody reads along: an edit need not wait until a person could have read the one before.
PACE_S = 0.01


def make_config(home: Path, toml: str = "") -> Config:
    path = home / "strop.toml"
    path.write_text(toml)
    return load_config(path, {"STROP_HOME": str(home), "DISCORD_TOKEN": "test"})


def in_force(services: Services) -> InForce:
    """What strop.toml says, where nobody has set anything."""
    return services.database.read(lambda db: settings_of.resolve(db, services.config, None, None))


@pytest.fixture
async def model_server() -> AsyncIterator[FakeModelServer]:
    server = FakeModelServer()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
def database(tmp_path: Path, empty_database: Path) -> Iterator[Database]:
    opened = copied(empty_database, tmp_path / "strop.db")
    yield opened
    opened.close()


@pytest.fixture
def settings(request: pytest.FixtureRequest) -> str:
    """strop.toml for this test: `@pytest.mark.parametrize("settings", [...])`."""
    return getattr(request, "param", "")


@pytest.fixture
async def services(
    tmp_path: Path, database: Database, model_server: FakeModelServer, settings: str
) -> AsyncIterator[Services]:
    # Playground timing, so that streaming doesn't slow the tests down; nothing else differs.
    config = make_config(tmp_path, settings)
    async with ModelClient(model_server.base_url, model=config.server.model) as model:
        yield Services(config, database, model, playground=True)


@pytest.fixture
async def simcord_bot(services: Services, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[StropClient]:
    # The fixture `simcord_env` of simcord's plugin makes one around this bot.
    monkeypatch.setattr("simcord.pytest_plugin.Env", PatientEnv)
    client = make_client(services)
    client.feature(Answerer).paces = Paces(PACE_S)
    yield client
    await client.feature(ProgressReporter).stop()
    await client.feature(TastingHost).stop()


@dataclass
class Community:
    """One guild with one channel and two people; ``ann`` is the operator."""

    env: simcord.Env
    services: Services
    guild: Any
    channel: Any
    ann: Any
    bob: Any

    @property
    def mention(self) -> str:
        return f"<@{self.env.bot.user.id}>"

    @property
    def bot(self) -> StropClient:
        assert isinstance(self.env.bot, StropClient)
        return self.env.bot

    def said(self, channel: Any | None = None) -> list[str]:
        """What the bot wrote in a channel, in order."""
        return [message.content for message in self.messages(channel)]

    def messages(self, channel: Any | None = None) -> list[Any]:
        history = (channel or self.channel).history()
        mine = [message for message in history if message.author.id == self.env.bot.user.id]
        return sorted(mine, key=lambda message: message.id)

    @contextmanager
    def unheard(self) -> Iterator[Any]:
        """Give Discord's state, to change it while no gateway is there to tell the bot."""
        backend = self.env.backend
        subscribers, backend.subscribers[:] = list(backend.subscribers), []
        try:
            yield backend
        finally:
            backend.subscribers[:] = subscribers

    def replies(self) -> list[replies.Reply]:
        return self.services.database.read(lambda db: replies.recent(db, 0, 100))[::-1]


@pytest.fixture
async def community(simcord_env: simcord.Env, services: Services) -> Community:
    guild = simcord_env.create_guild()
    channel = guild.create_text_channel("general")
    ann = guild.add_member(simcord_env.create_user("ann"))
    bob = guild.add_member(simcord_env.create_user("bob"))
    named = services.config.discord.model_copy(update={"operators": (ann.id,)})
    services.config = services.config.model_copy(update={"discord": named})
    return Community(simcord_env, services, guild, channel, ann, bob)
