"""What lies outside a message's text, over the stand-in's real sockets: REST, gateway, our own client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bot.app import make_client
from bot.client import StropClient
from bot.playground.discord import community
from bot.playground.server import Playground, PlaygroundSettings
from bot.services import Services
from bot.serving.client import ModelClient
from storage.db.database import Database
from tests.bot.conftest import make_config
from tests.bot.fake_server import FakeModelServer
from tests.bot.playground.conftest import connected, real_addresses_afterwards, until

__all__ = ["real_addresses_afterwards"]
GENERAL, LAB, YOU = community.GENERAL_ID, community.LAB_ID, community.OWNER.user_id


@pytest.fixture
async def model() -> AsyncIterator[FakeModelServer]:
    server = FakeModelServer()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def playground() -> AsyncIterator[Playground]:
    async with Playground(PlaygroundSettings()) as running:
        yield running


@pytest.fixture
async def bot(tmp_path: Path, playground: Playground, model: FakeModelServer) -> AsyncIterator[StropClient]:
    database = Database.open(tmp_path / "strop.db")
    config = make_config(tmp_path, "[discord]\nmessage_content = true")
    async with ModelClient(model.base_url) as client:
        services = Services(config, database, client, playground=True)
        async with connected(make_client(services), playground) as running:
            assert isinstance(running, StropClient)
            yield running
            await running.shutdown()
    database.close()


def answers(playground: Playground, channel: int = GENERAL) -> list[str]:
    history = playground.backend.history(50)[str(channel)]
    return [each["content"] for each in history if each["author"]["id"] == str(community.BOT_ID)]


async def test_a_forward_with_an_embed_is_read_when_it_is_asked_about(
    bot: StropClient, playground: Playground, model: FakeModelServer
) -> None:
    backend = playground.backend._backend
    source = backend.create_message(
        LAB, community.PEOPLE[1].user_id, "look", embeds=[{"type": "rich", "title": "Build 7 failed"}]
    )
    reference = {"type": 1, "channel_id": str(LAB), "message_id": str(source.id)}
    forward = backend.create_message(GENERAL, YOU, "", reference=reference)
    backend.create_message(
        GENERAL,
        YOU,
        f"<@{community.BOT_ID}> why, and is it <t:1700000000:R>?",
        reference={"channel_id": str(GENERAL), "message_id": str(forward.id)},
    )
    await until(lambda: model.requests)
    asked = model.prompt()[-1]["content"]
    assert asked == "Someone: look\nBuild 7 failed\nYou: why, and is it 2023-11-14 22:13 UTC?"
    await until(lambda: answers(playground) == ["Hello there, friend."])


async def test_a_forward_alone_is_answered_by_nobody(
    bot: StropClient, playground: Playground, model: FakeModelServer
) -> None:
    backend = playground.backend._backend
    source = backend.create_message(LAB, YOU, f"<@{community.BOT_ID}> first")
    await until(lambda: answers(playground, LAB))
    reference = {"type": 1, "channel_id": str(LAB), "message_id": str(source.id)}
    backend.create_message(GENERAL, YOU, "", reference=reference)
    backend.create_message(GENERAL, YOU, f"<@{community.BOT_ID}> second")
    await until(lambda: answers(playground))
    assert len(answers(playground)) == 1 and len(model.requests) == 2
