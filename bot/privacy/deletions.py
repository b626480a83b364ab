"""What members delete at Discord is forgotten here as well: at once, or as soon as the bot is back.

Discord tells of deletions only while somebody listens. What was deleted during an absence is found out by
reading the channels again, for the messages of the last days; and what was reworded in it, which is often
done to take words back.
"""

from __future__ import annotations

import sys
from collections import OrderedDict, defaultdict
from collections.abc import Iterable
from typing import Any

import discord
import structlog

from bot.chat.question import readable
from bot.delivery.targets import translate_errors
from bot.errors import ChannelGoneError, DeliveryError
from bot.services import Services
from storage.chat import channels, conversations, replies
from storage.db.clock import now_ms
from storage.db.database import Connection
from storage.feedback import prompt_bank

WINDOW_MS = 3 * 24 * 60 * 60 * 1000
MOST_MESSAGES = 2000
_PAGE = 100
_REMEMBERED = 1000

_log = structlog.get_logger(__name__)


class DeletionKeeper:
    """Forgets the stored copies of messages that are gone, and of words that were taken out of others."""

    def __init__(self, services: Services, client: discord.Client) -> None:
        self._services = services
        self._client = client
        # Deletions that overtook the recording of their message.
        self._early: OrderedDict[int, None] = OrderedDict()

    async def forget_messages(self, message_ids: Iterable[int]) -> int:
        """Forget what was stored of these messages and the prompts that quote them; return how many."""
        wanted = list(message_ids)

        def work(db: Connection) -> list[int]:
            return [each for each in wanted if _forget(db, each)]

        known = await self._services.database.awrite(work)
        for message_id in wanted:
            if message_id not in known:
                self._early[message_id] = None
        while len(self._early) > _REMEMBERED:
            self._early.popitem(last=False)
        if known:
            _log.info("messages.deleted", count=len(known))
        return len(known)

    async def overtook(self, message_id: int) -> bool:
        """Forget a message again that was deleted before it was stored; return whether it was."""
        return message_id in self._early and await self.forget_messages([message_id]) > 0

    async def channel_deleted(self, channel_id: int) -> int:
        """Forget every message of a channel or thread that is gone; return how many.

        A channel's threads go with it, and of those that are archived Discord tells nothing.
        """

        def work(db: Connection) -> int:
            return sum(
                conversations.delete_channel(db, each) + prompt_bank.remove_by_channel(db, each)
                for each in {channel_id, *channels.threads_of(db, channel_id)}
            )

        count = await self._services.database.awrite(work)
        if count:
            _log.info("channel.deleted", channel_id=channel_id, messages=count)
        return count

    async def reconcile(self) -> int:
        """Forget what was deleted while nobody listened, and follow edits; return how many were deleted."""
        since_ms = now_ms() - WINDOW_MS
        seen = await self._services.database.aread(
            lambda db: conversations.visible_since(db, since_ms, MOST_MESSAGES)
        )
        stored: defaultdict[int, list[int]] = defaultdict(list)
        for message_id, channel_id in seen:
            stored[channel_id].append(message_id)
        shards = self._services.shards
        mine = await self._services.database.aread(
            lambda db: {channel_id for channel_id in stored if shards.has_channel(db, channel_id)}
        )
        forgotten = 0
        for channel_id, message_ids in stored.items():
            if channel_id not in mine:
                continue
            forgotten += await self._reconcile_channel(channel_id, sorted(message_ids))
        if forgotten:
            _log.info("messages.found_deleted", count=forgotten)
        return forgotten

    async def _reconcile_channel(self, channel_id: int, message_ids: list[int]) -> int:
        try:
            there = await self._there(channel_id, message_ids)
            # The playground forgets its channels when it stops: before its oldest message, nothing is proven.
            whole = not self._services.playground or await self._has_before(channel_id, message_ids[0])
        except ChannelGoneError:
            return 0 if self._services.playground else await self.channel_deleted(channel_id)
        except DeliveryError as error:
            _log.debug("messages.not_comparable", channel_id=channel_id, error=type(error).__name__)
            return 0
        await self._follow_edits([each for each in there.values() if each is not None])
        oldest = 0 if whole else min(there, default=sys.maxsize)
        missing = [each for each in message_ids if each not in there and each > oldest]
        return await self.forget_messages(missing) if missing else 0

    async def _follow_edits(self, messages: Iterable[discord.Message]) -> None:
        """Keep the stored text equal to what people see, where nobody listened when it was edited."""
        me = self._client.user
        edited = [
            (each.id, each.edited_at.timestamp() * 1000, readable(each, me), not each.attachments)
            for each in messages
            if me is not None and each.edited_at is not None
        ]

        def work(db: Connection) -> int:
            return sum(
                conversations.edit_message(db, message_id, text, without_files=without_files)
                for message_id, edited_ms, text, without_files in edited
                if _follows(db, conversations.by_discord_id(db, message_id), edited_ms)
            )

        if edited and (count := await self._services.database.awrite(work)):
            _log.info("messages.found_edited", count=count)

    async def _there(self, channel_id: int, message_ids: list[int]) -> dict[int, discord.Message | None]:
        """Return those of these messages (sorted) that the channel still has.

        It is read a hundred messages at a time. Only what members have edited is kept with its text.
        """
        channel, wanted = self._channel(channel_id), set(message_ids)
        there: dict[int, discord.Message | None] = {}
        after = discord.Object(message_ids[0] - 1)
        while after.id < message_ids[-1]:
            page = await translate_errors(_page(channel, after=after, limit=_PAGE, oldest_first=True))
            there |= {each.id: each if _is_reworded(each) else None for each in page if each.id in wanted}
            if len(page) < _PAGE:
                break
            # From the next stored message on: what lies between is nobody's business here.
            reached = max(message.id for message in page)
            following = next((each for each in message_ids if each > reached), None)
            if following is None:
                break
            after = discord.Object(following - 1)
        return there

    async def _has_before(self, channel_id: int, message_id: int) -> bool:
        """Whether a channel has a message that is older than this one, which may be gone."""
        channel = self._channel(channel_id)
        return bool(await translate_errors(_page(channel, before=discord.Object(message_id), limit=1)))

    def _channel(self, channel_id: int) -> discord.abc.Messageable:
        found = self._client.get_channel(channel_id)
        partial = self._client.get_partial_messageable(channel_id)
        return found if isinstance(found, discord.abc.Messageable) else partial


def _forget(db: Connection, message_id: int) -> bool:
    """Forget a message, its copies and the prompt that it is in the bank; return whether any was known."""
    deleted = conversations.delete_message(db, message_id)
    asked = prompt_bank.remove_by_message(db, message_id)
    return deleted or bool(asked) or conversations.by_discord_id(db, message_id) is not None


def _is_reworded(message: discord.Message) -> bool:
    # An empty text may be one that Discord doesn't show to the bot.
    return message.edited_at is not None and bool(message.content) and not message.author.bot


def _follows(db: Connection, stored: conversations.Message | None, edited_ms: float) -> bool:
    """Whether what is stored of an edited message has to be what people see.

    Of a question it is its text alone, at any time. Of what a question referred to it may be more (a title,
    a preview), so that only an edit since then counts.
    """
    if stored is None or stored.role != "user":
        return False
    later = edited_ms > max(stored.created_ms, stored.edited_ms or 0)
    return later or replies.find_shown_reply(db, stored.id) is not None


async def _page(channel: discord.abc.Messageable, **what: Any) -> list[discord.Message]:
    return [message async for message in channel.history(**what)]
