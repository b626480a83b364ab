"""/settings: what a server's admins decide for their server and its channels.

The panel keeps no state: the place and the setting in question stand in the ids of its menus and buttons,
so that it works after a restart, and permission is checked again at every touch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import discord
from discord import app_commands, ui

from bot.chat.listener import READ_EVERYTHING
from bot.chat.threads import missing_for_thread
from bot.language.sentences import translate
from bot.language.texts import mark, tr
from bot.services import Services
from bot.ui import modals
from bot.ui.channels import parent_of
from bot.ui.interactions import Interaction, set_language, with_error_reply
from storage.admin import settings
from storage.admin.setting_values import KINDS, LONGEST_PERSONA, NEED_CONTENT, format_value
from storage.admin.settings import InForce, Origin, Place
from storage.errors import RuleError, SettingError

Where = Literal["server", "channel"]

_PERSONA_SHOWN = 160
# Ten custom emoji, or ten roles as mentions with their limits, have to fit into the form.
_LONGEST_LIST = 800
# Discord takes 2000 characters.
_LIMIT = 2000
_KEYS = "|".join(KINDS)
_ORIGINS: Mapping[Origin, str] = {
    "file": mark("the bot's default"),
    "server": mark("from the server"),
    "channel": mark("from the channel"),
}
_NO_CONTENT = mark(
    "-# Discord doesn't show me messages that don't address me, so **thread**, **every** and follow-ups wait "
    "until whoever runs me lets me read every message."
)
_MISSING = mark("-# For automatic threads I lack the permission {names} in this channel.")


class NotAdminError(RuleError):
    """Somebody without Manage Server touched a server's settings."""


@app_commands.command(name="settings", description="See and change how I behave in this server or channel.")
@app_commands.guild_only()
@app_commands.default_permissions(manage_guild=True)
async def settings_command(interaction: Interaction) -> None:
    """Open the panel."""
    _require_admin(interaction)
    await interaction.response.defer(ephemeral=True, thinking=True)
    panel = await _panel(interaction, "channel", None)
    await interaction.followup.send(panel.text, view=panel.view, ephemeral=True)


def dynamic_items() -> tuple[type[ui.DynamicItem[Any]], ...]:
    """Return the panel's parts that answer after a restart as well."""
    return WhereSelect, KeySelect, ValueSelect, EditButton, ResetButton


@dataclass(frozen=True)
class _Panel:
    text: str
    view: ui.View


async def _panel(interaction: Interaction, where: Where, key: str | None, told: str = "") -> _Panel:
    place = _place(interaction, where)
    found = await interaction.client.services.settings(place.guild_id, place.channel_id)
    view = ui.View(timeout=None)
    view.add_item(WhereSelect(where))
    view.add_item(KeySelect(where, key))
    if key is not None:
        if KINDS[key].choices is None:
            view.add_item(EditButton(where, key))
        else:
            view.add_item(ValueSelect(where, key, current=getattr(found.settings, key)))
        view.add_item(ResetButton(where, key))
    view.add_item(ResetButton(where, "all"))
    lines = [told, *_overview(found, where, key), *_warnings(interaction, found)]
    # Long lists of emoji, roles and words fill a message; what a value is starts its line.
    return _Panel("\n".join(line for line in lines if line)[:_LIMIT], view)


def _overview(found: InForce, where: Where, key: str | None) -> list[str]:
    """Say what is in force and where it comes from."""
    lines = [tr("**In force in {place}**", place=_named(where))]
    for name in KINDS:
        value = KINDS[name].format(getattr(found.settings, name))
        value = value if len(value) <= _PERSONA_SHOWN else f"{value[:_PERSONA_SHOWN]}…"
        pointer = "▸ " if name == key else ""
        quoted = value.replace("`", "'").replace("\n", " ") if name == "system_prompt" else value
        origin = tr(_ORIGINS[found.origins[name]])
        lines.append(f"{pointer}**{name}**: {quoted or tr('none')}  -  {origin}")
    return lines


def _warnings(interaction: Interaction, found: InForce) -> list[str]:
    held = found.settings
    needs_content = (
        held.follow_up_s
        or held.wake_words
        or (NEED_CONTENT & set(held.triggers) and found.origins["triggers"] != "file")
    )
    warnings = []
    if needs_content and not interaction.client.intents.message_content:
        warnings.append(tr(_NO_CONTENT))
        if interaction.client.is_operator(interaction.user.id):
            warnings.append(tr(READ_EVERYTHING))
    if held.auto_thread and (missing := missing_for_thread(interaction.channel)):
        warnings.append(tr(_MISSING, names=", ".join(f"**{tr(name)}**" for name in missing)))
    return warnings


