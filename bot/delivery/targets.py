"""Where a reply appears: a channel, the answer to a slash command, or over messages that are there."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, TypeVar

import aiohttp
import discord

from bot.delivery.streaming import KEEP
from bot.errors import (
    ChannelGoneError,
    ChannelRefusedError,
    DeliveryError,
    MessageGoneError,
    TextRefusedError,
    ThreadClosedError,
)

T = TypeVar("T")


# A server's AutoMod rules, and Discord's own list of harmful links.
_FILTERED = frozenset({200000, 200001, 240000})
# A thread that is archived, with status 400; one that is locked.
_CLOSED = frozenset({50083, 160005})


async def translate_errors(call: Awaitable[T]) -> T:
    """Await a call to Discord, turning what can go wrong into DeliveryError or one of its kinds."""
    try:
        return await call
    except discord.HTTPException as error:
        raise kind_of(error) from error
    except (TimeoutError, discord.DiscordException, aiohttp.ClientError, OSError) as error:
        raise DeliveryError("Discord does not take my message right now.") from error


def kind_of(error: discord.HTTPException) -> DeliveryError:
    """Return what a refusal by Discord means for a message."""
    if error.code in _FILTERED:
        return TextRefusedError("Discord's filter refuses my message.")
    if error.code in _CLOSED:
        return ThreadClosedError("This thread is closed.")
    if isinstance(error, discord.Forbidden):
        return ChannelRefusedError("I am not allowed to write in this channel.")
    if isinstance(error, discord.NotFound):
        if error.code == 10008:
            return MessageGoneError("The message was deleted.")
        kind = ChannelGoneError if error.code == 10003 else ChannelRefusedError
        return kind("This channel is gone.")
    return DeliveryError("Discord does not take my message right now.")


class ChannelSurface:
    """Ordinary messages; the first one replies to the question and arrives without a notification."""

    def __init__(self, channel: discord.abc.Messageable, question: discord.Message | None = None) -> None:
        self._channel = channel
        self._question = question
        self._sent: dict[int, discord.Message] = {}

    async def send(self, content: str, buttons: Any = None) -> int:
        """Send the next message of the reply."""
        options: dict[str, Any] = {} if buttons is None else {"view": buttons}
        if not self._sent and self._question is not None:
            # The question may have been deleted meanwhile: the answer still comes.
            options["reference"] = self._question.to_reference(fail_if_not_exists=False)
            options["mention_author"] = False
        message = await translate_errors(self._channel.send(content, silent=not self._sent, **options))
        self._sent[message.id] = message
        return message.id

    async def edit(self, message_id: int, content: str, buttons: Any = KEEP) -> None:
        """Replace a message's content, and its buttons."""
        await translate_errors(self._sent[message_id].edit(content=content, **_below(buttons)))

    async def delete(self, message_id: int) -> None:
        """Delete a message that is no longer needed."""
        await translate_errors(self._sent.pop(message_id).delete())


class InteractionSurface:
    """The answer to a deferred slash command: its original response, then follow-ups, within 15 minutes."""

    def __init__(self, interaction: discord.Interaction[Any]) -> None:
        self._interaction = interaction
        self._sent: dict[int, discord.Message] = {}

    async def send(self, content: str, buttons: Any = None) -> int:
        """Fill the original response first, then add follow-ups."""
        options: dict[str, Any] = {} if buttons is None else {"view": buttons}
        message: discord.Message
        if self._sent:
            message = await translate_errors(self._interaction.followup.send(content, wait=True, **options))
        else:
            message = await translate_errors(
                self._interaction.edit_original_response(content=content, **options)
            )
        self._sent[message.id] = message
        return message.id

    async def edit(self, message_id: int, content: str, buttons: Any = KEEP) -> None:
        """Replace a message's content, and its buttons."""
        await translate_errors(self._sent[message_id].edit(content=content, **_below(buttons)))

    async def delete(self, message_id: int) -> None:
        """Delete a message that is no longer needed."""
        await translate_errors(self._sent.pop(message_id).delete())


class WrittenSurface:
    """Messages of a reply that was written earlier, by this process or another one."""

    def __init__(self, channel: discord.PartialMessageable) -> None:
        self._channel = channel

    async def send(self, content: str, buttons: Any = None) -> int:
        """Send one more message."""
        options: dict[str, Any] = {} if buttons is None else {"view": buttons}
        return (await translate_errors(self._channel.send(content, silent=True, **options))).id

    async def edit(self, message_id: int, content: str, buttons: Any = KEEP) -> None:
        """Replace a message's content, and its buttons."""
        message = self._channel.get_partial_message(message_id)
        await translate_errors(message.edit(content=content, **_below(buttons)))

    async def delete(self, message_id: int) -> None:
        """Delete a message that this version doesn't need."""
        await translate_errors(self._channel.get_partial_message(message_id).delete())


def _below(buttons: Any) -> dict[str, Any]:
    return {} if buttons is KEEP else {"view": buttons}
