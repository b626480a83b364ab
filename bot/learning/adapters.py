"""/adapters: the history of what was trained, a page at a time, with buttons that survive a restart."""

from __future__ import annotations

import re
from typing import Any, Self

import discord
from discord import app_commands

from bot.learning import adapter_text
from bot.ui.interactions import Interaction, say, with_error_reply
from bot.ui.paging import clamp_page, page_view
from storage.db.database import Connection
from storage.learning import adapters, lineage
from storage.learning.lineage import AdapterHistory

PAGE = 4


@app_commands.command(
    name="adapters", description="The adapters trained so far, with their scores and lineage."
)
async def adapters_command(interaction: Interaction) -> None:
    """Show the newest adapters."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    text, view = await _page(interaction, 0)
    await say(interaction, text, **({"view": view} if view.children else {}))


class AdaptersButton(
    discord.ui.DynamicItem[discord.ui.Button[discord.ui.View]],
    template=r"strop:adapters:(?P<page>\d{1,6})",
):
    """Turns to the page in its custom id; 0 has the newest adapters."""

    def __init__(self, page: int, label: str = "…") -> None:
        self.page = page
        super().__init__(discord.ui.Button(label=label, custom_id=f"strop:adapters:{page}"))

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction[Any], item: discord.ui.Item[Any], match: re.Match[str], /
    ) -> Self:
        """Make the button again from its custom id."""
        return cls(int(match["page"]))

    @with_error_reply
    async def callback(self, interaction: Interaction) -> None:
        """Show another page in place."""
        await interaction.response.defer()
        text, view = await _page(interaction, self.page)
        await interaction.edit_original_response(content=text, view=view)


async def _page(interaction: Interaction, page: int) -> tuple[str, discord.ui.View]:
    """Return a page, or the last one where there are fewer, with its buttons."""
    services = interaction.client.services
    scope, base_hash = services.scope(interaction.guild_id), await services.base_hash()

    def work(db: Connection) -> tuple[list[AdapterHistory], int, int, str | None]:
        shown, pages = clamp_page(page, lineage.count(db, scope), PAGE)
        histories = lineage.page(db, scope, skip=shown * PAGE, limit=PAGE)
        return histories, shown, pages, adapters.champion(db, scope, base_hash)

    histories, shown, pages, champion = await services.database.aread(work)
    view = page_view(AdaptersButton, shown, pages)
    return adapter_text.page_text(histories, champion, number=shown + 1, pages=pages), view
