"""What was asked while nobody listened is answered after the start, or told; nothing is answered twice."""

from __future__ import annotations

import asyncio
from typing import Any

import discord

from bot.app import make_client
from bot.chat.answerer import Answerer
from bot.chat.listener import MessageListener
from bot.chat.missed_questions import ANSWERED_MS, MISSED, TOLD_MS, MissedQuestions
from tests.bot.conftest import Community


def asked_while_away(community: Community, text: str) -> int:
    """Somebody writes while no gateway is there to tell the bot."""
    with community.unheard() as backend:
        message = backend.create_message(community.channel.id, community.ann.id, text)
    return int(message.id)


def missed(community: Community, later_ms: float = 1_000) -> MissedQuestions:
    """What looks for them, by the clock of the stand-in for Discord."""
    newest = max(community.env.backend.messages[community.channel.id])
    asked_ms = discord.utils.snowflake_time(newest).timestamp() * 1000
    bot = community.bot
    return MissedQuestions(bot, bot.feature(MessageListener), lambda: asked_ms + later_ms)


async def answered(community: Community) -> None:
    for _ in range(200):
        await asyncio.sleep(0.02)
        if not community.bot.feature(Answerer).in_flight:
            return


async def test_a_mention_during_an_absence_is_answered_after_the_start(
    community: Community, services: Any
) -> None:
    await community.ann.send(community.channel, f"{community.mention} before")
    asked_while_away(community, f"{community.mention} while you were away")
    asked_while_away(community, "not meant for you")
    await community.env.restart_bot(make_client(services))
    assert await missed(community).look() == 1
    await answered(community)
    assert [reply.prompt[-1]["content"] for reply in community.replies()] == [
        "before",
        "while you were away",
    ]
    assert len(community.said()) == 2


async def test_nothing_is_answered_twice_however_often_a_session_begins(
    community: Community, services: Any
) -> None:
    await community.ann.send(community.channel, f"{community.mention} one")
    await community.ann.send(community.channel, community.mention)  # no question: told so, and not stored
    for _ in range(2):
        assert await missed(community).look() == 0
    await community.env.restart_bot(make_client(services))
    await community.env.settle()
    assert len(community.said()) == 2


async def test_a_question_that_is_found_and_sent_at_the_same_time_is_answered_once(
    community: Community,
) -> None:
    message_id = asked_while_away(community, f"{community.mention} just as you came")
    channel = community.bot.get_channel(community.channel.id)
    assert isinstance(channel, discord.TextChannel)
    found, sent, late = [await channel.fetch_message(message_id) for _ in range(3)]
    listener = community.bot.feature(MessageListener)
    await asyncio.gather(listener.handle_message(found), listener.handle_message(sent))
    await listener.handle_message(late)
    await answered(community)
    assert len(community.replies()) == 1


async def test_only_the_newest_few_of_a_channel_are_answered(community: Community) -> None:
    await community.ann.send(community.channel, f"{community.mention} before")
    for number in range(6):
        asked_while_away(community, f"{community.mention} missed {number}")
    assert await missed(community).look() == 3
    await answered(community)
    prompts = {reply.prompt[-1]["content"] for reply in community.replies()}
    assert prompts == {"before", "missed 3", "missed 4", "missed 5"}


async def test_an_older_question_is_told_that_it_was_missed(community: Community) -> None:
    await community.ann.send(community.channel, f"{community.mention} before")
    asked_while_away(community, f"{community.mention} an hour ago")
    assert await missed(community, later_ms=TOLD_MS + 1).look() == 0, "too long ago to say anything"
    assert await missed(community, later_ms=ANSWERED_MS + 60_000).look() == 1
    assert community.said()[-1] == MISSED
    assert await missed(community, later_ms=ANSWERED_MS + 60_000).look() == 0, "it is told once"
    assert community.bot.feature(Answerer).in_flight == 0
