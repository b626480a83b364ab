"""What can be said of a channel: what it hangs on, who reads it, and what the bot lacks there."""

from __future__ import annotations

import discord

from bot.language.texts import mark


def parent_of(channel: object) -> int | None:
    """Return the channel that a thread hangs on; None for any other channel."""
    return channel.parent_id if isinstance(channel, discord.Thread) else None


def is_public(channel: object) -> bool:
    """Whether everyone in the guild can read this channel; what is not public never trains."""
    if isinstance(channel, discord.Thread):
        return not channel.is_private() and is_public(channel.parent)
    if not isinstance(channel, discord.abc.GuildChannel):
        return False
    return may_read(channel, channel.guild.default_role)


def may_read(channel: object, who: discord.Member | discord.Role) -> bool:
    """Whether somebody reads what is and was said in a channel.

    The text chat of a voice or stage channel opens only to those who may join it:
    https://discord.com/developers/docs/resources/message#get-channel-messages
    """
    if not isinstance(channel, discord.abc.GuildChannel | discord.Thread):
        return False
    granted = channel.permissions_for(who)
    return (
        granted.view_channel and granted.read_message_history and (granted.connect or not _has_voice(channel))
    )


def missing_permissions(channel: object, guild: discord.Guild | None) -> list[str]:
    """Name what the bot lacks to answer in this channel, as Discord's settings call it."""
    if guild is None or not isinstance(channel, discord.abc.GuildChannel | discord.Thread):
        return []
    granted = channel.permissions_for(guild.me)
    thread = isinstance(channel, discord.Thread)
    needed = {
        mark("View Channel"): granted.view_channel,
        mark("Send Messages in Threads") if thread else mark("Send Messages"): (
            granted.send_messages_in_threads if thread else granted.send_messages
        ),
        mark("Read Message History"): granted.read_message_history,
        mark("Connect"): granted.connect or not _has_voice(channel),
    }
    return [name for name, has in needed.items() if not has]


def _has_voice(channel: object) -> bool:
    return isinstance(channel, discord.VoiceChannel | discord.StageChannel)
