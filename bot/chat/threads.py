"""A thread of its own for every new conversation, where a server wants that."""

from __future__ import annotations

from typing import Literal

import discord
import structlog

from bot.chat.triggers import Verdict
from bot.delivery.targets import translate_errors
from bot.errors import DeliveryError
from bot.language.texts import mark, tr

NAME_LENGTH = 60
ARCHIVE_AFTER_MINUTES: Literal[1440] = 1440
_UNNAMED = mark("Conversation")

_log = structlog.get_logger(__name__)


def wants_thread(message: discord.Message, verdict: Verdict) -> bool:
    """Whether this message begins a conversation that is to have a thread of its own."""
    starts = message.reference is None and verdict.trigger in ("mention", "every", "name")
    in_channel = isinstance(message.channel, discord.TextChannel)
    return starts and in_channel and verdict.found.settings.auto_thread


def missing_for_thread(channel: object) -> list[str]:
    """Name what the bot lacks to open a thread in this channel and to write there."""
    if not isinstance(channel, discord.TextChannel):
        return []
    granted = channel.permissions_for(channel.guild.me)
    needed = {
        mark("Create Public Threads"): granted.create_public_threads,
        mark("Send Messages in Threads"): granted.send_messages_in_threads,
    }
    return [name for name, has in needed.items() if not has]


async def open_thread(message: discord.Message, text: str) -> discord.Thread | None:
    """Open a thread on a message; None where Discord doesn't let us: the answer goes to the channel then."""
    if message.thread is not None:
        return message.thread
    try:
        return await translate_errors(
            message.create_thread(name=name_of(text), auto_archive_duration=ARCHIVE_AFTER_MINUTES)
        )
    except DeliveryError as error:
        _log.info("thread.not_opened", channel_id=message.channel.id, error=type(error).__name__)
        return None


def name_of(text: str) -> str:
    """Return a thread's name out of the question: one line, cut at a word."""
    line = " ".join(text.split())
    if len(line) <= NAME_LENGTH:
        return line or tr(_UNNAMED)
    return line[: NAME_LENGTH + 1].rsplit(" ", 1)[0][:NAME_LENGTH].rstrip(" ,.;:") + "…"


def who_can_act(message: discord.Message, verdict: Verdict) -> int | None:
    """Return whoever switched automatic threads on, else the server's owner."""
    actor = verdict.found.actors.get("auto_thread", "")
    if actor.isdecimal():
        return int(actor)
    return message.guild.owner_id if message.guild else None
