"""What all features share: the tree of commands, the forms, and buttons that nobody knows any more."""

from __future__ import annotations

from typing import Any

import discord

from bot.client import StropClient
from bot.ui import help, outdated
from bot.ui.command_tree import StropTree
from bot.ui.form_router import FormRouter


def setup(app: StropClient) -> None:
    """Add the tree and the forms; both are filled by the features."""
    tree = StropTree(app)
    app.tree = tree
    tree.add_command(help.help_command)
    forms = app.add_feature(FormRouter())

    async def on_interaction(interaction: discord.Interaction[Any]) -> None:
        """A form that was sent in, or what no handler knows any more; the rest has handlers of its own."""
        await forms.handle(interaction)
        await outdated.handle(interaction, app.lasting_items)

    app.listen("interaction", on_interaction)
    app.at_setup(tree.publish)
