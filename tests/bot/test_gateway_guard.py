"""Malformed gateway events never end the client."""

from __future__ import annotations

import random
from typing import Any

import discord
import pytest

from bot.gateway_guard import PINNED_VERSION, GatewayGuard
from tests.bot.conftest import Community


def test_the_guard_was_written_for_the_installed_discord_py() -> None:
    """When this fails: check that the parsers still stand in `_connection.parsers`, then move the pin."""
    assert discord.__version__ == PINNED_VERSION


@pytest.fixture
async def client() -> discord.Client:
    return discord.Client(intents=discord.Intents.default())


def malformed_payload(chance: random.Random) -> Any:
    """A payload as nobody should send it."""
    values: list[Any] = [None, "", "abc", -1, 1.5, [], {}, True, "9" * 400, {"id": None}, [{}], [None]]
    keys = (
        "id",
        "guild_id",
        "channel_id",
        "message_id",
        "user_id",
        "emoji",
        "user",
        "member",
        "author",
        "type",
    )
    kind = chance.random()
    if kind < 0.2:
        return chance.choice(values)
    return {key: chance.choice(values) for key in chance.sample(keys, chance.randrange(len(keys)))}


async def test_a_thousand_malformed_events_are_survived(client: discord.Client) -> None:
    guard = GatewayGuard()
    guard.install(client)
    chance = random.Random(7)
    events = sorted(client._connection.parsers)
    for number in range(1000):
        client._connection.parsers[events[number % len(events)]](malformed_payload(chance))

    assert sum(guard.malformed.values()) > 500
    assert guard.malformed["MESSAGE_REACTION_ADD"] > 0


async def test_a_reaction_without_message_id_does_not_leave_the_parser(client: discord.Client) -> None:
    payload = {"user_id": "1", "channel_id": "2", "emoji": {"name": "👍", "id": None}, "type": 0}
    with pytest.raises(KeyError):
        client._connection.parsers["MESSAGE_REACTION_ADD"](payload)

    GatewayGuard().install(client)
    client._connection.parsers["MESSAGE_REACTION_ADD"](payload)


async def test_the_bot_answers_after_malformed_events(community: Community) -> None:
    parsers = community.bot._connection.parsers
    for event in ("MESSAGE_CREATE", "MESSAGE_REACTION_ADD", "GUILD_UPDATE", "INTERACTION_CREATE"):
        parsers[event]({"nonsense": True})
    assert sum(community.bot.guard.malformed.values()) == 4

    await community.ann.send(community.channel, f"{community.mention} still there?")
    assert community.said() == ["Hello there, friend."]
