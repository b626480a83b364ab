"""Malformed gateway events never end the client."""

from __future__ import annotations

import random
from typing import Any

import discord
import pytest
from discord.gateway import DiscordWebSocket, ReconnectWebSocket

from bot.gateway.event_guard import FRAME, PINNED_VERSION, GatewayGuard
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


class Socket(DiscordWebSocket):
    """A socket of discord.py's without a network behind it, after its greeting."""

    def __init__(self, client: discord.Client) -> None:
        super().__init__(socket=None, loop=client.loop)  # type: ignore[arg-type]
        self._connection = client._connection
        self._discord_parsers = client._connection.parsers
        self._dispatch = client.dispatch
        self.shard_id = None
        self.session_id = "a session"
        self.sequence = 7
        self.beats = 0
        self.closed_with: int | None = None
        self._keep_alive = self  # type: ignore[assignment]

    def tick(self) -> None:
        self.beats += 1

    async def close(self, code: int = 4000) -> None:
        self.closed_with = code


@pytest.mark.parametrize(
    "frame",
    [
        "{",
        "null",
        "[1]",
        "3",
        "[" * 100_000,
        '{"op": 0, "t": ["a list"], "d": {}}',
        '{"op": 0, "t": "READY", "s": 1, "d": {}}',
        '{"op": 0, "t": "RESUMED", "s": 1, "d": null}',
        '{"op": 10, "d": null}',
    ],
    ids=range(9),
)
async def test_a_frame_that_no_parser_sees_is_survived_too(client: discord.Client, frame: str) -> None:
    guard = GatewayGuard()
    guard.install(client)
    socket = Socket(client)
    await socket.received_message(frame)
    assert guard.malformed == {FRAME: 1}
    assert socket.closed_with is None


async def test_a_broken_number_leaves_the_last_one_for_a_resume(client: discord.Client) -> None:
    GatewayGuard().install(client)
    socket = Socket(client)
    for number in ('"text"', "[1]", "1.5", "{}"):
        await socket.received_message(f'{{"op": 0, "t": "SOMETHING", "s": {number}, "d": {{}}}}')
        assert socket.sequence == 7
    await socket.received_message('{"op": 0, "t": "SOMETHING", "s": 8, "d": {}}')
    assert socket.sequence == 8


async def test_without_a_greeting_or_a_compression_the_connection_begins_anew(client: discord.Client) -> None:
    GatewayGuard().install(client)
    unready, torn = Socket(client), Socket(client)
    unready.session_id = None
    with pytest.raises(ConnectionError):
        await unready.received_message('{"op": 0, "t": "READY", "s": 1, "d": {}}')
    with pytest.raises(ConnectionError):
        await torn.received_message(b"no zlib stream\x00\x00\xff\xff")
    assert (unready.closed_with, torn.closed_with) == (4000, 4000)


async def test_what_discord_py_says_with_exceptions_passes_the_guard(client: discord.Client) -> None:
    GatewayGuard().install(client)
    with pytest.raises(ReconnectWebSocket):
        await Socket(client).received_message('{"op": 7, "d": null}')
    with pytest.raises(ReconnectWebSocket):
        await Socket(client).received_message('{"op": 9, "d": false}')
