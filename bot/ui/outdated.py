"""Buttons and menus that nobody answers any more: those of messages that another version of the bot wrote."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import discord
import structlog

from bot.language.texts import mark, tr
from bot.ui.interactions import Interaction, report_error, say, set_language

OUTDATED = mark("This is from another version of me, and I no longer know what it does.")
_OURS = ("strop:", "settings:")

_log = structlog.get_logger(__name__)


async def handle(interaction: Interaction, known: Iterable[type[discord.ui.DynamicItem[Any]]]) -> None:
    """Say so where a button or menu of ours has no handler; Discord would only call it failed."""
    if interaction.type is not discord.InteractionType.component:
        return
    data: Mapping[str, Any] = interaction.data or {}
    custom_id = str(data.get("custom_id", ""))
    if not custom_id.startswith(_OURS) or any(_made(item, custom_id) for item in known):
        return
    try:
        await set_language(interaction)
        _log.info("interaction.outdated", custom_id=custom_id)
        await say(interaction, tr(OUTDATED))
    except Exception as error:  # The boundary of an interaction: whoever pressed must hear something.
        await report_error(interaction, error, "outdated")


def _made(item: type[discord.ui.DynamicItem[Any]], custom_id: str) -> bool:
    return item.__discord_ui_compiled_template__.fullmatch(custom_id) is not None