def _place(interaction: Interaction, where: Where) -> Place:
    if interaction.guild_id is None or interaction.channel_id is None:
        raise app_commands.NoPrivateMessage
    home = parent_of(interaction.channel) or interaction.channel_id
    return Place(interaction.guild_id, home if where == "channel" else None)


def _require_admin(interaction: Interaction) -> None:
    """Raise NotAdminError unless the member may manage the server, or runs the bot."""
    if not (interaction.permissions.manage_guild or interaction.client.is_operator(interaction.user.id)):
        raise NotAdminError(
            mark("Only members with the permission **Manage Server** can change my settings.")
        )


async def _show(interaction: Interaction, where: Where, key: str | None, told: str = "") -> None:
    panel = await _panel(interaction, where, key, told)
    if interaction.response.is_done():
        await interaction.edit_original_response(content=panel.text, view=panel.view)
    else:
        await interaction.response.edit_message(content=panel.text, view=panel.view)


async def _change(interaction: Interaction, where: Where, key: str, value: object) -> None:
    """Store a value, then show the panel with what happened."""
    _require_admin(interaction)
    await interaction.response.defer()
    place, services = _place(interaction, where), interaction.client.services
    actor = str(interaction.user.id)
    try:
        changed = await services.database.awrite(
            lambda db: settings.put(db, services.config, place, key, value, actor)
        )
        await set_language(interaction)  # what was changed may be the language
        done = tr(
            "✓ **{key}** is set for {place}; it holds from the next message on.", key=key, place=_named(where)
        )
        told = done if changed else ""
    except SettingError as error:
        told = tr("✗ **{key}** was not changed: {reason}", key=key, reason=translate(error))
    await _show(interaction, where, key, told)


def _named(where: Where) -> str:
    return tr("this channel") if where == "channel" else tr("the whole server")


def _fitting(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _reset_label(where: Where, key: str) -> str:
    if key == "all":
        return tr("Reset all for {place}", place=_named(where))
    return tr("Reset {key}", key=key)


def _as_where(text: str) -> Where:
    return "channel" if text == "channel" else "server"


class WhereSelect(ui.DynamicItem[ui.Select[Any]], template=r"settings:where"):
    """Whether a change is for this channel or for the whole server."""

    def __init__(self, where: Where) -> None:
        options = [
            discord.SelectOption(label=label, value=value, default=value == where)
            for value, label in (
                ("channel", tr("For this channel")),
                ("server", tr("For the whole server")),
            )
        ]
        super().__init__(ui.Select(custom_id="settings:where", options=options, row=0))

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction[Any], item: ui.Item[Any], match: re.Match[str], /
    ) -> WhereSelect:
        """Rebuild the menu when it is used."""
        return cls("channel")

    @with_error_reply
    async def callback(self, interaction: Interaction) -> None:
        """Show the other place."""
        _require_admin(interaction)
        await _show(interaction, _as_where(_chosen(interaction)[0]), None)


class KeySelect(ui.DynamicItem[ui.Select[Any]], template=r"settings:key:(?P<where>server|channel)"):
    """Which setting to change."""

    def __init__(self, where: Where, key: str | None = None) -> None:
        self.where: Where = where
        options = [
            discord.SelectOption(label=name, value=name, description=tr(kind.help)[:100], default=name == key)
            for name, kind in KINDS.items()
        ]
        super().__init__(
            ui.Select(
                custom_id=f"settings:key:{where}", options=options, placeholder=tr("Choose a setting"), row=1
            )
        )

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction[Any], item: ui.Item[Any], match: re.Match[str], /
    ) -> KeySelect:
        """Rebuild the menu when it is used."""
        return cls(_as_where(match["where"]))

    @with_error_reply
    async def callback(self, interaction: Interaction) -> None:
        """Offer the setting's values."""
        _require_admin(interaction)
        await _show(interaction, self.where, _known(_chosen(interaction)[0]))


