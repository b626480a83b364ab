import asyncio
import json
import zlib
from collections.abc import AsyncIterator

import aiohttp
import discord
import pytest

from bot.playground.discord import community
from bot.playground.server import Playground, PlaygroundSettings
from tests.bot.playground.conftest import Recorder, connected, until

GENERAL, YOU = community.GENERAL_ID, community.OWNER.user_id


def say(playground: Playground, text: str, author: int = YOU, channel: int = GENERAL) -> int:
    return int(playground.backend.send_message(channel, author, text)["id"])


async def heard(client: Recorder) -> discord.Message:
    return await asyncio.wait_for(client.messages.get(), 20)


class Wire:
    """A client that speaks the protocol by hand, uncompressed."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, token: str) -> None:
        self.socket = socket
        self.token = token

    async def send(self, op: int, data: object) -> None:
        await self.socket.send_json({"op": op, "d": data})

    async def identify(self, **changes: object) -> None:
        intents = discord.Intents.default().value
        await self.send(2, {"token": self.token, "intents": intents, "properties": {}, **changes})

    async def receive(self) -> dict:
        return json.loads(await self.socket.receive_str(timeout=20))

    async def event(self, name: str) -> dict:
        while (frame := await self.receive())["t"] != name:
            pass
        return frame

    async def close_code(self) -> int | None:
        while not self.socket.closed:
            await self.socket.receive(timeout=20)
        return self.socket.close_code


@pytest.fixture
async def wire(playground: Playground) -> AsyncIterator[Wire]:
    async with (
        aiohttp.ClientSession() as http,
        http.ws_connect(playground.gateway_url + "?v=10&encoding=json") as socket,
    ):
        connection = Wire(socket, playground.token)
        assert (await connection.receive())["op"] == 10
        yield connection


async def test_a_plain_client_connects_hears_a_message_replies_and_edits(
    playground: Playground, client: Recorder
) -> None:
    assert client.user is not None and client.user.id == community.BOT_ID
    sent = say(playground, f"hello <@{client.user.id}>")
    message = await heard(client)
    assert message.id == sent
    assert client.user in message.mentions
    answer = await message.reply("one")
    await answer.edit(content="one two")
    seen = playground.backend.message(GENERAL, answer.id)
    assert seen is not None and seen["content"] == "one two"
    assert seen["message_reference"]["message_id"] == str(sent)


async def test_the_client_finds_the_seeded_server(client: Recorder) -> None:
    guild = client.get_guild(community.GUILD_ID)
    assert guild is not None and guild.name == "Strop Playground"
    assert [channel.name for channel in guild.text_channels] == ["general", "lab", "rehearsal"]
    names = {member.id: member.display_name for member in guild.members}
    assert names[YOU] == "You"
    assert sum(name.endswith(" (simulated)") for name in names.values()) == len(community.SIMULATED)
    info = await client.application_info()
    assert info.owner.id == YOU


async def test_a_direct_message_reaches_the_bot_and_its_answer_stays_there(
    playground: Playground, client: Recorder
) -> None:
    ada = community.PEOPLE[1]
    say(playground, "psst", ada.user_id, ada.dm_channel_id)
    message = await heard(client)
    assert message.guild is None and message.content == "psst"
    await message.channel.send("yes?")
    latest = playground.backend.history(1)[str(ada.dm_channel_id)][0]
    assert latest["content"] == "yes?"


async def test_reactions_of_members_reach_the_bot(playground: Playground, client: Recorder) -> None:
    say(playground, "rate me")
    answer = await (await heard(client)).reply("fine")
    playground.backend.set_reaction(GENERAL, answer.id, YOU, "👍", reacted=True)
    event = await asyncio.wait_for(client.reactions.get(), 20)
    assert (event.message_id, event.user_id, str(event.emoji)) == (answer.id, YOU, "👍")
    fetched = await answer.channel.fetch_message(answer.id)
    assert [user.id async for user in fetched.reactions[0].users()] == [YOU]


async def test_a_cut_line_is_resumed_and_nothing_is_missed(playground: Playground, client: Recorder) -> None:
    playground.gateway.drop_connections()
    ids = [say(playground, f"while away {n}") for n in range(3)]
    await asyncio.wait_for(client.resumed.wait(), 30)
    assert [(await heard(client)).id for _ in ids] == ids
    assert len(playground.gateway.sessions) == 1


async def test_a_client_asked_to_reconnect_resumes(playground: Playground, client: Recorder) -> None:
    playground.gateway.ask_to_reconnect()
    await asyncio.wait_for(client.resumed.wait(), 30)
    sent = say(playground, "back")
    assert (await heard(client)).id == sent


async def test_an_invalid_session_makes_the_client_identify_anew(
    playground: Playground, client: Recorder
) -> None:
    before = set(playground.gateway.sessions)
    playground.gateway.invalidate_sessions()
    await until(lambda: playground.gateway.online and not before & set(playground.gateway.sessions), 30)
    assert not client.resumed.is_set()
    sent = say(playground, "hello again")
    assert (await heard(client)).id == sent


async def test_a_client_that_left_leaves_discords_own_addresses_behind(playground: Playground) -> None:
    own = discord.http.Route.BASE
    async with connected(Recorder(), playground):
        assert own != discord.http.Route.BASE == playground.api_url
    assert own == discord.http.Route.BASE


async def test_a_wrong_token_ends_with_a_login_failure(playground: Playground) -> None:
    with pytest.raises(discord.LoginFailure):
        discord.http.Route.BASE = playground.api_url
        async with Recorder() as client:
            await client.login("playground.wrong")


async def test_intents_that_the_application_lacks_end_the_client() -> None:
    settings = PlaygroundSettings(approved_intents=discord.Intents.default())
    async with Playground(settings) as playground:
        with pytest.raises(discord.PrivilegedIntentsRequired):
            async with connected(Recorder(discord.Intents.all()), playground):
                pass


async def test_without_the_content_intent_only_messages_to_the_bot_have_content(
    playground: Playground,
) -> None:
    async with connected(Recorder(discord.Intents.default()), playground) as client:
        assert isinstance(client, Recorder)
        say(playground, "among ourselves")
        say(playground, f"you there <@{community.BOT_ID}>?")
        ada = community.PEOPLE[1]
        say(playground, "in private", ada.user_id, ada.dm_channel_id)
        contents = [(await heard(client)).content for _ in range(3)]
    assert contents == ["", f"you there <@{community.BOT_ID}>?", "in private"]


async def test_events_outside_the_declared_intents_are_not_sent(playground: Playground) -> None:
    intents = discord.Intents(guilds=True, guild_reactions=True)
    async with connected(Recorder(intents), playground) as client:
        assert isinstance(client, Recorder)
        message_id = say(playground, "unheard")
        playground.backend.set_reaction(GENERAL, message_id, YOU, "👍", reacted=True)
        await asyncio.wait_for(client.reactions.get(), 20)
        assert client.messages.empty()


async def test_members_can_be_queried_over_the_gateway(playground: Playground, client: Recorder) -> None:
    guild = client.get_guild(community.GUILD_ID)
    assert guild is not None
    assert [member.name for member in await guild.query_members("ada")] == ["ada"]
    found = await guild.query_members(user_ids=[YOU])
    assert [member.id for member in found] == [YOU]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"token": "wrong"}, 4004),
        ({"intents": -1}, 4013),
        ({"intents": 1 << 40}, 4013),
        ({"shard": [2, 2]}, 4010),
    ],
)
async def test_a_bad_identify_is_closed_with_discords_code(wire: Wire, changes: dict, code: int) -> None:
    await wire.identify(**changes)
    assert await wire.close_code() == code


async def test_protocol_errors_are_closed_with_discords_codes(playground: Playground) -> None:
    for text, code in (("{", 4002), ('{"op": 8, "d": {}}', 4003), ("[]", 4002)):
        async with aiohttp.ClientSession() as http, http.ws_connect(playground.gateway_url) as socket:
            await socket.receive(timeout=20)
            await socket.send_str(text)
            assert await Wire(socket, "").close_code() == code


async def test_a_resume_with_an_unknown_session_is_refused(wire: Wire) -> None:
    await wire.send(6, {"token": wire.token, "session_id": "nope", "seq": 3})
    frame = await wire.receive()
    assert (frame["op"], frame["d"]) == (9, False)


async def test_a_silent_client_is_disconnected() -> None:
    async with (
        Playground(PlaygroundSettings(heartbeat_ms=200)) as playground,
        aiohttp.ClientSession() as http,
        http.ws_connect(playground.gateway_url) as socket,
    ):
        assert await Wire(socket, "").close_code() == 4009


async def test_each_shard_hears_only_its_own_part(playground: Playground, wire: Wire) -> None:
    owner = (community.GUILD_ID >> 22) % 2
    await wire.identify(shard=[1 - owner, 2])
    ready = await wire.event("READY")
    assert ready["d"]["guilds"] == []
    say(playground, "not for you")
    await wire.send(1, None)
    assert (await wire.receive())["op"] == 11


async def test_a_compressed_stream_is_one_zlib_context(playground: Playground) -> None:
    url = playground.gateway_url + "?compress=zlib-stream"
    async with aiohttp.ClientSession() as http, http.ws_connect(url) as socket:
        unpack = zlib.decompressobj()
        hello = json.loads(unpack.decompress(await socket.receive_bytes(timeout=20)))
        await Wire(socket, playground.token).identify()
        ready = json.loads(unpack.decompress(await socket.receive_bytes(timeout=20)))
    assert (hello["op"], ready["t"]) == (10, "READY")


async def test_message_ids_are_never_used_again_by_a_later_process() -> None:
    async with Playground() as first:
        early = say(first, "before the restart")
    async with Playground() as second:
        assert say(second, "after it") > early
        assert say(second, "and again") > early


async def test_the_bots_presence_on_the_page_follows_its_connection(playground: Playground) -> None:
    seen: list[bool] = []
    playground.backend.on_page_event(
        lambda event, data: seen.append(data["online"]) if event == "BOT_STATUS" else None
    )
    async with connected(Recorder(), playground):
        assert seen == [True]
    await until(lambda: seen == [True, False])
