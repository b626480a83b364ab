"""Questions that came while nobody listened: answered after the start, or told that they were missed.

What Discord sent during an absence is never sent again. So the newest messages of the channels that were
written in lately are read after each session begins, a page each, of direct messages too, and those of the
last minutes that mention the bot, or reply to it, and have no answer are heard as if they came now. Older
ones of the page get one sentence. Somebody's very first direct message during an absence isn't found: no
channel of it is known.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

import discord
import structlog

from bot.chat.listener import MessageListener
from bot.client import StropClient
from bot.delivery.targets import translate_errors
from bot.errors import DeliveryError
from bot.language.texts import mark, speaking, tr
from bot.ui.channel_language import language_in
from storage.chat import conversations, open_replies
from storage.chat.shards import Shards
from storage.db.clock import SECOND_MS, now_ms
from storage.db.database import Connection

MISSED = mark("I was away when you wrote this. Ask me again if you still want an answer.")

ANSWERED_MS = 15 * 60 * SECOND_MS
"""A question as old as this at most is answered; an older one is told that it was missed."""
TOLD_MS = 3 * 60 * 60 * SECOND_MS
MOST_CHANNELS = 50
MOST_DIRECT = 10
MOST_IN_CHANNEL = 3
_PAGE = 50
Place = discord.TextChannel | discord.Thread | discord.VoiceChannel | discord.DMChannel

_log = structlog.get_logger(__name__)


class MissedQuestions:
    """Looks for them after every new session."""

    def __init__(
        self, app: StropClient, listener: MessageListener, clock: Callable[[], float] = now_ms
    ) -> None:
        self._app = app
        self._clock = clock
        self._listener = listener
        self._looking = asyncio.Lock()

    async def look(self) -> int:
        """Answer or tell what was missed; return how many questions that were."""
        if self._looking.locked():
            return 0
        async with self._looking:
            spoken_in, direct = await self._app.services.database.aread(
                functools.partial(_spoken_in, self._app.services.shards)
            )
            handled = 0
            for channel_id in [*dict.fromkeys((*self._active(), *spoken_in))][:MOST_CHANNELS] + direct:
                try:
                    handled += await self._look_in(channel_id)
                except DeliveryError as error:
                    _log.debug("questions.not_read", channel_id=channel_id, error=type(error).__name__)
            if handled:
                _log.info("questions.missed", count=handled)
            return handled

    def _active(self) -> list[int]:
        """Return the channels in which somebody wrote lately, as Discord says it, the latest first."""
        oldest = discord.utils.time_snowflake(
            datetime.fromtimestamp((self._clock() - TOLD_MS) / 1000, tz=UTC), high=False
        )
        found: list[tuple[int, int]] = []
        for guild in self._app.guilds:
            for places in (guild.text_channels, guild.voice_channels, guild.threads):
                found += [(each.last_message_id or 0, each.id) for each in places]
        return [channel_id for last_id, channel_id in sorted(found, reverse=True) if last_id > oldest]

    async def _look_in(self, channel_id: int) -> int:
        channel = self._app.get_channel(channel_id) or await translate_errors(
            self._app.fetch_channel(channel_id)
        )
        if not isinstance(channel, Place):
            return 0
        missed = await self._missed(await translate_errors(_newest(channel)))
        late = [each for each in missed if self._age_ms(each) > ANSWERED_MS]
        for message in late[-1:]:
            await self._tell(message)
        recent = [each for each in missed if self._age_ms(each) <= ANSWERED_MS][-MOST_IN_CHANNEL:]
        for message in recent:
            await self._listener.handle_message(message)
        return len(recent) + len(late[-1:])

    async def _missed(self, page: list[discord.Message]) -> list[discord.Message]:
        """Return the questions of a page (the oldest first) that nothing was said to."""
        me = self._app.user
        if me is None:
            return []
        answered = {
            message.reference.message_id
            for message in page
            # Discord's own note on a thread that the bot opened refers to the question too.
            if message.author.id == me.id and message.reference is not None and not message.is_system()
        }
        asked = [
            message
            for message in page
            if not message.author.bot
            and (me in message.mentions or message.guild is None)
            and message.id not in answered
            and not self._listener.took(message.id)
            and self._age_ms(message) <= TOLD_MS
        ]
        known = await self._app.services.database.aread(
            lambda db: _known(db, [message.id for message in asked])
        )
        return [message for message in asked if message.id not in known]

    def _age_ms(self, message: discord.Message) -> float:
        return self._clock() - message.created_at.timestamp() * 1000

    async def _tell(self, message: discord.Message) -> None:
        with speaking(await language_in(self._app.services, self._app, message.channel.id)):
            text = tr(MISSED)
        reference = message.to_reference(fail_if_not_exists=False)
        await translate_errors(
            message.channel.send(text, reference=reference, mention_author=False, silent=True)
        )


async def _newest(channel: Any) -> list[discord.Message]:
    return [message async for message in channel.history(limit=_PAGE)][::-1]


def _spoken_in(shards: Shards, db: Connection) -> tuple[list[int], list[int]]:
    """Return the channels of servers and those of direct messages in which something was said last."""
    latest = conversations.latest_channels(db, MOST_CHANNELS)
    return (
        [channel_id for channel_id in latest if shards.has_channel(db, channel_id)],
        conversations.latest_channels(db, MOST_DIRECT, direct=True) if shards.has_first else [],
    )


def _known(db: Connection, message_ids: Iterable[int]) -> set[int]:
    """Return those that are being answered, or were: what was only stored was missed all the same."""
    stored = {each: conversations.by_discord_id(db, each) for each in message_ids}
    return {
        each
        for each, message in stored.items()
        if message is not None and open_replies.has_answer(db, message.id)
    }
