"""Commands, buttons, menus and forms: an interaction goes to the bot, and its answer is watched for."""

import asyncio
import time
from collections.abc import Iterable, Mapping
from typing import Any

import discord
from simcord import _modal, interactions
from simcord.backend import serializers
from simcord.backend.command_access import command_access
from simcord.backend.errors import SetupError
from simcord.backend.models import Interaction, Message, Role
from simcord.components import walk_components
from simcord.enums import SELECT_TYPES, AppCommandType, ComponentType, InteractionType, OptionType

from bot.playground.discord import community
from bot.playground.discord.members import MemberActions
from bot.playground.discord.world import Payload
from bot.playground.errors import ActionRefusedError

#: How long Discord waits for the first answer to an interaction.
INTERACTION_DEADLINE_S = 3.0
#: How long an interaction's token stays valid, after which its record is dropped here.
INTERACTION_LIFETIME_S = 15 * 60.0
_ENTITY_OPTIONS = (OptionType.USER, OptionType.CHANNEL, OptionType.ROLE, OptionType.MENTIONABLE)


class Interactions(MemberActions):
    """The server, used by its members with the bot's commands and buttons."""

    def __init__(self, *, approved_intents: discord.Intents | None = None) -> None:
        super().__init__(approved_intents=approved_intents)
        self._answers: dict[int, asyncio.Future[None]] = {}

    def run_command(
        self,
        channel_id: int,
        user_id: int,
        name: str,
        *,
        subcommand: str = "",
        options: Mapping[str, Any] | None = None,
        target_id: int | None = None,
    ) -> int:
        """Use a slash command, or with `target_id` a context-menu command; returns the interaction's id."""
        if target_id is None:
            root, data = self._slash_data(channel_id, user_id, name, subcommand)
            leaf, nesting = _walk(root, subcommand)
            built, resolved = self._options(leaf, options or {}, channel_id)
            data["options"] = interactions.nest_options(root, nesting, built)
        else:
            data, resolved = self._target_data(channel_id, user_id, name, target_id)
        if resolved:
            data["resolved"] = resolved
        return self._interact(InteractionType.APPLICATION_COMMAND, channel_id, user_id, data)

    def _command(self, channel_id: int, user_id: int, name: str, kinds: Iterable[AppCommandType]) -> Payload:
        guild_id = self._accessible_channel(channel_id, user_id).guild_id
        found = (self._backend.find_command(name, guild_id, type=kind) for kind in kinds)
        command: Payload | None = next((command for command in found if command is not None), None)
        if command is None:
            raise ActionRefusedError(f"There is no command “{name}”. Is the bot online?", 404)
        if not command_access(self._backend, command, user_id=user_id, channel_id=channel_id).allowed:
            raise ActionRefusedError(f"This member can't use “{name}” here.", 403)
        return command

    def _slash_data(
        self, channel_id: int, user_id: int, name: str, subcommand: str
    ) -> tuple[Payload, Payload]:
        root = self._command(channel_id, user_id, name, (AppCommandType.CHAT_INPUT,))
        data = {"id": root["id"], "name": root["name"], "type": int(AppCommandType.CHAT_INPUT)}
        if root.get("guild_id"):
            data["guild_id"] = root["guild_id"]
        return root, data

    def _target_data(
        self, channel_id: int, user_id: int, name: str, target_id: int
    ) -> tuple[Payload, Payload]:
        root = self._command(channel_id, user_id, name, (AppCommandType.MESSAGE, AppCommandType.USER))
        resolved: Payload
        if root["type"] == AppCommandType.MESSAGE:
            message = self._visible_message(channel_id, target_id, user_id)
            resolved = {"messages": {str(target_id): serializers.message_payload(self._backend, message)}}
        else:
            resolved = self._resolve(OptionType.USER, target_id, channel_id)
        data = {
            "id": root["id"],
            "name": root["name"],
            "type": int(root["type"]),
            "target_id": str(target_id),
        }
        return data, resolved

    def _options(
        self, leaf: Payload, given: Mapping[str, Any], channel_id: int
    ) -> tuple[list[Payload], dict[str, Payload]]:
        """The wire form of option values, with the members, channels and roles that they name."""
        declared = {option["name"]: option for option in leaf.get("options") or []}
        for name in given.keys() - declared.keys():
            raise ActionRefusedError(f"This command has no option “{name}”.")
        built: list[Payload] = []
        resolved: dict[str, Payload] = {}
        for name, option in declared.items():
            if given.get(name) in (None, ""):
                if option.get("required"):
                    raise ActionRefusedError(f"The option “{name}” is required.")
                continue
            value = self._option_value(option, given[name])
            if option["type"] == OptionType.ATTACHMENT:
                value = interactions.store_interaction_attachment(self._backend, channel_id, *value, resolved)
            elif option["type"] in _ENTITY_OPTIONS:
                for kind, entries in self._resolve(
                    OptionType(option["type"]), int(value), channel_id
                ).items():
                    resolved.setdefault(kind, {}).update(entries)
            built.append({"name": name, "type": int(option["type"]), "value": value})
        return built, resolved

    def _option_value(self, option: Payload, given: Any) -> Any:
        kind = option["type"]
        try:
            if kind in _ENTITY_OPTIONS:
                return str(int(given))
            if isinstance(given, str) and kind in (OptionType.INTEGER, OptionType.NUMBER, OptionType.BOOLEAN):
                given = given.lower() == "true" if kind == OptionType.BOOLEAN else given
                if kind != OptionType.BOOLEAN:
                    given = interactions.parse_option_input("command", option, given)
            return interactions.validate_option_value("command", option, given)
        except (SetupError, TypeError, ValueError) as error:
            raise ActionRefusedError(f"The option “{option['name']}” doesn't fit: {error}") from error

    def _resolve(self, kind: OptionType, entity_id: int, channel_id: int) -> dict[str, Payload]:
        backend = self._backend
        guild_id = backend.get_channel(channel_id).guild_id
        guild = None if guild_id is None else backend.get_guild(guild_id)
        key = str(entity_id)
        if kind in (OptionType.USER, OptionType.MENTIONABLE) and entity_id in backend.users:
            resolved: dict[str, Payload] = {
                "users": {key: serializers.user_payload(backend.users[entity_id])}
            }
            if guild is not None and entity_id in guild.members:
                member = serializers.member_payload(backend, guild, guild.members[entity_id], with_user=False)
                resolved["members"] = {key: member}
            return resolved
        if kind == OptionType.CHANNEL and entity_id in backend.channels:
            channel = dict(serializers.channel_payload(backend, backend.channels[entity_id]))
            return {"channels": {key: {**channel, "permissions": "0"}}}
        if (
            kind in (OptionType.ROLE, OptionType.MENTIONABLE)
            and guild is not None
            and entity_id in guild.roles
        ):
            role: Role = guild.roles[entity_id]
            return {"roles": {key: serializers.role_payload(role)}}
        raise ActionRefusedError("That member, channel or role doesn't exist here.", 404)

    async def autocomplete(
        self, channel_id: int, user_id: int, name: str, *, subcommand: str, option: str, value: str
    ) -> list[Payload]:
        """The choices the bot offers while `value` is being typed; empty if it doesn't answer in time."""
        root, data = self._slash_data(channel_id, user_id, name, subcommand)
        leaf, nesting = _walk(root, subcommand)
        declared = {entry["name"]: entry for entry in leaf.get("options") or []}
        if not declared.get(option, {}).get("autocomplete"):
            raise ActionRefusedError(f"The option “{option}” has no suggestions.")
        focused = {"name": option, "type": int(declared[option]["type"]), "value": value, "focused": True}
        data["options"] = interactions.nest_options(root, nesting, [focused])
        kind = InteractionType.APPLICATION_COMMAND_AUTOCOMPLETE
        record = self._backend.interactions[self._interact(kind, channel_id, user_id, data)]
        try:
            await asyncio.wait_for(asyncio.shield(self._answers[record.id]), INTERACTION_DEADLINE_S)
        except TimeoutError:
            return []
        return list(record.autocomplete_choices or [])

    def press_component(
        self, channel_id: int, message_id: int, user_id: int, custom_id: str, values: list[str] | None = None
    ) -> int:
        """Press a button or choose in a select menu; returns the interaction's id."""
        message = self._visible_message(channel_id, message_id, user_id)
        found = [c for c in walk_components(message.components) if c.get("custom_id") == custom_id]
        if not found or found[0].get("disabled"):
            raise ActionRefusedError("That button or menu can't be used (any more).", 404)
        component = found[0]
        data: Payload = {"custom_id": custom_id, "component_type": int(component["type"])}
        if component.get("id") is not None:
            data["id"] = component["id"]
        if component["type"] in SELECT_TYPES:
            data.update(self._selected(component, values or [], channel_id))
        return self._interact(InteractionType.MESSAGE_COMPONENT, channel_id, user_id, data, source=message)

    def _selected(self, component: Payload, values: list[str], channel_id: int) -> Payload:
        fewest, most = component.get("min_values", 1), component.get("max_values", 1)
        if not fewest <= len(set(values)) <= most:
            raise ActionRefusedError(f"Choose between {fewest} and {most} entries.")
        if component["type"] == ComponentType.STRING_SELECT:
            if not set(values) <= {option["value"] for option in component.get("options") or []}:
                raise ActionRefusedError("That entry isn't in the menu.")
            return {"values": values}
        kind = {
            ComponentType.USER_SELECT: OptionType.USER,
            ComponentType.ROLE_SELECT: OptionType.ROLE,
            ComponentType.MENTIONABLE_SELECT: OptionType.MENTIONABLE,
            ComponentType.CHANNEL_SELECT: OptionType.CHANNEL,
        }[ComponentType(component["type"])]
        resolved: dict[str, Payload] = {}
        for value in values:
            for name, entries in self._resolve(kind, int(value), channel_id).items():
                resolved.setdefault(name, {}).update(entries)
        return {"values": values, "resolved": resolved}

    def submit_modal(self, user_id: int, modal_id: int, values: Mapping[str, Any]) -> int:
        """Send a filled-in modal; `modal_id` is the id of the interaction that opened it."""
        opened: Interaction | None = self._backend.interactions.get(modal_id)
        if opened is None or opened.modal is None or opened.modal_consumed or opened.user_id != user_id:
            raise ActionRefusedError("That form isn't open (any more).", 404)
        resolved: dict[str, Payload] = {}
        try:
            unknown = values.keys() - _modal._modal_control_map(opened.modal).keys()
            if unknown:
                raise ActionRefusedError(f"The form has no field “{sorted(unknown)[0]}”.")
            components = _modal._modal_submit_nodes(
                opened.modal["components"], None, dict(values), resolved, opened.channel_id, []
            )
        except SetupError as error:
            raise ActionRefusedError(f"The form isn't complete: {error}") from error
        opened.modal_consumed = True
        source = None
        if opened.source_message_id is not None:
            source = self._backend.messages.get(opened.channel_id, {}).get(opened.source_message_id)
        data = {"custom_id": opened.modal["custom_id"], "components": components}
        return self._interact(InteractionType.MODAL_SUBMIT, opened.channel_id, user_id, data, source=source)

    def _interact(
        self,
        kind: InteractionType,
        channel_id: int,
        user_id: int,
        data: Payload,
        *,
        source: Message | None = None,
    ) -> int:
        """Announce an interaction to the bot, watch for its answer, and return its id."""
        self._forget_old_interactions()
        record, payload = interactions.base_payload(
            self._backend,
            type=int(kind),
            channel_id=channel_id,
            guild_id=self._backend.get_channel(channel_id).guild_id,
            user_id=user_id,
            data=data,
        )
        if source is not None:
            record.source_message_id = source.id
            payload["message"] = dict(serializers.message_payload(self._backend, source))
        loop = asyncio.get_running_loop()
        self._answers[record.id] = loop.create_future()
        if kind != InteractionType.APPLICATION_COMMAND_AUTOCOMPLETE:
            self._tell_interaction(record, "pending")
            loop.call_later(INTERACTION_DEADLINE_S, self._check_answered, record)
        self._backend.emit("INTERACTION_CREATE", payload)
        return int(record.id)

    def _forget_old_interactions(self) -> None:
        oldest = (int((time.time() - INTERACTION_LIFETIME_S) * 1000) - community.DISCORD_EPOCH_MS) << 22
        for interaction_id in [i for i in self._backend.interactions if i < oldest]:
            record = self._backend.interactions.pop(interaction_id)
            self._backend.interaction_tokens.pop(record.token, None)
            self._answers.pop(interaction_id, None)

    def _interaction_answered(self, interaction_id: int) -> None:
        record = self._backend.interactions[interaction_id]
        answer = self._answers.get(interaction_id)
        if answer is not None and not answer.done():
            answer.set_result(None)
        if record.type == InteractionType.APPLICATION_COMMAND_AUTOCOMPLETE:
            return
        if record.modal is not None:
            self.tell_page(
                "MODAL_OPEN",
                {
                    "modal_id": str(record.id),
                    "user_id": str(record.user_id),
                    "channel_id": str(record.channel_id),
                    **{key: record.modal[key] for key in ("custom_id", "title", "components")},
                },
            )
        self._tell_interaction(record, "answered")

    def _check_answered(self, record: Interaction) -> None:
        if not record.responded:
            self._tell_interaction(record, "failed", error="The application did not respond")

    def _tell_interaction(self, record: Interaction, state: str, **more: str) -> None:
        message_id = {} if record.message_id is None else {"message_id": str(record.message_id)}
        self.tell_page(
            "INTERACTION_RESPONSE",
            {
                "interaction_id": str(record.id),
                "user_id": str(record.user_id),
                "channel_id": str(record.channel_id),
                "command": record.command_name,
                "state": state,
                **message_id,
                **more,
            },
        )


def _walk(root: Payload, subcommand: str) -> tuple[Payload, list[str]]:
    try:
        leaf, nesting = interactions.walk_to_subcommand(root, subcommand.split())
    except SetupError as error:
        raise ActionRefusedError(f"“{root['name']}” has no subcommand “{subcommand}”.", 404) from error
    if any(option.get("type") in (1, 2) for option in leaf.get("options") or []):
        raise ActionRefusedError(f"“{root['name']}” needs a subcommand.")
    return leaf, nesting
