"""Privacy put together: /privacy, and forgetting what members delete at Discord."""

from __future__ import annotations

import discord

from bot.chat.answerer import Answerer
from bot.client import StropClient
from bot.gateway.unstored_events import Handler, UnstoredEvents
from bot.privacy import commands
from bot.privacy.deletions import DeletionKeeper
from bot.privacy.publicness import PublicnessKeeper


def setup(app: StropClient) -> None:
    """Add what members decide about their own words."""
    deletions, answerer = app.feature(DeletionKeeper), app.feature(Answerer)

    async def on_message_deleted(event: discord.RawMessageDeleteEvent) -> None:
        """A message is gone: what writes it stops, and what was stored of it is forgotten."""
        # A part that its own reply withdrew says nothing about the reply.
        if not answerer.withdrew(event.message_id):
            answerer.stop_writing_on(event.message_id)
            await deletions.forget_messages([event.message_id])

    async def on_messages_deleted(event: discord.RawBulkMessageDeleteEvent) -> None:
        """Many messages are gone."""
        await deletions.forget_messages(event.message_ids)

    async def on_channel_deleted(channel: discord.abc.GuildChannel) -> None:
        """A channel is gone with everything that was said in it."""
        await deletions.channel_deleted(channel.id)

    async def on_thread_deleted(event: discord.RawThreadDeleteEvent) -> None:
        """A thread is gone with everything that was said in it."""
        await deletions.channel_deleted(event.thread_id)

    async def finish_erasures() -> None:
        if app.services.shards.has_first:
            await commands.scrub_pending(app.services)

    app.tree.add_command(commands.group)
    app.add_dynamic_items(commands.ErasureButton)
    publicness, kept = PublicnessKeeper(app), app.feature(UnstoredEvents).kept
    listeners: tuple[tuple[str, Handler], ...] = (
        ("raw_message_delete", on_message_deleted),
        ("raw_bulk_message_delete", on_messages_deleted),
        ("guild_channel_delete", on_channel_deleted),
        ("raw_thread_delete", on_thread_deleted),
        ("guild_channel_update", publicness.channel_changed),
        ("guild_role_update", publicness.role_changed),
        ("thread_update", publicness.thread_changed),
    )
    for event, handler in listeners:
        app.listen(event, kept(handler))
    app.at_session(publicness.look_at_all)
    app.at_session(finish_erasures)
    app.at_session(deletions.reconcile)
