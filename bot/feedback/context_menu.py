"""The context menu ("Apps") of any reply: what its buttons do, and reporting it."""

from __future__ import annotations

import discord

from bot.feedback.reply_actions import UNKNOWN, ReplyActions
from bot.language.texts import mark, tr
from bot.ui.interactions import Interaction, say


async def regenerate(interaction: Interaction, message: discord.Message) -> None:
    """Write another version of the reply."""
    actions, reply_id = await _chosen(interaction, message)
    if reply_id is not None:
        await actions.regenerate(interaction, reply_id)


async def stop(interaction: Interaction, message: discord.Message) -> None:
    """End a reply that is being written."""
    actions = interaction.client.feature(ReplyActions)
    known = await actions.find_by_message(message.id)
    await actions.stop(interaction, known.reply.id if known else "", message.id)


async def better(interaction: Interaction, message: discord.Message) -> None:
    """Open the form for a better answer."""
    actions, reply_id = await _chosen(interaction, message)
    if reply_id is not None:
        await actions.better(interaction, reply_id)


async def why(interaction: Interaction, message: discord.Message) -> None:
    """Say where the reply came from."""
    actions, reply_id = await _chosen(interaction, message)
    if reply_id is not None:
        await actions.why(interaction, reply_id)


async def report(interaction: Interaction, message: discord.Message) -> None:
    """Open the form for a report."""
    actions, reply_id = await _chosen(interaction, message)
    if reply_id is not None:
        await actions.report(interaction, reply_id)


async def _chosen(interaction: Interaction, message: discord.Message) -> tuple[ReplyActions, str | None]:
    """Return the reply that the message shows; who chose another message hears so."""
    actions = interaction.client.feature(ReplyActions)
    known = await actions.find_by_message(message.id)
    if known is None:
        await say(interaction, tr(UNKNOWN))
    return actions, known.reply.id if known else None


ENTRIES = {
    mark("Regenerate"): regenerate,
    mark("Stop writing"): stop,
    mark("Better answer"): better,
    mark("Why this reply?"): why,
    mark("Report reply"): report,
}
"""What each entry is called and does; Discord allows five an application."""
