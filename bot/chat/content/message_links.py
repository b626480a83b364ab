"""Links to messages in a question: which of them may be opened for whoever asks, where they ask.

What a link leads to is told to everybody who reads the answer. So it is opened only where the asker may
read it, and where it is no more private than the place of the question.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import discord

from bot.ui.channels import is_public, may_read

MOST_LINKED = 2
"""So many links of a question are opened; each costs a call."""

_LINK = re.compile(
    r"https?://(?:ptb\.|canary\.)?discord(?:app)?\.com/channels/(\d{1,20}|@me)/(\d{1,20})/(\d{1,20})"
)


@dataclass(frozen=True, slots=True)
class MessageLink:
    """Where a link leads; ``guild_id`` is None for a direct message."""

    guild_id: int | None
    channel_id: int
    message_id: int


def links_in(text: str) -> list[MessageLink]:
    """Return the messages that a text links to, each once, in their order."""
    found = [
        MessageLink(None if guild == "@me" else int(guild), int(channel), int(message))
        for guild, channel, message in _LINK.findall(text)
    ]
    return list(dict.fromkeys(found))


def resolve_channel(
    link: MessageLink, asker: discord.abc.User, here: object
) -> discord.abc.MessageableChannel | None:
    """Return the channel that a link leads to, or None where it stays closed."""
    if not isinstance(asker, discord.Member) or link.guild_id != asker.guild.id:
        return None
    there = asker.guild.get_channel_or_thread(link.channel_id)
    if not isinstance(there, discord.abc.Messageable | discord.Thread) or not _as_open_as(there, here):
        return None
    return there if may_read(there, asker) else None


def _as_open_as(there: object, here: object) -> bool:
    """Whether everybody who reads one channel may read the other."""
    if is_public(there) or getattr(there, "id", None) == getattr(here, "id", None):
        return True
    if isinstance(there, discord.Thread):
        return not there.is_private() and _as_open_as(there.parent, here)
    home = here.parent if isinstance(here, discord.Thread) else here
    return home is not None and getattr(there, "id", None) == getattr(home, "id", None)
