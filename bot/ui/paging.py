"""Lists that are shown a page at a time: which page there is, and the buttons that turn it."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Self

import discord

from bot.language.texts import tr
from bot.ui.interactions import Interaction, say, with_error_reply


def clamp_page(wanted: int, entries: int, size: int) -> tuple[int, int]:
    """Return the page to show, the last one where there are fewer than wanted, and how many there are."""
    pages = max(-(-entries // size), 1)
    return min(wanted, pages - 1), pages


def page_view(button: Callable[[int, str], discord.ui.Item[Any]], shown: int, pages: int) -> discord.ui.View:
    """Return the buttons to the pages beside the one that is shown; `button` makes one of page and label."""
    view = discord.ui.View(timeout=None)
    if shown > 0:
        view.add_item(button(shown - 1, tr("Newer")))
    if shown < pages - 1:
        view.add_item(button(shown + 1, tr("Older")))
    return view


class PageButton(discord.ui.DynamicItem[discord.ui.Button[discord.ui.View]], template=r"(?!)"):
    """Turns to the page in its custom id; 0 has the newest entries. It works after a restart.

    A list derives its own, with ``template=page_template(kind)``; this one answers to no custom id.
    """

    kind: ClassVar[str]

    def __init__(self, page: int, label: str = "…") -> None:
        self.page = page
        super().__init__(discord.ui.Button(label=label, custom_id=f"strop:{self.kind}:{page}"))

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction[Any], item: discord.ui.Item[Any], match: re.Match[str], /
    ) -> Self:
        """Make the button again from its custom id."""
        return cls(int(match["page"]))

    @classmethod
    @abstractmethod
    async def page_of(cls, interaction: Interaction, page: int) -> tuple[str, discord.ui.View]:
        """Return a page, or the last one where there are fewer, with its buttons."""

    @classmethod
    async def show_newest(cls, interaction: Interaction) -> None:
        """Answer a command with the first page."""
        await interaction.response.defer(ephemeral=True, thinking=True)
        text, view = await cls.page_of(interaction, 0)
        await say(interaction, text, **({"view": view} if view.children else {}))

    @with_error_reply
    async def callback(self, interaction: Interaction) -> None:
        """Show another page in place."""
        await interaction.response.defer()
        text, view = await self.page_of(interaction, self.page)
        await interaction.edit_original_response(content=text, view=view)


def page_template(kind: str) -> str:
    """Return the pattern of the custom ids of a list's buttons."""
    return rf"strop:{kind}:(?P<page>\d{{1,6}})"
