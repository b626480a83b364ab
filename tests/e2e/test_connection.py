"""The bot's process through all that happens to a connection, over real sockets to Discord's stand-in."""

from __future__ import annotations

import asyncio
import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from simcord.backend.models import Overwrite

from bot.playground.discord import community
from storage.chat import conversations
from storage.db import key_values
from tests.e2e.stand_in import ADA, GENERAL, YOU, add_channel, add_guild, stand_in

HELLO = "Hello there, friend."
BOT = community.BOT_ID
# The other of two shards.
OTHER_GUILD = community.GUILD_ID + (1 << 22)
EVERY_OTHER = 0.2


async def test_a_lost_connection_is_resumed_and_everything_missed_is_made_up(tmp_path: Path) -> None:
    async with stand_in(tmp_path) as t:
        await t.start_bot()
        t.ask("hello")
        first = (await t.answered(HELLO))[0]

        losses = (
            t.gateway.drop_connections,
            t.gateway.ask_to_reconnect,
            lambda: t.gateway.invalidate_sessions(resumable=True),
            lambda: t.gateway.drop_connections(4000),
        )
        for number, lose in enumerate(losses, start=1):
            lose()
            t.ask(f"asked in the gap {number}")
            await t.until(lambda number=number: t.gateway.resumed == number)
            await t.answered(HELLO, times=number + 1)
        assert len(t.gateway.identified_s) == 1

        t.gateway.drop_connections()
        t.react(int(first["id"]), ADA)
        await t.until(lambda: t.standing() == [(ADA, 1)])
        assert t.fact(key_values.RECOVERED_RATINGS) is None
        assert await t.stop_bot() == 0


async def test_what_a_new_session_never_hears_of_is_found_and_status_says_how_much(tmp_path: Path) -> None:
    async with stand_in(tmp_path) as t:
        await t.start_bot()
        # The playground forgets its oldest messages: only what is gone behind another was surely deleted.
        t.ask("something before it")
        await t.answered(HELLO)
        question = t.ask("my secret")
        answer = int((await t.answered(HELLO, times=2))[1]["id"])
        t.react(answer, ADA, "👎")
        await t.until(lambda: t.standing() == [(ADA, -1)])

        t.gateway.invalidate_sessions()
        assert len(t.gateway.sessions) == 0
        t.react(answer, YOU)
        t.playground.backend.set_reaction(GENERAL, answer, ADA, "👎", reacted=False)
        t.playground.backend.delete_message(GENERAL, question, YOU)
        await t.until(lambda: len(t.gateway.identified_s) == 2)
        await t.until(lambda: t.fact(key_values.RECOVERED_RATINGS) == "2")
        assert t.standing() == [(YOU, 1)]

        def forgotten() -> bool:
            stored = t.database.read(lambda db: conversations.by_discord_id(db, question))
            return stored is not None and stored.content == ""

        await t.until(forgotten)
        t.playground.backend.run_command(GENERAL, YOU, "status")
        assert "Recovered: 2 ratings" in await t.told("Recovered")

        assert t.process is not None
        t.process.kill()
        t.process.wait()
        t.react(answer, ADA)
        await t.start_bot()
        await t.until(lambda: t.fact(key_values.RECOVERED_RATINGS) == "3")
        assert t.standing() == sorted([(YOU, 1), (ADA, 1)])


def nonsense(chance: random.Random) -> str:
    """A frame as nobody should send it: an event without its fields, no event, no JSON."""
    values: list[Any] = [None, "", "abc", -1, 1.5, [], {}, True, "9" * 400, {"id": None}, [{}], [None]]
    if chance.random() < EVERY_OTHER:
        return chance.choice(
            [
                "{",
                "",
                "null",
                "[]",
                "3",
                '"text"',
                "[" * 100_000,
                '{"op": [], "d": {}}',
                '{"op": 0, "t": ["a"], "d": {}, "s": 1}',
                '{"op": 0, "t": {"a": 1}, "d": {}, "s": 1}',
                '{"op": 0, "t": "READY", "d": {}, "s": "no number"}',
                '{"op": 0, "t": "RESUMED", "d": null, "s": [1]}',
                '{"op": 10, "d": null}',
                '{"op": 99, "d": null}',
                '{"op": 11, "d": null, "s": {}}',
            ]
        )
    payload: Any = chance.choice(values)
    if chance.random() < 1 - EVERY_OTHER:
        payload = {key: chance.choice(values) for key in chance.sample(FIELDS, chance.randrange(len(FIELDS)))}
    return json.dumps({"op": 0, "t": chance.choice(EVENTS), "d": payload, "s": None})


