"""The playground's Discord behind the calls that the socket front needs: REST, gateway and page.

Together with `stand_in` this is all that touches simcord's internals. Everything runs on the event loop's
thread; nothing awaits except `autocomplete`.
"""

import copy
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import discord
from simcord import intents
from simcord.backend import serializers
from simcord.backend.errors import BackendError, SetupError
from simcord.enums import AppCommandType
from simcord.http import router
from simcord.http import routes as _routes  # noqa: F401  (importing registers every REST route)

from bot.playground.discord import community
from bot.playground.discord.interactions import Interactions
from bot.playground.discord.world import Payload
from bot.playground.errors import RestError

__all__ = ["DiscordBackend", "Payload", "Upload"]

_APPLICATION_FLAGS = {"presences": 1 << 13, "members": 1 << 15, "message_content": 1 << 19}


@dataclass
class Upload:
    """A file of a multipart request, in the shape simcord reads."""

    fp: io.BytesIO
    filename: str
    description: str | None


class DiscordBackend(Interactions):
    """The playground's Discord: one seeded server, used by the bot (REST) and by its members (the page)."""

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

    def filter_by_intents(self, event: str, payload: Payload, declared: discord.Intents) -> Payload | None:
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

    def commands(self) -> list[Payload]:
        """Every registered application command."""
        return [dict(command) for scope in self._backend.commands.values() for command in scope.values()]

    def restore_commands(self, commands: list[Payload]) -> None:
        """Bring back commands that an earlier playground had, under their ids."""
        for command in commands:
            scope = int(command["guild_id"]) if command.get("guild_id") else None
            key = (command["name"], int(command.get("type", AppCommandType.CHAT_INPUT)))
            self._backend.commands.setdefault(scope, {})[key] = dict(command)
