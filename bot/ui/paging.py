"""Lists that are shown a page at a time: which page there is, and the buttons that turn it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import discord

from bot.language.texts import tr


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
