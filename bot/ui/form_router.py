"""Forms that were sent in, brought to whoever handles their kind."""

from __future__ import annotations

from typing import Any

import discord

from bot.admin import settings
from bot.feedback import corrections, reports
from bot.learning import tasting_commands
from bot.ui import modals
from bot.ui.interactions import excuse, speak_to

_HANDLERS = {
    "better": corrections.sent_in,
    "report": reports.sent_in,
    "prompts": tasting_commands.sent_in,
    "setting": settings.sent_in,
}


async def handle(interaction: discord.Interaction[Any]) -> None:
    """Handle a form of ours; leave every other interaction alone."""
    form = modals.sent_in(interaction)
    if form is None:
        return
    kind, reply_id, text = form
    try:
        await speak_to(interaction)
        await _HANDLERS[kind](interaction, interaction.client.services, reply_id, text)
    except Exception as error:  # The boundary of a form: whoever sent it must hear something.
        await excuse(interaction, error, f"form {kind}")
