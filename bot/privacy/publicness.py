"""Which channels everybody can read: noted whenever it may have changed, because nothing private trains.

Discord tells of a change only while somebody listens, so every channel in which something was said is looked
at again with each session.
"""

from __future__ import annotations

from collections.abc import Iterable

import discord
import structlog

from bot.client import StropClient
from bot.ui.channels import is_public, parent_of
from storage.chat import channels
from storage.db.database import Connection

_log = structlog.get_logger(__name__)


class PublicnessKeeper:
    """Keeps the table of channels in line with Discord."""

    def __init__(self, app: StropClient) -> None:
        self._app = app

    async def look_at_all(self) -> None:
        """Look at every channel in which something was said; one that can't be seen any more is private."""
        known = await self._app.services.database.aread(channels.spoken_in)
        found = [self._app.get_channel(channel_id) for channel_id in known]
        await self._note([each for each in found if isinstance(each, discord.abc.GuildChannel)])
        if self._app.services.playground:
            return
        guilds = {guild.id for guild in self._app.guilds if not guild.unavailable}
        gone = [channel_id for channel_id, each in zip(known, found, strict=True) if each is None]
        await self._app.services.database.awrite(lambda db: channels.hide(db, gone, guilds))

    async def channel_changed(self, _: discord.abc.GuildChannel, channel: discord.abc.GuildChannel) -> None:
        """A channel's permissions or place may have changed, and with a category's those of its channels."""
        inside = channel.channels if isinstance(channel, discord.CategoryChannel) else ()
        await self._note([channel, *inside])

    async def role_changed(self, _: discord.Role, role: discord.Role) -> None:
        """What everybody may do in a server changes with its default role."""
        if role.is_default():
            await self._note(role.guild.channels)

    async def thread_changed(self, _: discord.Thread, thread: discord.Thread) -> None:
        """A thread's parent says who reads it."""
        await self._note([thread])

    async def _note(self, seen: Iterable[discord.abc.GuildChannel | discord.Thread]) -> None:
        facts = [(each.id, each.guild.id, is_public(each), parent_of(each)) for each in seen]

        def work(db: Connection) -> int:
            return sum(
                channels.note(db, channel_id, guild_id=guild_id, public=public, parent_channel_id=parent_id)
                for channel_id, guild_id, public, parent_id in facts
            )

        if facts and (changed := await self._app.services.database.awrite(work)):
            _log.info("channels.noted", changed=changed)
