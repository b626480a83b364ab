"""The buttons below a reply. They survive a restart: all they need is in their custom id."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Self

import discord

from bot.delivery.reply_controls import EMOJI, FINISHED, custom_id
from bot.feedback import reply_view
from bot.feedback.reply_actions import UNKNOWN, ReplyActions
from bot.feedback.side_by_side import compare_view
from bot.language.texts import tr
from bot.ui.interactions import Interaction, say, with_error_reply
from storage.chat.reply_versions import Versions
from storage.config_sections import RepliesConfig


class ReplyButton(
    discord.ui.DynamicItem[discord.ui.Button[discord.ui.View]],
    template=r"strop:reply:(?P<action>[a-z]{1,12}):(?P<reply>[A-Za-z0-9_.\-]{1,64})",
):
    """One action on one reply: small, grey, and without words where a picture is clear."""

    def __init__(self, action: str, reply_id: str, label: str | None = None, row: int | None = None) -> None:
        self.action = action
        self.reply_id = reply_id
        super().__init__(
            discord.ui.Button(
                style=discord.ButtonStyle.secondary,
                emoji=EMOJI.get(action),
                label=label,
                custom_id=custom_id(action, reply_id),
                row=row,
            )
        )

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction[Any], item: discord.ui.Item[Any], match: re.Match[str], /
    ) -> Self:
        """Make the button again from its custom id."""
        return cls(match["action"], match["reply"])

    @with_error_reply
    async def callback(self, interaction: Interaction) -> None:
        """Do what the button is for, in the server in which the reply stands."""
        services, guild_id = interaction.client.services, interaction.guild_id
        if not await services.database.aread(
            lambda db: reply_view.find_in_server(db, self.reply_id, guild_id)
        ):
            return await say(interaction, tr(UNKNOWN))
        await interaction.client.feature(ReplyActions).press(interaction, self.action, self.reply_id)
        return None


class Controls:
    """Which buttons stand below a reply, as the configuration wants it."""

    def __init__(self, config: RepliesConfig) -> None:
        self._config = config

    def writing(self, reply_id: str) -> discord.ui.View | None:
        """Return what stands below a reply that is being written."""
        if "stop" not in self._config.buttons:
            return None
        return _view([ReplyButton("stop", reply_id)])

    def finished_controls(
        self, reply_id: str, versions: Versions | None = None, *, has_text: bool = True, votes: Votes = (0, 0)
    ) -> discord.ui.View | None:
        """Return what stands below a reply that is done; one without words can only be written again."""
        wanted = [action for action in FINISHED if action in self._config.buttons]
        if not has_text:
            wanted = [action for action in wanted if action == "regenerate"]
        buttons = [ReplyButton(action, reply_id) for action in wanted]
        if self._config.rating_buttons and has_text:
            buttons = [*_thumbs(reply_id, votes), *buttons]
        if versions is not None and versions.total > 1:
            arrows = [
                ReplyButton("back", reply_id, row=0),
                ReplyButton("forward", reply_id, label=f"{versions.number}/{versions.total}", row=0),
            ]
            # A row holds five buttons.
            for button in buttons:
                button.row = 0 if len(arrows) + len(buttons) <= _ROW else 1
            buttons = [*arrows, *buttons]
        return _view(buttons)

    def comparing(self, first_id: str) -> discord.ui.View:
        """Return what stands below two candidates."""
        return compare_view(first_id)


Votes = tuple[int, int]
"""How many members pressed 👍 and 👎, or reacted so."""

_ROW = 5


def _thumbs(reply_id: str, votes: Votes) -> list[ReplyButton]:
    """The thumbs with their counts; who pressed which is shown to nobody."""
    return [
        ReplyButton(action, reply_id, label=str(count) if count else None)
        for action, count in zip(("up", "down"), votes, strict=True)
    ]


def _view(items: Sequence[ReplyButton]) -> discord.ui.View | None:
    if not items:
        return None
    view = discord.ui.View(timeout=None)
    for item in items:
        view.add_item(item)
    return view
