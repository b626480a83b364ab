"""A member's own better answers, and taking them back: what /privacy corrections shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import discord

from bot.commands.tree import Interaction, guarded, say
from bot.services import Services
from bot.texts import mark, tr
from storage import ratings
from storage.ratings import Rating

NONE = mark("You have written no better answers that stand. ✏️ below a reply is where to write one.")
# A menu holds twenty-five entries.
MOST = 25
_OPEN_S = 600.0
_SHOWN = 90


async def offer(interaction: Interaction, services: Services) -> None:
    """Show the member's better answers with a menu to take some of them back."""
    user_id = interaction.user.id
    mine = await services.database.aread(lambda db: ratings.corrections_of(db, user_id, MOST))
    if not mine:
        return await say(interaction, tr(NONE))
    text = tr("Your better answers, the newest first ({count}). Choose those to take back.", count=len(mine))
    return await say(interaction, text, view=_Menu(mine))


class _Menu(discord.ui.View):
    """The member's better answers; it is theirs alone, since the message is."""

    def __init__(self, mine: Sequence[Rating]) -> None:
        super().__init__(timeout=_OPEN_S)
        self.add_item(_Select(mine))


class _Select(discord.ui.Select[_Menu]):
    """One entry a better answer."""

    def __init__(self, mine: Sequence[Rating]) -> None:
        options = [
            discord.SelectOption(label=_cut(rating.text or ""), value=rating.reply_id) for rating in mine
        ]
        super().__init__(placeholder=tr("Take back…"), max_values=len(options), options=options)

    async def callback(self, interaction: discord.Interaction[Any]) -> None:
        """Take the chosen ones back."""
        await self._chosen(interaction)

    @guarded
    async def _chosen(self, interaction: Interaction) -> None:
        await interaction.response.defer(ephemeral=True, thinking=True)
        user_id, chosen = interaction.user.id, list(self.values)

        def work(db: Any) -> int:
            return sum(
                ratings.retract(db, reply_id=reply_id, user_id=user_id, kind="correction")
                for reply_id in chosen
            )

        taken = await interaction.client.services.database.awrite(work)
        await say(interaction, tr("Better answers taken back: {count}.", count=taken))


def _cut(text: str) -> str:
    shown = " ".join(text.split()) or tr("(empty)")
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
