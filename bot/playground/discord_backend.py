"""Discord's state and rules, from simcord, behind the calls that the socket front needs.

This is the only module that touches simcord's internals (hence its length). simcord keeps guilds, channels,
messages and interactions in memory, checks permissions and writes Discord's payloads; it has no sockets and a
fixed clock. Here it gets a real clock, ids that never repeat across restarts, a seeded server and two
streams of events: what the gateway sends to the bot, and what the page shows (which also sees ephemeral
messages, modals and unanswered interactions).

Everything runs on the event loop's thread; nothing here awaits except `autocomplete`.
"""

import asyncio
import copy
import io
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import discord
import simcord  # noqa: F401  (checks discord.py's version before any of its parts is used)
from simcord import _modal, intents, interactions
from simcord.backend import Backend, serializers
from simcord.backend.access import channel_accessible, message_accessible, reaction_permissions
from simcord.backend.cdn import CdnStore
from simcord.backend.command_access import command_access
from simcord.backend.errors import BackendError, SetupError
from simcord.backend.models import Channel, Interaction, Message, Role, User
from simcord.components import walk_components
from simcord.enums import (
    SELECT_TYPES,
    AppCommandType,
    ChannelType,
    ComponentType,
    InteractionType,
    OptionType,
)
from simcord.http import router
from simcord.http import routes as _routes  # noqa: F401  (importing registers every REST route)

from bot.playground import community, picture_files
from bot.playground.errors import ActionRefusedError, RestError

Payload = dict[str, Any]
Listener = Callable[[str, Payload], None]

#: How long Discord waits for the first answer to an interaction.
INTERACTION_DEADLINE_S = 3.0
#: How long an interaction's token stays valid, after which its record is dropped here.
INTERACTION_LIFETIME_S = 15 * 60.0
#: Messages kept per channel; a rehearsal of some hours must not fill the memory.
CHANNEL_HISTORY = 3000
#: What the page hears of the gateway's events, message events apart.
_PAGE_EVENTS = frozenset(
    {
        "MESSAGE_DELETE",
        "MESSAGE_DELETE_BULK",
        "MESSAGE_REACTION_ADD",
        "MESSAGE_REACTION_REMOVE",
        "TYPING_START",
    }
    | {"MESSAGE_REACTION_REMOVE_ALL", "MESSAGE_REACTION_REMOVE_EMOJI", "CHANNEL_CREATE", "THREAD_CREATE"}
)
_APPLICATION_FLAGS = {"presences": 1 << 13, "members": 1 << 15, "message_content": 1 << 19}


@dataclass
class Upload:
    """A file of a multipart request, in the shape simcord reads."""

    fp: io.BytesIO
    filename: str
    description: str | None


class _RealClock:
    """simcord's clock interface over the machine's UTC time."""

    elapsed = 0.0

    def now(self) -> datetime:
        return datetime.now(UTC)

    def advance(self, seconds: float) -> None:
        raise RuntimeError("real time can't be advanced")


class _LocalCdn(CdnStore):  # type: ignore[misc]
    """Attachments addressed at the playground itself, so that the page can offer them."""

    base_url = ""
    #: The oldest attachments make room beyond this.
    capacity_bytes = 64 * 1024 * 1024

    def store_attachment(
        self, attachment_id: int, channel_id: int, filename: str, data: bytes, description: str | None
    ) -> Payload:
        payload: Payload = super().store_attachment(attachment_id, channel_id, filename, data, description)
        path = f"/attachments/{channel_id}/{attachment_id}/{filename}"
        self._blobs[path] = self._blobs.pop(payload["url"])
        while len(self._blobs) > 1 and sum(map(len, self._blobs.values())) > self.capacity_bytes:
            del self._blobs[next(iter(self._blobs))]
        payload["url"] = payload["proxy_url"] = self.base_url + path
        if (picture := picture_files.look(data)) is not None:
            payload |= asdict(picture)
        return payload


