"""The tree of all commands: registered with Discord when they change, in every language."""

from __future__ import annotations

import hashlib
import json

import discord
import structlog
from discord import app_commands
from discord.app_commands import TranslationContextLocation, TranslationContextTypes

from bot.client import StropClient
from bot.language import texts
from bot.ui.interactions import Interaction, report_error, set_language
from storage.db import key_values

_TRANSLATED = (
    TranslationContextLocation.command_description,
    TranslationContextLocation.group_description,
    TranslationContextLocation.parameter_description,
    TranslationContextLocation.choice_name,
)

_log = structlog.get_logger(__name__)


class StropTree(app_commands.CommandTree[StropClient]):
    """All commands of the bot."""

    async def interaction_check(self, interaction: Interaction, /) -> bool:
        """Settle the language before a command answers; who may use it is each command's own check."""
        await set_language(interaction)
        return True

    async def on_error(self, interaction: Interaction, error: app_commands.AppCommandError) -> None:
        """Tell the member in one sentence what went wrong."""
        cause = error.original if isinstance(error, app_commands.CommandInvokeError) else error
        command = interaction.command.qualified_name if interaction.command else "?"
        await report_error(interaction, cause, f"/{command}")

    async def publish(self) -> None:
        """Register the commands in every language."""
        await self.set_translator(CommandWords())
        if not self.client.services.shards.has_first:
            return
        await self.sync_if_changed(always=self.client.services.playground)

    async def sync_if_changed(self, *, always: bool = False) -> bool:
        """Register the commands with Discord if their definition differs from the one registered last.

        Discord allows 200 registrations a day. ``always`` is for the playground, which forgets them when it
        stops.
        """
        database = self.client.services.database
        key = f"commands.hash:{self.client.application_id}"
        digest = await self._definition_hash()
        if not always and await database.aread(lambda db: key_values.get(db, key)) == digest:
            return False
        try:
            await self.sync()
        except discord.HTTPException as error:
            _log.error("commands.not_synced", error=str(error))
            return False
        await database.awrite(lambda db: key_values.put(db, key, digest))
        _log.info("commands.synced", count=len(self.get_commands()))
        return True

    async def _definition_hash(self) -> str:
        """Hash what `sync` would send, the words of every language included."""
        translator = self.translator
        definitions = [
            command.to_dict(self)
            if translator is None
            else await command.get_translated_payload(self, translator)
            for command in self.get_commands()
        ]
        ordered = sorted(definitions, key=lambda each: (int(each["type"]), str(each["name"])))
        return hashlib.sha256(json.dumps(ordered, sort_keys=True).encode()).hexdigest()


class CommandWords(app_commands.Translator):
    """What commands say of themselves, in the language that each member has set at Discord.

    The names of slash commands and of their options stay English: texts and guides name them. Those of the
    context menu are its labels, and are translated.
    """

    async def translate(
        self, string: app_commands.locale_str, locale: discord.Locale, context: TranslationContextTypes
    ) -> str | None:
        """Return the words in a language, or None where the English ones stay."""
        where = context.location
        if where not in _TRANSLATED and not isinstance(context.data, app_commands.ContextMenu):
            return None
        return texts.catalogue(texts.choose("auto", locale)).get(string.message)