FIELDS = (
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
EVENTS = (
    "MESSAGE_CREATE",
    "MESSAGE_UPDATE",
    "MESSAGE_DELETE",
    "MESSAGE_DELETE_BULK",
    "MESSAGE_REACTION_ADD",
    "MESSAGE_REACTION_REMOVE",
    "MESSAGE_REACTION_REMOVE_ALL",
    "MESSAGE_REACTION_REMOVE_EMOJI",
    "INTERACTION_CREATE",
    "PRESENCE_UPDATE",
    "USER_UPDATE",
    "CHANNEL_CREATE",
    "CHANNEL_UPDATE",
    "CHANNEL_DELETE",
    "CHANNEL_PINS_UPDATE",
    "THREAD_CREATE",
    "THREAD_UPDATE",
    "THREAD_DELETE",
    "THREAD_LIST_SYNC",
    "THREAD_MEMBER_UPDATE",
    "GUILD_CREATE",
    "GUILD_UPDATE",
    "GUILD_DELETE",
    "GUILD_MEMBER_ADD",
    "GUILD_MEMBER_UPDATE",
    "GUILD_MEMBERS_CHUNK",
    "GUILD_ROLE_CREATE",
    "GUILD_ROLE_UPDATE",
    "GUILD_EMOJIS_UPDATE",
    "GUILD_BAN_ADD",
    "TYPING_START",
    "VOICE_STATE_UPDATE",
    "INVITE_CREATE",
    "ENTITLEMENT_CREATE",
    "APPLICATION_COMMAND_PERMISSIONS_UPDATE",
    "WEBHOOKS_UPDATE",
    "STAGE_INSTANCE_CREATE",
    "GUILD_SCHEDULED_EVENT_CREATE",
    "SOMETHING_NEW",
)


@pytest.mark.parametrize("count", [1_500, pytest.param(10_000, marks=pytest.mark.torture)])
async def test_malformed_events_never_end_the_process(tmp_path: Path, count: int) -> None:
    chance = random.Random(11)
    async with stand_in(tmp_path) as t:
        await t.start_bot()
        for number in range(count):
            t.gateway.send_raw(nonsense(chance))
            if number % 250 == 249:
                t.ask(f"still there after {number}?")
                await t.answered(HELLO, times=(number + 1) // 250)
        assert len(t.gateway.identified_s) == 1
        assert len(t.lines("gateway.event_malformed")) > 20
        assert len(t.log.splitlines()) < 1_000 + count // 4
        # The sequence survived too: nothing that was sent in a gap is lost.
        t.gateway.drop_connections()
        t.ask("and now?")
        await t.answered(HELLO, times=count // 250 + 1)
        assert t.gateway.resumed == 1
        assert await t.stop_bot() == 0


async def test_a_burst_of_429s_delays_replies_and_loses_none(tmp_path: Path) -> None:
    async with stand_in(tmp_path) as t:
        await t.start_bot()
        t.model.pause_s = 0.1
        t.model.answer = " ".join(f"word{number}" for number in range(20))
        channels = [add_channel(t.playground, f"room-{number}") for number in range(8)]
        for channel in channels:
            t.ask("hello", channel=channel)
        await t.until(lambda: sum(bool(t.said(channel)) for channel in channels) == 8)
        for _ in range(2):
            t.playground.limiter.shut(1.5)
            await asyncio.sleep(2.0)
        for channel in channels:
            await t.answered(t.model.answer, channel)
        # Nobody knocks while the door is shut: a refusal or two for each call under way, not hundreds.
        assert 1 <= t.playground.limiter.refused < 100
        assert all(reply.status == "complete" for reply in t.replies())


async def test_an_edit_is_followed_and_a_late_mention_is_answered_once(tmp_path: Path) -> None:
    async with stand_in(tmp_path) as t:
        await t.start_bot()
        backend = t.playground.backend
        asked = t.ask("colour?")
        await t.answered(HELLO)
        backend.edit_message(GENERAL, asked, YOU, f"<@{BOT}> which color?")

        def stored() -> str | None:
            row = t.database.read(lambda db: conversations.by_discord_id(db, asked))
            return row.content if row else None

        await t.until(lambda: stored() == "which color?")

        forgot = int(backend.send_message(GENERAL, ADA, "what is a strop?")["id"])
        backend.edit_message(GENERAL, forgot, ADA, f"<@{BOT}> what is a strop?")
        answers = await t.answered(HELLO, times=2)
        assert answers[1]["message_reference"]["message_id"] == str(forgot)
        for again in ("what is a strop, please?", "what is a strop, please!"):
            backend.edit_message(GENERAL, forgot, ADA, f"<@{BOT}> {again}")
        await asyncio.sleep(1.0)
        assert len(t.said()) == 2
        assert t.model.prompt()[-1]["content"].endswith("what is a strop?")

        # Not answered yet, as the model is still loading: the answer is to what the question says by then.
        t.model.status = "loading"
        early = t.ask("what is a stop?")
        await t.until(lambda: len(t.said()) == 3)
        backend.edit_message(GENERAL, early, YOU, f"<@{BOT}> what is a strop made of?")
        await asyncio.sleep(0.3)
        t.model.status = "ok"
        await t.answered(HELLO, times=3)
        assert t.model.prompt()[-1]["content"].endswith("what is a strop made of?")


async def test_a_channel_that_refuses_silences_no_other_and_its_member_hears_why(tmp_path: Path) -> None:
    async with stand_in(tmp_path) as t:
        await t.start_bot()
        backend, ada = t.playground.backend._backend, community.PEOPLE[1]
        open_, closing = (add_channel(t.playground, name) for name in ("open", "closing"))
        t.model.answer = "one two three four"
        t.model.gate = asyncio.Event()
        t.ask("hello", channel=open_)
        t.ask("hello", who=ADA, channel=closing)
        await t.until(lambda: t.said(open_) and t.said(closing))
        # In the middle of a reply the bot is shut out of one of the channels.
        denied = 1 << 10 | 1 << 11
        backend.set_overwrite(closing, Overwrite(BOT, 1, allow=0, deny=denied))
        t.model.gate.set()
        await t.answered("one two three four", open_)
        (told,) = await t.until(lambda: t.said(ada.dm_channel_id))
        assert f"<#{closing}>" in told["content"] and "**View Channel**" in told["content"]
        t.ask("hello again", channel=open_)
        await t.answered("one two three four", open_, times=2)
        t.ask("and here?", who=ADA, channel=closing)
        await asyncio.sleep(0.5)
        assert len(t.said(ada.dm_channel_id)) == 1


async def test_fifty_chats_stream_at_once(tmp_path: Path) -> None:
    async with stand_in(tmp_path) as t:
        await t.start_bot()
        t.model.gate = asyncio.Event()
        t.model.answer = " ".join(f"word{number}" for number in range(40))
        channels = [add_channel(t.playground, f"room-{number}") for number in range(25)]
        people = [person.user_id for person in community.PEOPLE]
        asked = {
            t.ask(f"question {number}", people[number % len(people)], channels[number % 25]): number
            for number in range(50)
        }
        await t.until(lambda: len(t.model.requests) == 50)
        # All fifty are half written before the first may end.
        await t.until(lambda: sum(len(t.said(channel)) for channel in channels) == 50)
        t.model.gate.set()
        await t.until(lambda: len(done := t.replies()) == 50 and all(r.status == "complete" for r in done))
        for channel in channels:
            answers = await t.answered(t.model.answer, channel, times=2)
            assert {int(each["message_reference"]["message_id"]) for each in answers} <= asked.keys()
        assert t.playground.limiter.refused < 50


async def test_two_shards_serve_their_own_servers_and_one_outlives_the_other(tmp_path: Path) -> None:
    async with stand_in(tmp_path, "[discord]\nshards = 2\n") as t:
        other = add_guild(t.playground, OTHER_GUILD)
        await t.start_bot(shards=2)
        shards = {session.shard[0]: session for session in t.gateway.sessions.values()}
        assert set(shards) == {0, 1}
        gone = (OTHER_GUILD >> 22) % 2

        t.model.answer = "one two three four"
        t.model.gate = asyncio.Event()
        t.ask("hello", channel=GENERAL)
        t.ask("hello", channel=other)
        await t.until(lambda: t.said(GENERAL) and t.said(other))
        t.gateway.drop_connections(shard=gone)
        t.model.gate.set()
        here = (await t.answered("one two three four", GENERAL))[0]
        there = (await t.answered("one two three four", other))[0]
        t.react(int(here["id"]), YOU, "👍", GENERAL)
        t.react(int(there["id"]), ADA, "👎", other)
        await t.until(lambda: t.standing() == sorted([(YOU, 1), (ADA, -1)]))
        assert t.gateway.resumed == 1

        # One shard's session is lost for good: what it missed is found although the other one never left.
        t.gateway.invalidate_sessions(shard=gone)
        t.react(int(there["id"]), YOU, "👍", other)
        t.react(int(here["id"]), ADA, "👍", GENERAL)
        await t.until(lambda: len(t.gateway.identified_s) == 3)
        await t.until(lambda: len(t.standing()) == 4)
        assert t.fact(key_values.RECOVERED_RATINGS) == "1"
        guilds = {row.scope for row in t.replies()}
        assert guilds == {f"guild:{community.GUILD_ID}", f"guild:{OTHER_GUILD}"}
        for channel in (GENERAL, other):
            t.ask("again", channel=channel)
            await t.answered("one two three four", channel, times=2)
        assert await t.stop_bot() == 0


@pytest.mark.torture
@pytest.mark.timeout(1800)
async def test_a_connection_that_breaks_all_the_time_loses_neither_word_nor_rating(tmp_path: Path) -> None:
    chance = random.Random(3)
    async with stand_in(tmp_path) as t:
        await t.start_bot()
        ends_at, questions, rated = time.monotonic() + 300, 0, 0
        while time.monotonic() < ends_at:
            chance.choice(
                [
                    t.gateway.drop_connections,
                    t.gateway.ask_to_reconnect,
                    lambda: t.gateway.drop_connections(4000),
                    lambda: t.gateway.invalidate_sessions(resumable=True),
                    lambda: t.playground.limiter.shut(1.0),
                ]
            )()
            t.ask(f"question {questions}")
            questions += 1
            answers = await t.answered(HELLO, times=questions) if questions < 400 else t.said()
            t.react(int(answers[-1]["id"]), ADA)
            rated += 1
            await asyncio.sleep(chance.uniform(0.0, 2.0))
        await t.until(lambda: len(t.standing()) == rated)
        assert len(t.gateway.identified_s) <= 2
