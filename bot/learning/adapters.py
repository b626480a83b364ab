"""/adapters: the history of what was trained, a page at a time, with buttons that survive a restart."""

from __future__ import annotations

import discord
from discord import app_commands

from bot.learning import adapter_text
from bot.ui.interactions import Interaction
from bot.ui.paging import PageButton, clamp_page, page_template, page_view
from storage.db.database import Connection
from storage.learning import adapters, lineage
from storage.learning.lineage import AdapterHistory

PAGE = 4


@app_commands.command(
    name="adapters", description="The adapters trained so far, with their scores and lineage."
)
async def adapters_command(interaction: Interaction) -> None:
    """Show the newest adapters."""
    await AdaptersButton.show_newest(interaction)


class AdaptersButton(PageButton, template=page_template("adapters")):
    """Turns to another page of the adapters."""

    kind = "adapters"

    @classmethod
    async def page_of(cls, interaction: Interaction, page: int) -> tuple[str, discord.ui.View]:
        """Return four adapters with their scores and lineage."""
        services = interaction.client.services
        scope, base_hash = services.scope(interaction.guild_id), await services.base_hash()

        def work(db: Connection) -> tuple[list[AdapterHistory], int, int, str | None]:
            shown, pages = clamp_page(page, lineage.count(db, scope), PAGE)
            histories = lineage.page(db, scope, skip=shown * PAGE, limit=PAGE)
            return histories, shown, pages, adapters.champion(db, scope, base_hash)

        histories, shown, pages, champion = await services.database.aread(work)
        text = adapter_text.page_text(histories, champion, number=shown + 1, pages=pages)
        return text, page_view(cls, shown, pages)
