"""/privacy ratings: a member's own ratings, page by page, and taking them back. For their eyes only.

Whose ratings they are is never in a button: whoever presses one sees and changes their own.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import discord

from bot.errors import DeliveryError
from bot.feedback.reply_actions import ReplyActions
from bot.language.texts import mark, tr
from bot.services import Services
from bot.ui.interactions import Interaction, with_error_reply
from storage.db.database import Connection
from storage.feedback import my_ratings
from storage.feedback.my_ratings import OwnRating

PAGE = 10
NONE = mark("You have no ratings. Rate an answer with 👍 or 👎 below it.")
TITLE = mark("Your ratings ({count}), the newest first. Nobody else is shown them.")
TAKEN_BACK = mark("Taken back: {count}.")
BY_REACTION = mark(
    "-# A reaction is taken back by removing it from its message, everything else with the menu."
)
CHOICES = {1: "A", 0: mark("Tie"), -1: "B"}
_SHOWN = 60
_LABEL = 90
_LIMIT = 1990


@dataclass(frozen=True, slots=True)
class _Page:
    mine: Sequence[OwnRating]
    total: int
    offset: int


async def offer(interaction: Interaction) -> None:
    """Show the newest page."""
    content, view = _shown(await _read(interaction.client.services, interaction.user.id, 0))
    await interaction.followup.send(content, view=view, ephemeral=True)


def dynamic_items() -> tuple[type[discord.ui.DynamicItem[Any]], ...]:
    """Return the parts of the list that answer after a restart as well."""
    return RatingsPageButton, TakeBackSelect


class RatingsPageButton(
    discord.ui.DynamicItem[discord.ui.Button[discord.ui.View]],
    template=r"strop:mine:page:(?P<offset>\d{1,9})",
):
    """Turns the page."""

    def __init__(self, offset: int, emoji: str = "▶️") -> None:
        self.offset = offset
        super().__init__(discord.ui.Button(emoji=emoji, custom_id=f"strop:mine:page:{offset}"))

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction[Any], item: discord.ui.Item[Any], match: re.Match[str], /
    ) -> Self:
        """Make the button again from its custom id."""
        return cls(int(match["offset"]))

    @with_error_reply
    async def callback(self, interaction: Interaction) -> None:
        """Show another page in place."""
        await interaction.response.defer()
        await _show(interaction, self.offset)


class TakeBackSelect(
    discord.ui.DynamicItem[discord.ui.Select[discord.ui.View]],
    template=r"strop:mine:back:(?P<offset>\d{1,9})",
):
    """Takes ratings of one page back."""

    def __init__(self, offset: int, options: Sequence[discord.SelectOption] = ()) -> None:
        self.offset = offset
        super().__init__(
            discord.ui.Select(
                custom_id=f"strop:mine:back:{offset}",
                placeholder=tr("Take back…"),
                max_values=max(1, len(options)),
                options=list(options),
            )
        )

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction[Any], item: discord.ui.Item[Any], match: re.Match[str], /
    ) -> Self:
        """Make the menu again from its custom id."""
        return cls(int(match["offset"]))

    @with_error_reply
    async def callback(self, interaction: Interaction) -> None:
        """Take the chosen ones back, and show the page without them."""
        await interaction.response.defer()
        user_id, chosen = interaction.user.id, _chosen(interaction)

        def work(db: Connection) -> list[str]:
            shown = [my_ratings.find_pressed_reply(db, user_id, key) for key in chosen]
            taken = [my_ratings.take_back(db, user_id, key) for key in chosen]
            return [reply_id for reply_id, done in zip(shown, taken, strict=True) if reply_id and done]

        redrawn = await interaction.client.services.database.awrite(work)
        for reply_id in dict.fromkeys(redrawn):
            # Its buttons count the thumbs; where Discord refuses, the count is right at the next press.
            with contextlib.suppress(DeliveryError):
                await interaction.client.feature(ReplyActions).redraw(reply_id)
        await _show(interaction, self.offset, tr(TAKEN_BACK, count=len(chosen)))


async def _show(interaction: Interaction, offset: int, told: str = "") -> None:
    page = await _read(interaction.client.services, interaction.user.id, offset)
    content, view = _shown(page)
    await interaction.edit_original_response(content=f"{told}\n{content}".strip(), view=view)


async def _read(services: Services, user_id: int, offset: int) -> _Page:
    """Return one page; the last one where the offset lies beyond it."""

    def work(db: Connection) -> _Page:
        total = my_ratings.counts(db, user_id).ratings
        begin = min(offset, max(0, total - 1) // PAGE * PAGE)
        return _Page(my_ratings.page(db, user_id, limit=PAGE, offset=begin), total, begin)

    return await services.database.aread(work)


def _shown(page: _Page) -> tuple[str, discord.ui.View]:
    view = discord.ui.View(timeout=None)
    if not page.mine:
        return tr(NONE), view
    lines = [tr(TITLE, count=page.total), *(_line(each) for each in page.mine)]
    if any(each.by_reaction for each in page.mine):
        lines.append(tr(BY_REACTION))
    options = [
        discord.SelectOption(label=_cut(f"{_face(each)} {each.text or each.reply}", _LABEL), value=each.key)
        for each in page.mine
        if not each.by_reaction and not each.final
    ]
    if options:
        view.add_item(TakeBackSelect(page.offset, options))
    if page.offset:
        view.add_item(RatingsPageButton(max(0, page.offset - PAGE), "◀️"))
    if page.offset + PAGE < page.total:
        view.add_item(RatingsPageButton(page.offset + PAGE))
    return "\n".join(lines)[:_LIMIT], view


def _line(each: OwnRating) -> str:
    said = _cut(each.text or each.reply, _SHOWN)
    quoted = f" “{discord.utils.escape_markdown(said)}”" if said else ""
    when = f"<t:{each.updated_ms // 1000}:R>"
    link = ""
    if each.discord_id is not None:
        link = f" https://discord.com/channels/{each.guild_id or '@me'}/{each.channel_id}/{each.discord_id}"
    return f"{_face(each)}{quoted} {when}{link}"


def _face(each: OwnRating) -> str:
    """Return what was said about a reply, in a sign or two."""
    if each.kind == "correction":
        return "✏️"
    if each.kind == "thumb":
        return each.emoji or ("👍" if each.value > 0 else "👎")
    choice = CHOICES[each.value]
    return f"⚖️ {choice if each.value else tr(choice)}"


def _cut(text: str, limit: int) -> str:
    shown = " ".join(text.split())
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"


def _chosen(interaction: Interaction) -> list[str]:
    data: Mapping[str, Any] = interaction.data or {}
    return [str(value) for value in data.get("values") or []]
