"""Answers with a picture beside their text, which says the same in numbers."""

from __future__ import annotations

from collections.abc import Callable

import discord
import structlog

from bot.charts.picture import Picture
from bot.charts.renderer import Studio
from bot.ui.interactions import Interaction, say

_log = structlog.get_logger(__name__)


async def say_with_picture(interaction: Interaction, content: str, draw: Callable[[], Picture]) -> None:
    """Answer a deferred interaction for its member's eyes only; without the picture where it can't be had."""
    picture = await interaction.client.feature(Studio).picture(draw)
    if picture is None:
        return await say(interaction, content)
    nobody = discord.AllowedMentions.none()
    try:
        await interaction.followup.send(
            content, file=picture.as_file(), ephemeral=True, allowed_mentions=nobody
        )
    except discord.HTTPException as error:
        _log.warning("picture.not_sent", error=type(error).__name__, code=error.code)
        await say(interaction, content)
    return None
