"""Forms that were sent in, brought to whoever handles their kind."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from bot.services import Services
from bot.ui import modals
from bot.ui.interactions import Interaction, report_error, set_language

FormHandler = Callable[[Interaction, Services, str, str], Awaitable[None]]
"""Takes the interaction, what the bot's parts share, what the form is about, and what was typed."""


class FormRouter:
    """Knows who handles which kind of form; each feature adds its own."""

    def __init__(self) -> None:
        self._handlers: dict[str, FormHandler] = {}

    def on(self, kind: str, handler: FormHandler) -> None:
        """Have forms of this kind handled, also those that were opened before a restart."""
        self._handlers[kind] = handler

    async def handle(self, interaction: Interaction) -> None:
        """Handle a form of ours; leave every other interaction alone."""
        form = modals.parse_submission(interaction)
        if form is None:
            return
        kind, subject, text = form
        try:
            await set_language(interaction)
            await self._handlers[kind](interaction, interaction.client.services, subject, text)
        except Exception as error:  # The boundary of a form: whoever sent it must hear something.
            await report_error(interaction, error, f"form {kind}")
