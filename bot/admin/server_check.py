"""/setup: check this server's permissions and channels as they are now, and say exactly what to change."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import discord
from discord import app_commands

from bot.delivery.targets import translate_errors
from bot.diagnostics.discord_access import PERMISSIONS
from bot.language.texts import mark, tr
from bot.ui.interactions import Interaction, say

NOT_ADMIN = mark("Only members with the permission **Manage Server**, and this bot's operators, can do that.")
_MOST_CHANNELS = 8
_LIMIT = 1900


@app_commands.command(description="Check my permissions and channels on this server, and what to change.")
@app_commands.guild_only()
@app_commands.default_permissions(manage_guild=True)
async def setup(interaction: Interaction) -> None:
    """Tell an admin of this server what is missing, each with the place where it is changed."""
    guild = interaction.guild
    if guild is None:
        raise app_commands.NoPrivateMessage
    client = interaction.client
    if not (interaction.permissions.manage_guild or client.is_operator(interaction.user.id)):
        return await say(interaction, tr(NOT_ADMIN))
    await interaction.response.defer(ephemeral=True, thinking=True)
    # Asked of Discord, not of memory: an admin presses this right after changing something.
    channels = await translate_errors(guild.fetch_channels())
    config = client.services.config.discord
    problems = [
        *_role_problems(guild),
        *_configured_problems(channels, config.channels, "discord.channels"),
        *_configured_problems(channels, (config.operators_channel,), "discord.operators_channel"),
        *_mute_problems(channels, {*config.channels, config.operators_channel}),
    ]
    return await say(interaction, report(guild, problems, _answering(channels)))


def report(guild: discord.Guild, problems: Sequence[str], answering: Sequence[str]) -> str:
    """Return the whole answer: what to change, else that nothing has to be."""
    where = tr(
        "I answer mentions and replies in {count} channels of {server}.",
        count=len(answering),
        server=guild.name,
    )
    if not problems:
        return f"{tr('✅ Everything is in place.')} {where}"
    lines = [f"❌ {problem}" for problem in problems]
    return "\n".join([tr("**To change:**"), *lines, where])[:_LIMIT]


def lacking(granted: discord.Permissions) -> list[str]:
    """Name the permissions that are missing, as Discord's settings call them."""
    if granted.administrator:
        return []
    return [name for name, bit in PERMISSIONS.items() if not granted.value & bit]


def _role_problems(guild: discord.Guild) -> list[str]:
    missing = lacking(guild.me.guild_permissions)
    role = guild.self_role.name if guild.self_role else tr("my role")
    sentence = tr(
        "Switch on {names} in Server Settings → Roles → **{role}** → Permissions.",
        names=_listed(missing),
        role=role,
    )
    return [sentence] if missing else []


def _configured_problems(
    channels: Sequence[discord.abc.GuildChannel], wanted: Iterable[int], key: str
) -> list[str]:
    """Return what keeps the bot from answering in the channels that the configuration names."""
    by_id = {channel.id: channel for channel in channels}
    found = [by_id[number] for number in wanted if number in by_id]
    return [problem for channel in found if (problem := _channel_problem(channel, f" (`{key}`)"))]


def _mute_problems(channels: Sequence[discord.abc.GuildChannel], told: Collection[int]) -> list[str]:
    """Return the channels that the bot sees and may not answer in; a hidden one is nobody's mistake."""
    found = [
        problem
        for channel in channels
        if isinstance(channel, discord.TextChannel) and channel.id not in told
        if _permissions(channel).view_channel and (problem := _channel_problem(channel))
    ]
    more = len(found) - _MOST_CHANNELS
    return found[:_MOST_CHANNELS] + ([tr("… and {count} more channels", count=more)] if more > 0 else [])


def _channel_problem(channel: discord.abc.GuildChannel, why: str = "") -> str:
    """Name what the channel takes away from what the bot's role has, or an empty string."""
    elsewhere = set(lacking(channel.guild.me.guild_permissions))
    missing = [name for name in lacking(_permissions(channel)) if name not in elsewhere]
    if not missing:
        return ""
    return tr(
        "Allow {names} for me in <#{channel}>{why}: Edit Channel → Permissions.",
        names=_listed(missing),
        channel=channel.id,
        why=why,
    )


def _answering(channels: Sequence[discord.abc.GuildChannel]) -> list[str]:
    needed = ("View Channels", "Send Messages", "Read Message History")
    return [
        channel.name
        for channel in channels
        if isinstance(channel, discord.TextChannel) and not set(needed) & set(lacking(_permissions(channel)))
    ]


def _permissions(channel: discord.abc.GuildChannel) -> discord.Permissions:
    return channel.permissions_for(channel.guild.me)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"**{tr(name)}**" for name in names)
