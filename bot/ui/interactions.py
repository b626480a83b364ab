"""What commands, buttons and forms share: language, permissions and error replies."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

import aiohttp
import discord
import structlog
from discord import app_commands

from bot.client import StropClient
from bot.errors import DeliveryError
from bot.language import texts
from bot.language.sentences import translate
from bot.language.texts import mark, tr
from bot.operators import NOT_OPERATOR, NotOperatorError
from bot.serving.errors import (
    ServerLoadingError,
    ServerUnavailableError,
    ServingError,
    UnknownModelError,
)
from bot.ui.channels import parent_of
from storage.errors import DatabaseBusyError, DiskFullError, RuleError, StorageError

Interaction: TypeAlias = discord.Interaction[StropClient]

DISCORD_REFUSED = mark(
    "Discord did not let me do that just now. Please try again in a moment; if it stays so, /setup names the "
    "permission that I lack."
)
CHANGED = mark("This command has changed since your Discord loaded it: restart Discord and try again.")
NO_SUCH_MESSAGE = mark("Its message is gone.")
NO_SUCH_MODEL = mark(
    "My model server doesn't have the model that I am set to use. Please tell whoever runs me."
)

# Discord's codes for an interaction that takes no (further) answer: unknown after three seconds, its token
# used up after fifteen minutes, or answered already.
# https://discord.com/developers/docs/topics/opcodes-and-status-codes#json
_OVER = frozenset({10015, 10062, 40060, 50027})
_UNKNOWN_MESSAGE = 10008
_BAD_REQUEST = 400

_log = structlog.get_logger(__name__)


def _is_operator(interaction: Interaction) -> bool:
    if not interaction.client.is_operator(interaction.user.id):
        raise NotOperatorError(NOT_OPERATOR)
    return True


ACTS_ON_A_SCOPE = "acts_on_a_scope"
"""Marks in a command's `extras` that it asks `acting_scope`."""

operators_only = app_commands.check(_is_operator)
"""Let only operators through. Discord's own command permissions are a hint that guild admins can override."""


def acting_scope(interaction: Interaction) -> str:
    """Return whose adapter a command changes.

    Raises NoPrivateMessage where every server trains its own: in direct messages the base answers, always.
    """
    services = interaction.client.services
    if interaction.guild_id is None and services.config.trainer.scope == "guild":
        raise app_commands.NoPrivateMessage
    return services.scope(interaction.guild_id)


def with_error_reply(
    function: Callable[[Any, Any], Coroutine[Any, Any, None]],
) -> Callable[[Any, Any], Coroutine[Any, Any, None]]:
    """Give a button's callback the commands' error handling; discord.py would only log."""

    @functools.wraps(function)
    async def checked(item: Any, interaction: Interaction) -> None:
        try:
            await set_language(interaction)
            await function(item, interaction)
        except Exception as error:  # The boundary of a button: whoever pressed it must hear something.
            await report_error(interaction, error, type(item).__name__)

    return checked


def autocomplete_safe(
    function: Callable[[Any, Any], Coroutine[Any, Any, list[app_commands.Choice[Any]]]],
) -> Callable[[Any, Any], Coroutine[Any, Any, list[app_commands.Choice[Any]]]]:
    """Handle errors of an option's autocomplete; discord.py would log each late one with its traceback.

    Discord asks again at every key and forgets earlier requests, so late answers are ordinary. Without
    suggestions the option can still be typed.
    """

    @functools.wraps(function)
    async def checked(interaction: Interaction, typed: Any) -> list[app_commands.Choice[Any]]:
        command = interaction.command.qualified_name if interaction.command else "?"
        try:
            choices = await function(interaction, typed)
        except Exception as error:  # The boundary of the suggestions: nobody can be told.
            sentence_for(error, f"/{command} …")
            choices = []
        try:
            await interaction.response.autocomplete(choices)
        except (discord.DiscordException, aiohttp.ClientError, OSError) as error:
            _log.debug("suggestions.too_late", where=f"/{command}", error=type(error).__name__)
        return choices

    return checked


