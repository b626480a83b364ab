"""Which messages are meant for the bot, by what is set for their channel, and what they go on from.

The core is pure: what Discord says about a message (`Arrival`) and what is set there, in; why it is answered,
or None, out.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import discord

from bot.chat.content.message_text import is_forward
from bot.chat.content.wake_words import calls, spoken
from bot.chat.question import Continuation
from bot.services import Services
from bot.ui.channels import parent_of
from storage.admin import blocks, settings
from storage.admin.settings import InForce, Settings
from storage.chat import replies
from storage.db.clock import SECOND_MS, now_ms
from storage.db.database import Connection

Trigger = Literal["direct", "mention", "reply", "thread", "every", "name", "follow_up"]

CHANNEL_MEMORY_MS = 30 * 60 * SECOND_MS
"""For how long a message in a channel without mentions goes on with the conversation before it."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A message as far as its addressee is concerned. `replies_to_bot` None: Discord didn't send it along.

    `text` is what it says, for names that call the bot.
    """

    author_id: int
    channel_id: int
    guild_id: int | None
    parent_channel_id: int | None = None
    mentions_bot: bool = False
    replies_to_bot: bool | None = False
    reference_id: int | None = None
    in_bots_thread: bool = False
    readable: bool = True
    text: str = ""

    @property
    def home_channel_id(self) -> int:
        """The channel whose settings hold."""
        return self.parent_channel_id or self.channel_id


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a message is answered (None: it is not), what it goes on from, and what is set in its channel."""

    trigger: Trigger | None
    follows: Continuation | None
    found: InForce
    blocked: bool = False


@dataclass(frozen=True, slots=True)
class Memory:
    """What the database is asked only where it matters: who spoke here last, and whose message it is."""

    is_bots_message: Callable[[int], bool]
    last_reply_to: Callable[[int, int], bool]
    has_answered_here: Callable[[], bool]


def why(arrival: Arrival, held: Settings, memory: Memory) -> Trigger | None:
    """Return why the bot answers a message, or None."""
    if arrival.guild_id is None:
        return "direct"
    wanted = held.triggers
    if "mention" in wanted and arrival.mentions_bot:
        return "mention"
    if "reply" in wanted and _replies_to_bot(arrival, memory):
        return "reply"
    if not arrival.readable:
        return None
    if "every" in wanted:
        return "every"
    in_thread = arrival.parent_channel_id is not None
    if "thread" in wanted and in_thread and (arrival.in_bots_thread or memory.has_answered_here()):
        return "thread"
    if calls(arrival.text, held.wake_words):
        return "name"
    # A member who answers somebody else, or turns to them, isn't talking to the bot any more.
    turned_away = arrival.reference_id is not None
    since_ms = now_ms() - held.follow_up_s * SECOND_MS
    if held.follow_up_s and not turned_away and memory.last_reply_to(arrival.author_id, since_ms):
        return "follow_up"
    return None


def goes_on_from(arrival: Arrival, held: Settings, trigger: Trigger) -> Continuation | None:
    """Return what a message goes on from where it doesn't reply to one: its thread, or its channel's talk."""
    if arrival.parent_channel_id is not None:
        return Continuation()
    if trigger == "follow_up":
        return Continuation(now_ms() - held.follow_up_s * SECOND_MS, arrival.author_id)
    if trigger in ("every", "direct") or "every" in held.triggers:
        return Continuation(now_ms() - CHANNEL_MEMORY_MS)
    return None


async def judge(services: Services, arrival: Arrival) -> Verdict:
    """Settle one message with one look into the database."""

    def work(db: Connection) -> Verdict:
        found = settings.resolve(db, services.config, arrival.guild_id, arrival.home_channel_id)
        memory = Memory(
            lambda message_id: replies.by_discord_id(db, message_id) is not None,
            lambda user_id, since_ms: (
                replies.latest_in(db, arrival.channel_id, since_ms=since_ms, asker_id=user_id) is not None
            ),
            lambda: replies.latest_in(db, arrival.channel_id) is not None,
        )
        trigger = why(arrival, found.settings, memory)
        if trigger is None:
            return Verdict(None, None, found)
        if blocks.is_blocked(db, arrival.guild_id, arrival.author_id):
            return Verdict(None, None, found, blocked=True)
        return Verdict(trigger, goes_on_from(arrival, found.settings, trigger), found)

    return await services.database.aread(work)


def arrival_of(message: discord.Message, me: discord.ClientUser, *, sees_content: bool) -> Arrival:
    """Read from a message whom it addresses. A reply that pings the bot is a reply, not a mention."""
    # A forward refers to a message as a reply does, but says nothing to its author.
    reference = None if is_forward(message) else message.reference
    answered = reference.resolved if reference is not None else None
    known = answered.author.id == me.id if isinstance(answered, discord.Message) else None
    mention = re.compile(rf"<@!?{me.id}>")
    written = mention.search(spoken(message.content)) is not None
    # A mention in a quote or in code turns to nobody, though Discord may count it.
    only_quoted = not written and mention.search(message.content) is not None
    pinged = me in message.mentions or _own_role(message) in message.role_mentions
    channel = message.channel
    return Arrival(
        author_id=message.author.id,
        channel_id=channel.id,
        guild_id=message.guild.id if message.guild else None,
        parent_channel_id=parent_of(channel),
        mentions_bot=written or (pinged and not known and not only_quoted),
        replies_to_bot=known if reference is not None else False,
        reference_id=reference.message_id if reference is not None else None,
        in_bots_thread=isinstance(channel, discord.Thread) and channel.owner_id == me.id,
        readable=sees_content,
        text=message.content,
    )


def _own_role(message: discord.Message) -> discord.Role | None:
    return message.guild.self_role if message.guild else None


def _replies_to_bot(arrival: Arrival, memory: Memory) -> bool:
    if arrival.replies_to_bot is not None:
        return arrival.replies_to_bot
    return arrival.reference_id is not None and memory.is_bots_message(arrival.reference_id)
