"""The two places where a reply appears: a channel, and the answer to a slash command."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, TypeVar

import aiohttp
import discord

from bot.errors import ChannelRefusedError, DeliveryError, MessageGoneError

T = TypeVar("T")


async def translated(call: Awaitable[T]) -> T:
    """Await a call to Discord, turning what can go wrong into DeliveryError or one of its kinds."""
    try:
        return await call
    except discord.Forbidden as error:
        raise ChannelRefusedError("I am not allowed to write in this channel.") from error
    except discord.NotFound as error:
        if error.code == 10008:
            raise MessageGoneError("The message was deleted.") from error
        raise ChannelRefusedError("This channel is gone.") from error
    except (TimeoutError, discord.DiscordException, aiohttp.ClientError, OSError) as error:
        raise DeliveryError("Discord does not take my message right now.") from error


class ChannelSurface:
    """Ordinary messages; the first one replies to the question and arrives without a notification."""

    def __init__(self, channel: discord.abc.Messageable, question: discord.Message | None = None) -> None:
        self._channel = channel
        self._question = question
        self._sent: dict[int, discord.Message] = {}

    async def send(self, content: str) -> int:
        """Send the next message of the reply."""
        options: dict[str, Any] = {}
        if not self._sent and self._question is not None:
            # The question may have been deleted meanwhile: the answer still comes.
            options["reference"] = self._question.to_reference(fail_if_not_exists=False)
            options["mention_author"] = False
        message = await translated(self._channel.send(content, silent=not self._sent, **options))
        self._sent[message.id] = message
        return message.id

    async def edit(self, message_id: int, content: str) -> None:
        """Replace a message's content."""
        await translated(self._sent[message_id].edit(content=content))

    async def delete(self, message_id: int) -> None:
        """Delete a message that is no longer needed."""
        await translated(self._sent.pop(message_id).delete())


class InteractionSurface:
    """The answer to a deferred slash command: its original response, then follow-ups, within 15 minutes."""

    def __init__(self, interaction: discord.Interaction[Any]) -> None:
        self._interaction = interaction
        self._sent: dict[int, discord.Message] = {}

    async def send(self, content: str) -> int:
        """Fill the original response first, then add follow-ups."""
        message: discord.Message
        if self._sent:
            message = await translated(self._interaction.followup.send(content, wait=True))
        else:
            message = await translated(self._interaction.edit_original_response(content=content))
        self._sent[message.id] = message
        return message.id

    async def edit(self, message_id: int, content: str) -> None:
        """Replace a message's content."""
        await translated(self._sent[message_id].edit(content=content))

    async def delete(self, message_id: int) -> None:
        """Delete a message that is no longer needed."""
        await translated(self._sent.pop(message_id).delete())