class ValueSelect(
    ui.DynamicItem[ui.Select[Any]], template=rf"settings:value:(?P<where>server|channel):(?P<key>{_KEYS})"
):
    """The values of a setting that has a few fixed ones."""

    def __init__(self, where: Where, key: str, current: object = None) -> None:
        self.where: Where = where
        self.key = key
        choices: Mapping[str, str] = KINDS[key].choices or {}
        held = set(current) if isinstance(current, tuple) else {format_value(current)}
        super().__init__(
            ui.Select(
                custom_id=f"settings:value:{where}:{key}",
                options=[
                    discord.SelectOption(label=tr(label)[:100], value=value, default=value in held)
                    for value, label in choices.items()
                ],
                placeholder=tr(KINDS[key].help)[:150],
                min_values=0 if KINDS[key].several else 1,
                max_values=len(choices) if KINDS[key].several else 1,
                row=2,
            )
        )

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction[Any], item: ui.Item[Any], match: re.Match[str], /
    ) -> ValueSelect:
        """Rebuild the menu when it is used."""
        return cls(_as_where(match["where"]), match["key"])

    @with_error_reply
    async def callback(self, interaction: Interaction) -> None:
        """Store what was chosen."""
        values = _chosen(interaction)
        await _change(interaction, self.where, self.key, values if KINDS[self.key].several else values[0])


class EditButton(
    ui.DynamicItem[ui.Button[Any]], template=rf"settings:edit:(?P<where>server|channel):(?P<key>{_KEYS})"
):
    """Opens the form in which a value is typed."""

    def __init__(self, where: Where, key: str) -> None:
        self.where: Where = where
        self.key = key
        super().__init__(
            ui.Button(
                label=tr("Change…"),
                style=discord.ButtonStyle.primary,
                custom_id=f"settings:edit:{where}:{key}",
                row=3,
            )
        )

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction[Any], item: ui.Item[Any], match: re.Match[str], /
    ) -> EditButton:
        """Rebuild the button when it is pressed."""
        return cls(_as_where(match["where"]), match["key"])

    @with_error_reply
    async def callback(self, interaction: Interaction) -> None:
        """Show the form with what is in force."""
        _require_admin(interaction)
        place = _place(interaction, self.where)
        found = await interaction.client.services.settings(place.guild_id, place.channel_id)
        value = (
            KINDS[self.key].format(getattr(found.settings, self.key))
            if getattr(found.settings, self.key) != ""
            else ""
        )
        await interaction.response.send_modal(_form(self.where, self.key, value))


class ResetButton(
    ui.DynamicItem[ui.Button[Any]], template=rf"settings:reset:(?P<where>server|channel):(?P<key>all|{_KEYS})"
):
    """Takes back one setting of a place, or all of them."""

    def __init__(self, where: Where, key: str) -> None:
        self.where: Where = where
        self.key = key
        super().__init__(
            ui.Button(
                label=_reset_label(where, key),
                style=discord.ButtonStyle.secondary,
                custom_id=f"settings:reset:{where}:{key}",
                row=4 if key == "all" else 3,
            )
        )

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction[Any], item: ui.Item[Any], match: re.Match[str], /
    ) -> ResetButton:
        """Rebuild the button when it is pressed."""
        return cls(_as_where(match["where"]), match["key"])

    @with_error_reply
    async def callback(self, interaction: Interaction) -> None:
        """Take back what is set here; what stands below it holds again."""
        _require_admin(interaction)
        await interaction.response.defer()
        place, actor = _place(interaction, self.where), str(interaction.user.id)
        key = None if self.key == "all" else self.key
        gone = await interaction.client.services.database.awrite(
            lambda db: settings.reset(db, place, actor, key)
        )
        await set_language(interaction)
        named = _named(self.where)
        told = (
            tr("✓ Reset: {names}.", names=", ".join(gone))
            if gone
            else tr("Nothing was set for {place}.", place=named)
        )
        await _show(interaction, self.where, key, told)


def _form(where: Where, key: str, value: str) -> ui.Modal:
    """Return the form for one setting."""
    long = key == "system_prompt"
    field: ui.TextInput[Any] = ui.TextInput(
        custom_id=modals.FIELD,
        default=value,
        placeholder=KINDS[key].example[:100],
        style=discord.TextStyle.paragraph if long else discord.TextStyle.short,
        required=not long,
        max_length=LONGEST_PERSONA if long else _LONGEST_LIST,
    )
    title = _fitting(tr("{key} for {place}", key=key, place=_named(where)), 45)
    return modals.setting(f"{where}.{key}", title, _fitting(tr(KINDS[key].help), 45), field)


async def store_submitted(interaction: Interaction, services: Services, name: str, text: str) -> None:
    """Store what was typed into a setting's form; `name` is "server.temperature" or the like."""
    where, _, key = name.partition(".")
    await _change(interaction, _as_where(where), _known(key), text)


def _chosen(interaction: Interaction) -> list[str]:
    data: Mapping[str, Any] = interaction.data or {}
    return [str(value) for value in data.get("values") or []]


def _known(key: str) -> str:
    """Return a setting's key; an old panel may name one that is gone."""
    settings.kind(key)
    return key
