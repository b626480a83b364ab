"""The language for everybody in a channel; `ui.interactions.set_language` is for a single member."""

from __future__ import annotations

import discord

from bot.language import texts
from bot.services import Services
from bot.ui.channels import parent_of
from storage.admin.settings import InForce


async def language_in(services: Services, client: discord.Client, channel_id: int) -> str:
    """Return the language for what everybody in a channel reads: what is set there, else the server's own."""
    channel = client.get_channel(channel_id)
    guild = getattr(channel, "guild", None)
    home_channel_id = parent_of(channel) or channel_id
    return language_of(await services.settings(guild.id if guild else None, home_channel_id), guild)


def language_of(in_force: InForce, guild: discord.Guild | None) -> str:
    """Return the same where the channel's settings are read already."""
    return texts.choose(in_force.settings.language, guild.preferred_locale if guild else "en")
