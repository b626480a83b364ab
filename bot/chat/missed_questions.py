"""Questions that came while nobody listened: answered after the start, or told that they were missed.

What Discord sent during an absence is never sent again. So the newest messages of the channels in which the
bot was spoken to are read after each session begins, a page each, and those of the last minutes that mention
the bot, or reply to it, and have no answer are heard as if they came now. Older ones of the page get one
sentence.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import discord
import structlog

from bot.chat.listener import MessageListener
from bot.client import StropClient
from bot.delivery.targets import translated
from bot.errors import DeliveryError
from bot.language.texts import mark, speaking, tr
from bot.ui.channel_language import language_in
from storage.chat import conversations
from storage.db.clock import SECOND_MS, now_ms
from storage.db.database import Connection

MISSED = mark("I was away when you wrote this. Ask me again if you still want an answer.")

ANSWERED_MS = 15 * 60 * SECOND_MS
"""A question as old as this at most is answered; an older one is told that it was missed."""
TOLD_MS = 3 * 60 * 60 * SECOND_MS
MOST_CHANNELS = 50
MOST_IN_CHANNEL = 3
_PAGE = 50

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
            found = await self._app.services.database.aread(_spoken_in)
            handled = 0
            for channel_id in found:
                try:
                    handled += await self._look_in(channel_id)
                except DeliveryError as error:
                    _log.debug("questions.not_read", channel_id=channel_id, error=type(error).__name__)
            if handled:
                _log.info("questions.missed", count=handled)
            return handled

    async def _look_in(self, channel_id: int) -> int:
        channel = self._app.get_channel(channel_id)
        if not isinstance(channel, discord.TextChannel | discord.Thread | discord.VoiceChannel):
            return 0
        missed = await self._missed(await translated(_newest(channel)))
        late = [each for each in missed if self._age_ms(each) > ANSWERED_MS]
        for message in late[-1:]:
            await self._tell(message)
        recent = [each for each in missed if self._age_ms(each) <= ANSWERED_MS][-MOST_IN_CHANNEL:]
        for message in recent:
            await self._listener.heard(message)
        return len(recent) + len(late[-1:])

    async def _missed(self, page: list[discord.Message]) -> list[discord.Message]:
        """Return the questions of a page (the oldest first) that nothing was said to."""
        me = self._app.user
        if me is None:
            return []
        answered = {
            message.reference.message_id
            for message in page
            if message.author.id == me.id and message.reference is not None
        }
        asked = [
            message
            for message in page
            if not message.author.bot
            and me in message.mentions
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
        await translated(message.channel.send(text, reference=reference, mention_author=False, silent=True))


async def _newest(channel: Any) -> list[discord.Message]:
    return [message async for message in channel.history(limit=_PAGE)][::-1]


def _spoken_in(db: Connection) -> list[int]:
    return conversations.latest_channels(db, MOST_CHANNELS)


def _known(db: Connection, message_ids: Iterable[int]) -> set[int]:
    return {each for each in message_ids if conversations.by_discord_id(db, each) is not None}