async def report_error(interaction: Interaction, error: BaseException, where: str) -> None:
    """Tell whoever used a command, a button or a form what went wrong, where it can still be answered."""
    if isinstance(error, discord.HTTPException) and error.code in _OVER:
        # It came too late, and whoever waited was told so by Discord.
        _log.info("interaction.over", where=where, code=error.code)
        return
    await say(interaction, sentence_for(error, where))


async def set_language(interaction: Interaction) -> None:
    """Use the server's language for replies, or the member's own where none is set."""
    services = interaction.client.services
    try:
        found = await services.settings(
            interaction.guild_id, parent_of(interaction.channel) or interaction.channel_id
        )
    except StorageError:
        return texts.speak(texts.choose("auto", interaction.locale))
    return texts.speak(texts.choose(found.settings.language, interaction.locale))


def sentence_for(error: BaseException, where: str) -> str:
    """Return what to tell the member; the unexpected goes to the log under an id that the sentence names."""
    if isinstance(error, NotOperatorError):
        return tr(NOT_OPERATOR)
    if isinstance(error, app_commands.NoPrivateMessage):
        return tr("This works only in a server.")
    if isinstance(error, ServerLoadingError):
        return tr("My model is still loading. Please try again in a moment.")
    if isinstance(error, ServerUnavailableError):
        return tr("My model server is not reachable right now; I'll be back by myself when it is.")
    if isinstance(error, DiskFullError):
        _log.error("command.disk_full", where=where)
        return tr("My disk is full, so I can't store anything. Please tell whoever runs me.")
    if isinstance(error, DatabaseBusyError):
        _log.warning("command.database_busy", where=where)
        return tr("My database is busy with something else. Please try again in a moment.")
    if isinstance(error, UnknownModelError):
        _log.error("command.no_such_model", where=where, error=str(error))
        return tr(NO_SUCH_MODEL)
    if isinstance(error, RuleError | ServingError):
        return translate(error)
    if isinstance(error, app_commands.CommandNotFound | app_commands.CommandSignatureMismatch):
        _log.warning("command.changed", where=where)
        return tr(CHANGED)
    if isinstance(error, discord.NotFound) and error.code == _UNKNOWN_MESSAGE:
        _log.info("command.message_gone", where=where)
        return tr(NO_SUCH_MESSAGE)
    if _is_discords(error):
        code = getattr(error.__cause__ or error, "code", None)
        _log.warning("command.discord_refused", where=where, error=type(error).__name__, code=code)
        return tr(DISCORD_REFUSED)
    error_id = secrets.token_hex(4)
    expected = isinstance(error, StorageError)
    _log.error(
        "command.failed",
        where=where,
        error_id=error_id,
        error=str(error) if expected else type(error).__name__,
        exc_info=None if expected else error,
    )
    return tr(
        "Something went wrong on my side (error `{id}`). It is in my log; please try again.", id=error_id
    )


def _is_discords(error: BaseException) -> bool:
    """Whether Discord, or the way to it, is what failed; what it calls a bad request is a fault of ours."""
    if isinstance(error, discord.HTTPException):
        return error.status != _BAD_REQUEST
    return isinstance(error, DeliveryError | aiohttp.ClientError)


async def say(interaction: Interaction, content: str, **options: Any) -> None:
    """Answer an interaction visibly to its member only, whether or not it was acknowledged."""
    options.setdefault("allowed_mentions", discord.AllowedMentions.none())
    try:
        if interaction.response.is_done():
            await interaction.followup.send(content, ephemeral=True, **options)
        else:
            await interaction.response.send_message(content, ephemeral=True, **options)
    except (discord.DiscordException, aiohttp.ClientError, OSError) as error:
        code = getattr(error, "code", None)
        _log.warning("interaction.not_answered", error=type(error).__name__, code=code)