class _Backend(Backend):  # type: ignore[misc]
    """simcord's backend with ids from the real time and no logs; it tells the page of ephemeral messages."""

    def __init__(self, on_hidden: Listener) -> None:
        self._last_id = 0
        super().__init__(clock=_RealClock())
        # simcord keeps every call and event for a test to look at; a server can't.
        self.transcript: deque[object] = deque(maxlen=0)
        self.http_requests: deque[object] = deque(maxlen=0)
        self.cdn = _LocalCdn()
        self._on_hidden = on_hidden

    def snowflake(self) -> int:
        """An id later than all earlier ones, also of earlier processes; simcord's start at a fixed date."""
        now = (time.time_ns() // 1_000_000 - community.DISCORD_EPOCH_MS) << 22
        self._last_id = max(now, self._last_id + 1)
        return self._last_id

    def commit_message(self, message: Message, *, broadcast: bool = True) -> Message:
        stored = super().commit_message(message, broadcast=broadcast)
        history = self.messages[message.channel_id]
        while len(history) > CHANNEL_HISTORY:
            del history[next(iter(history))]
        if not broadcast:
            self._on_hidden("MESSAGE_CREATE", serializers.message_payload(self, stored))
        return stored

    def edit_message(self, channel_id: int, message_id: int, fields: Payload) -> Message:
        message = super().edit_message(channel_id, message_id, fields)
        if message.is_ephemeral:
            self._on_hidden("MESSAGE_UPDATE", serializers.message_payload(self, message))
        return message

    def delete_message(self, channel_id: int, message_id: int) -> None:
        hidden = self.get_message(channel_id, message_id).is_ephemeral
        super().delete_message(channel_id, message_id)
        if hidden:
            self._on_hidden("MESSAGE_DELETE", {"id": str(message_id), "channel_id": str(channel_id)})


class DiscordBackend:
    """The playground's Discord: one seeded server, used by the bot (REST) and by its members (the page)."""

    def __init__(self, *, approved_intents: discord.Intents | None = None) -> None:
        self.approved_intents = approved_intents or discord.Intents.all()
        self._gateway_listeners: list[Listener] = []
        self._page_listeners: list[Listener] = []
        self._answers: dict[int, asyncio.Future[None]] = {}
        self._guests: list[community.Person] = []
        self._backend = _Backend(self._hidden)
        self._seed()
        self._backend.subscribers.append(self._emitted)

    def _seed(self) -> None:
        backend = self._backend
        backend.users.clear()
        backend.application_id = community.APPLICATION_ID
        backend.bot_user = User(id=community.BOT_ID, name=community.BOT_NAME, bot=True)
        backend.users[community.BOT_ID] = backend.bot_user
        for person in community.PEOPLE:
            backend.users[person.user_id] = User(
                id=person.user_id, name=person.username, global_name=person.display_name
            )
        backend.create_guild(community.GUILD_NAME, id=community.GUILD_ID, owner_id=community.OWNER.user_id)
        for person in community.PEOPLE[1:]:
            backend.add_member(community.GUILD_ID, person.user_id)
        for place in community.PLACES:
            self._add_channel(
                Channel(id=place.channel_id, type=ChannelType.TEXT, name=place.name, topic=place.topic)
            )
        for person in community.PEOPLE:
            self._add_direct_channel(person)

    def welcome(self, people: Iterable[community.Person]) -> None:
        """Let simulated guests join the server; those who are there already stay."""
        for person in people:
            if person.user_id in self._backend.users:
                continue
            self._backend.users[person.user_id] = User(
                id=person.user_id, name=person.username, global_name=person.display_name
            )
            self._backend.add_member(community.GUILD_ID, person.user_id)
            self._add_direct_channel(person)
            self._guests.append(person)

    def _add_direct_channel(self, person: community.Person) -> None:
        channel = Channel(id=person.dm_channel_id, type=ChannelType.DM, recipient_ids=[person.user_id])
        self._backend.channels[channel.id] = channel
        self._backend.messages[channel.id] = {}
        self._backend.dm_channels[person.user_id] = channel.id

    def _add_channel(self, channel: Channel) -> None:
        guild = self._backend.get_guild(community.GUILD_ID)
        channel.guild_id = guild.id
        channel.position = len(guild.channel_ids)
        self._backend.channels[channel.id] = channel
        self._backend.messages[channel.id] = {}
        guild.channel_ids.append(channel.id)

    # ------------------------------------------------------------------ events

    def on_gateway_event(self, listener: Listener) -> None:
        """Call `listener(event, payload)` for all the gateway announces; it must not change the payload."""
        self._gateway_listeners.append(listener)

    def on_page_event(self, listener: Listener) -> Callable[[], None]:
        """Call `listener(event, data)` for all that the page shows; returns what ends the subscription."""
        self._page_listeners.append(listener)
        return lambda: self._page_listeners.remove(listener)

    def tell_page(self, event: str, data: Payload) -> None:
        """Send one event to every open page."""
        for listener in tuple(self._page_listeners):
            listener(event, data)

    def _emitted(self, event: str, payload: Payload) -> None:
        for listener in self._gateway_listeners:
            listener(event, payload)
        if event in ("MESSAGE_CREATE", "MESSAGE_UPDATE"):
            self.tell_page(event, self._with_reactors(payload))
        elif event in _PAGE_EVENTS:
            self.tell_page(event, dict(payload))

    def _hidden(self, event: str, payload: Payload) -> None:
        """An ephemeral message: the bot's gateway hears nothing, the invoker's page does."""
        data = dict(payload)
        user = (data.get("interaction_metadata") or {}).get("user") or {}
        if user:
            data["visible_to"] = str(user["id"])
        self.tell_page(event, data)

    def _with_reactors(self, payload: Mapping[str, Any]) -> Payload:
        """A copy whose reactions say who reacted: one page acts as several members."""
        data = dict(payload)
        message = self._backend.messages.get(int(data["channel_id"]), {}).get(int(data["id"]))
        if message is None:
            return data
        reactors = {
            serializers.emoji_payload(reaction.emoji)["name"]: [str(user_id) for user_id in reaction.user_ids]
            for reaction in message.reactions
        }
        data["reactions"] = [
            {**reaction, "users": reactors.get(reaction["emoji"]["name"], [])}
            for reaction in data["reactions"]
        ]
        if message.is_ephemeral and message.interaction_metadata:
            data["visible_to"] = str(message.interaction_metadata["user"]["id"])
        return data

    # ------------------------------------------------------------------ REST

    @property
    def attachment_base_url(self) -> str:
        """Where attachments are served, without a trailing slash."""
        return str(self._backend.cdn.base_url)

    @attachment_base_url.setter
    def attachment_base_url(self, url: str) -> None:
        self._backend.cdn.base_url = url

    def attachment(self, path: str) -> bytes | None:
        """The bytes stored under `/attachments/<channel>/<id>/<name>`, or None."""
        blob: bytes | None = self._backend.cdn.get(path)
        return blob

    def rest(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        params: Mapping[str, str] | None = None,
        files: list[Upload] | None = None,
        reason: str | None = None,
    ) -> Any:
        """Serve one REST call of the bot; `path` is what follows `/api/v10`, percent-encoded.

        Returns the JSON answer, or None for "204 No Content". Raises RestError, with Discord's status and
        body.
        """
        parameters = dict(params or {})
        try:
            own = self._own_route(method, path, parameters)
            if own is not None:
                return own
            answer = router.dispatch(
                self._backend, method, path, json=body, params=parameters, files=files, reason=reason
            )
        except (router.RouteNotImplemented, router.UnsupportedField) as error:
            raise RestError(
                501, {"code": 0, "message": f"The playground can't do this: {error.message}"}
            ) from error
        except BackendError as error:
            raise RestError(error.status, error.to_json()) from error
        except (KeyError, TypeError, ValueError, AttributeError, SetupError) as error:
            raise RestError(400, {"code": 50035, "message": f"Invalid Form Body: {error}"}) from error
        return self._after_rest(method, path, parameters, answer)

    def _own_route(self, method: str, path: str, params: Payload) -> Any:
        """Routes simcord answers for a test bench rather than for a person's server."""
        if method != "GET":
            return None
        if path in ("/oauth2/applications/@me", "/applications/@me"):
            return self._application()
        segments = path.strip("/").split("/")
        if len(segments) == 6 and segments[0] == "channels" and segments[4] == "reactions":
            users: list[Payload] = router.dispatch(self._backend, method, path, params=params)
            users = [user for user in users if int(user["id"]) > int(params.get("after", 0))]
            return sorted(users, key=lambda user: int(user["id"]))[: int(params.get("limit", 25))]
        return None

    def _application(self) -> Payload:
        flags = sum(bit for name, bit in _APPLICATION_FLAGS.items() if getattr(self.approved_intents, name))
        return {
            "id": str(community.APPLICATION_ID),
            "name": community.BOT_NAME,
            "icon": None,
            "description": "",
            "summary": "",
            "bot_public": False,
            "bot_require_code_grant": False,
            "verify_key": "0" * 64,
            "owner": dict(serializers.user_payload(self._backend.get_user(community.OWNER.user_id))),
            "flags": flags,
            "team": None,
            "bot": dict(serializers.user_payload(self._backend.bot_user)),
        }

    def _after_rest(self, method: str, path: str, params: Payload, answer: Any) -> Any:
        segments = path.strip("/").split("/")
        if segments[0] == "interactions":
            self._interaction_answered(int(segments[1]))
            return answer if str(params.get("with_response", "")).lower() in ("1", "true") else None
        if segments[-1] == "commands" and method == "PUT":
            self.tell_page("COMMANDS_CHANGED", {"commands": self.commands()})
        return answer

    # ------------------------------------------------------------------ gateway

    def bot_user(self) -> Payload:
        """The bot's own user object."""
        return dict(serializers.user_payload(self._backend.bot_user))

    def guild_creates(self) -> list[Payload]:
        """A GUILD_CREATE payload for every guild the bot is in."""
        return [
            dict(serializers.guild_create_payload(self._backend, guild))
            for guild in self._backend.guilds.values()
        ]

    def for_intents(self, event: str, payload: Payload, declared: discord.Intents) -> Payload | None:
        """What a session with these intents receives of an event: None if nothing, else a copy of its own."""
        gate = intents.required_intent(event, payload)
        if gate is not None and not getattr(declared, gate):
            return None
        own: Payload = copy.deepcopy(dict(payload))
        bot_id = community.BOT_ID
        if event == "GUILD_CREATE":
            intents.prune_guild_create(own, declared, bot_id)
        if declared.message_content:
            return own
        if event in ("MESSAGE_CREATE", "MESSAGE_UPDATE"):
            intents.censor_message(own, bot_id, backend=self._backend)
        elif event == "INTERACTION_CREATE":
            self._censor_interaction(own)
        return own

    def _censor_interaction(self, payload: Payload) -> None:
        data = payload.get("data") or {}
        if isinstance(payload.get("message"), dict):
            intents.censor_message(
                payload["message"], community.BOT_ID, backend=self._backend, exempt_root=True
            )
        for message_id, message in ((data.get("resolved") or {}).get("messages") or {}).items():
            chosen = str(data.get("target_id")) == str(message_id)
            intents.censor_message(message, community.BOT_ID, backend=self._backend, exempt_root=chosen)

    def missing_approval(self, declared: discord.Intents) -> list[str]:
        """Privileged intents that were declared but not approved for the application."""
        missing: list[str] = intents.missing_privileged_intents(declared, self.approved_intents)
        return missing

    def member_chunk(
        self, guild_id: int, *, query: str | None, limit: int, user_ids: Iterable[int], nonce: str | None
    ) -> Payload | None:
        """The GUILD_MEMBERS_CHUNK that answers a request for members (the server fits in one), or None."""
        guild = self._backend.guilds.get(guild_id)
        if guild is None:
            return None
        wanted = set(user_ids)
        members = list(guild.members.values())
        if wanted:
            members = [member for member in members if member.user_id in wanted]
        elif query:
            members = [
                m for m in members if self._backend.users[m.user_id].name.lower().startswith(query.lower())
            ]
        members = members[:limit] if limit else members
        payload: Payload = {
            "guild_id": str(guild_id),
            "members": [serializers.member_payload(self._backend, guild, member) for member in members],
            "chunk_index": 0,
            "chunk_count": 1,
            "not_found": [str(user_id) for user_id in sorted(wanted - set(guild.members))],
        }
        if nonce:
            payload["nonce"] = nonce
        return payload

    # ------------------------------------------------------------------ what the page shows

    def channels(self) -> list[Payload]:
        """Text channels and threads of the server, then one direct-message channel a member."""
        shown = [
            {
                "id": str(c.id),
                "name": c.name,
                "kind": "text",
                "topic": c.topic or "",
                **({"parent_id": str(c.parent_id)} if c.is_thread else {}),
            }
            for c in self._backend.channels.values()
            if c.guild_id is not None
        ]
        names = {person.user_id: person.display_name for person in community.PEOPLE}
        return shown + [
            {"id": str(channel_id), "name": names[user_id], "kind": "dm", "user_id": str(user_id)}
            for user_id, channel_id in self._backend.dm_channels.items()
        ]

    def members(self) -> list[Payload]:
        """The bot and every person, the visitor's own member first."""
        shown = [
            {
                "id": str(person.user_id),
                "name": person.display_name,
                "username": person.username,
                "color": person.color,
                "bot": False,
                "simulated": person.simulated,
                "operator": person is community.OWNER,
            }
            for person in (*community.PEOPLE, *self._guests)
        ]
        bot = {"color": "#f2c94c", "bot": True, "simulated": False, "operator": False}
        return [
            *shown,
            {"id": str(community.BOT_ID), "name": community.BOT_NAME, "username": community.BOT_NAME, **bot},
        ]

    def history(self, limit: int) -> dict[str, list[Payload]]:
        """The latest `limit` messages of every channel, oldest first, ephemeral ones marked `visible_to`."""
        return {
            str(channel_id): [self._page_message(message) for message in list(messages.values())[-limit:]]
            for channel_id, messages in self._backend.messages.items()
        }

    def message(self, channel_id: int, message_id: int) -> Payload | None:
        """One message as the page sees it, or None if it doesn't exist (any more)."""
        message = self._backend.messages.get(channel_id, {}).get(message_id)
        return None if message is None else self._page_message(message)

    def _page_message(self, message: Message) -> Payload:
        return self._with_reactors(serializers.message_payload(self._backend, message))

    def commands(self) -> list[Payload]:
        """Every registered application command."""
        return [dict(command) for scope in self._backend.commands.values() for command in scope.values()]

    def restore_commands(self, commands: list[Payload]) -> None:
        """Bring back commands that an earlier playground had, under their ids."""
        for command in commands:
            scope = int(command["guild_id"]) if command.get("guild_id") else None
            key = (command["name"], int(command.get("type", AppCommandType.CHAT_INPUT)))
            self._backend.commands.setdefault(scope, {})[key] = dict(command)

    # ------------------------------------------------------------------ acting as a member

    def send_message(
        self,
        channel_id: int,
        author_id: int,
        content: str,
        *,
        reply_to: int | None = None,
        files: Sequence[tuple[str, bytes]] = (),
    ) -> Payload:
        """Post a message, with files as (name, bytes); raises ActionRefusedError where Discord would."""
        channel = self._accessible_channel(channel_id, author_id)
        if content.strip() or not files:
            _check_content(content)
        reference = None if reply_to is None else {"channel_id": str(channel_id), "message_id": str(reply_to)}
        with _refusals():
            permission = "send_messages_in_threads" if channel.is_thread else "send_messages"
            self._backend.require_permissions(channel.guild_id, author_id, channel_id, permission)
            if reply_to is not None:
                self._backend.get_message(channel_id, reply_to)
            stored = self._backend.store_attachments(channel_id, files)
            message = self._backend.create_message(
                channel_id, author_id, content, reference=reference, attachments=stored
            )
        return self._page_message(message)

    def edit_message(self, channel_id: int, message_id: int, user_id: int, content: str) -> Payload:
        """Change a member's own message."""
        message = self._visible_message(channel_id, message_id, user_id)
        if message.author_id != user_id:
            raise ActionRefusedError("Only the author of a message can edit it.", 403)
        _check_content(content)
        with _refusals():
            return self._page_message(
                self._backend.edit_message(channel_id, message_id, {"content": content})
            )

    def delete_message(self, channel_id: int, message_id: int, user_id: int) -> None:
        """Delete a member's own message, or any as somebody who may manage messages."""
        message = self._visible_message(channel_id, message_id, user_id)
        with _refusals():
            if message.author_id != user_id and not message.is_ephemeral:
                self._backend.require_permissions(
                    self._backend.get_channel(channel_id).guild_id, user_id, channel_id, "manage_messages"
                )
            self._backend.delete_message(channel_id, message_id)

    def set_reaction(
        self, channel_id: int, message_id: int, user_id: int, emoji: str, *, reacted: bool
    ) -> None:
        """Add or take back a member's reaction; doing it twice changes nothing."""
        message = self._visible_message(channel_id, message_id, user_id)
        if not emoji or len(emoji) > 64:
            raise ActionRefusedError("A reaction needs one emoji.")
        with _refusals():
            self._backend.require_permissions(
                self._backend.get_channel(channel_id).guild_id,
                user_id,
                channel_id,
                *reaction_permissions(message, emoji, reacted=reacted),
            )
            self._backend.set_reaction(channel_id, message_id, emoji, user_id, reacted)

    def _accessible_channel(self, channel_id: int, user_id: int) -> Channel:
        channel = self._backend.channels.get(channel_id)
        if channel is None or user_id not in self._backend.users:
            raise ActionRefusedError("That channel or member doesn't exist here.", 404)
        if not channel_accessible(self._backend, channel_id, user_id):
            raise ActionRefusedError("This member can't see that channel.", 403)
        return channel

    def _visible_message(self, channel_id: int, message_id: int, user_id: int) -> Message:
        self._accessible_channel(channel_id, user_id)
        message = self._backend.messages[channel_id].get(message_id)
        if message is None or not message_accessible(self._backend, channel_id, message, user_id):
            raise ActionRefusedError("That message doesn't exist (any more).", 404)
        return message

    # ------------------------------------------------------------------ interactions

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


_ENTITY_OPTIONS = (OptionType.USER, OptionType.CHANNEL, OptionType.ROLE, OptionType.MENTIONABLE)


class _refusals:
    """Turns simcord's errors into the sentence a visitor reads."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, BackendError):
            raise ActionRefusedError(f"Discord refuses this: {error.message}.", error.status) from error


def _walk(root: Payload, subcommand: str) -> tuple[Payload, list[str]]:
    try:
        leaf, nesting = interactions.walk_to_subcommand(root, subcommand.split())
    except SetupError as error:
        raise ActionRefusedError(f"“{root['name']}” has no subcommand “{subcommand}”.", 404) from error
    if any(option.get("type") in (1, 2) for option in leaf.get("options") or []):
        raise ActionRefusedError(f"“{root['name']}” needs a subcommand.")
    return leaf, nesting


def _check_content(content: str) -> None:
    if not content.strip():
        raise ActionRefusedError("An empty message can't be sent: write something first.")
    if len(content) > 2000:
        raise ActionRefusedError(f"A message holds at most 2,000 characters; this one has {len(content):,}.")
