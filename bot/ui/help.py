"""/help: what the member who asks may do here, read from the commands themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import discord
from discord import app_commands

from bot.language.texts import mark, tr
from bot.ui.channels import parent_of
from bot.ui.interactions import ACTS_ON_A_SCOPE, Interaction, say
from storage.admin import blocks
from storage.admin.settings import Settings
from storage.chat import members
from storage.db.database import Connection

Command: TypeAlias = app_commands.Command[Any, ..., Any] | app_commands.Group
_LIMIT = 1990
_EVERYBODY = mark("Commands for everybody")
_MODERATORS = mark("What you may do as a moderator here")
_OPERATORS = mark("What you may do as an operator of this bot")


@dataclass(frozen=True, slots=True)
class Standing:
    """How a member stands where they ask: what is set there, and what they and others decided."""

    direct: bool
    settings: Settings
    consent: str
    blocked: bool
    asks_for_consent: bool
    server_trains: bool


@app_commands.command(name="help", description="What you can do here, and with which commands.")
async def help_command(interaction: Interaction) -> None:
    """Answer for the eyes of the member who asks: nobody else may do the same."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    standing = await _standing(interaction)
    lines = [*introduction(standing), *await _commands(interaction)]
    menu = [tr(each.name) for each in interaction.client.tree.get_commands(type=_MESSAGE_MENU)]
    if menu and not standing.blocked:
        lines += ["", tr("Right-click a reply → Apps: {names}.", names=", ".join(menu))]
    for page in pages(lines):
        await say(interaction, page)


def pages(lines: Sequence[str]) -> list[str]:
    """Put lines together into as few messages as Discord's limit allows."""
    found = [""]
    for line in lines:
        if len(found[-1]) + len(line) + 1 > _LIMIT:
            found.append("")
        found[-1] = f"{found[-1]}\n{line}" if found[-1] else line
    return found


_MESSAGE_MENU = discord.AppCommandType.message


async def _standing(interaction: Interaction) -> Standing:
    services, user_id, guild_id = interaction.client.services, interaction.user.id, interaction.guild_id
    home = parent_of(interaction.channel) or interaction.channel_id
    found = await services.settings(guild_id, home)

    def work(db: Connection) -> tuple[members.Member | None, bool]:
        return members.get(db, user_id), blocks.is_blocked(db, guild_id, user_id)

    member, blocked = await services.database.aread(work)
    return Standing(
        direct=guild_id is None,
        settings=found.settings,
        consent=member.consent if member else "unset",
        blocked=blocked,
        asks_for_consent=not services.playground,
        server_trains=services.config.trainer.scope == "guild",
    )


def introduction(standing: Standing) -> list[str]:
    """Say how to talk to the bot here, how to rate, and what becomes of it."""
    if standing.blocked:
        return [tr("You are blocked here: I don't answer you, and your ratings don't count.")]
    held = standing.settings
    if standing.direct:
        talk = tr("Write to me, and I answer.")
    elif "every" in held.triggers:
        talk = tr("I answer every message in this channel.")
    else:
        talk = tr("Mention me or reply to me, and I answer.")
    rate = tr(
        "Rate replies with {up} and {down}, or write a better one with ✏️.",
        up=held.rating_up[0],
        down=held.rating_down[0],
    )
    return [talk, rate, _learning(standing)]


def _learning(standing: Standing) -> str:
    """Say whether what the member writes and rates here is learned from."""
    if standing.direct and standing.server_trains:
        return tr("In direct messages the base model answers, and I learn nothing from them.")
    if standing.direct:
        return tr("I learn nothing from direct messages.")
    if not standing.settings.training:
        return tr("I learn nothing from this channel: that is how it is set.")
    if standing.consent == "out":
        return tr("I learn nothing from you: you opted out. `/privacy opt-in` changes that.")
    if standing.asks_for_consent and standing.consent != "in":
        return tr("I learn from your messages and ratings only if you agree: `/privacy opt-in`.")
    return tr("I learn from your messages and ratings here. `/privacy opt-out` ends that.")


async def _commands(interaction: Interaction) -> list[str]:
    """Return the commands that the member may use here, by what they need to be for it."""
    found: dict[str, list[str]] = {_EVERYBODY: [], _MODERATORS: [], _OPERATORS: []}
    tree = interaction.client.tree
    for command in sorted(tree.get_commands(type=discord.AppCommandType.chat_input), key=_name):
        if isinstance(command, app_commands.ContextMenu) or not await _may_use(interaction, command):
            continue
        found[_needs(command)].append(f"`/{command.name}` {tr(command.description)}")
    return [line for title, lines in found.items() if lines for line in _section(title, lines)]


def _name(command: Any) -> str:
    return str(command.name)


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return ["", f"**{tr(title)}**", *lines]


def _needs(command: Command) -> str:
    if command.default_permissions is not None:
        return _MODERATORS
    return _OPERATORS if all(each.checks for each in _leaves(command)) else _EVERYBODY


async def _may_use(interaction: Interaction, command: Command) -> bool:
    if interaction.guild_id is None and (command.guild_only or _acts_on_a_server(interaction, command)):
        return False
    is_operator = interaction.client.is_operator(interaction.user.id)
    needed = command.default_permissions
    if needed is not None and not is_operator and not needed <= interaction.permissions:
        return False
    return any([await _passes(interaction, each) for each in _leaves(command)])


def _acts_on_a_server(interaction: Interaction, command: Command) -> bool:
    """Whether a command changes a server's adapter, which a direct message has none of."""
    scope = interaction.client.services.config.trainer.scope
    return scope == "guild" and bool(command.extras.get(ACTS_ON_A_SCOPE))


def _leaves(command: Command) -> Iterator[app_commands.Command[Any, ..., Any]]:
    """Yield the commands below a group, or the command itself."""
    if isinstance(command, app_commands.Command):
        yield command
        return
    for each in command.walk_commands():
        if isinstance(each, app_commands.Command):
            yield each


async def _passes(interaction: Interaction, command: app_commands.Command[Any, ..., Any]) -> bool:
    try:
        for check in command.checks:
            if not await discord.utils.maybe_coroutine(check, interaction):
                return False
    except app_commands.AppCommandError:
        return False
    return True
