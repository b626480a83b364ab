"""Which language is spoken to everybody in a channel; to a single member it is `ui.interactions.speak_to`."""

from __future__ import annotations

import discord

from bot.language import texts
from bot.services import Services
from bot.ui.channels import parent_of


async def language_in(services: Services, client: discord.Client, channel_id: int) -> str:
    """Return the language for what everybody in a channel reads: what is set there, else the server's own."""
    channel = client.get_channel(channel_id)
    guild = getattr(channel, "guild", None)
    home_channel_id = parent_of(channel) or channel_id
    found = await services.settings(guild.id if guild else None, home_channel_id)
    return texts.choose(found.settings.language, guild.preferred_locale if guild else "en")
