"""The playground's Discord as simcord keeps it: a real clock, lasting ids, one seeded server.

simcord keeps guilds, channels, messages and interactions in memory, checks permissions and writes Discord's
payloads; it has no sockets and a fixed clock. Here it gets a real clock, ids that never repeat across
restarts, a seeded server and two streams of events: what the gateway sends to the bot, and what the page
shows (which also sees ephemeral messages, modals and unanswered interactions).
"""

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import discord
import simcord  # noqa: F401  (checks discord.py's version before any of its parts is used)
from simcord.backend import Backend, serializers
from simcord.backend.cdn import CdnStore
from simcord.backend.models import Channel, Message, Reaction, User
from simcord.enums import ChannelType

from bot.delivery.reply_controls import EMOJI, FINISHED, custom_id
from bot.playground.discord import community, picture_files
from storage.chat.transcript import Shown

Payload = dict[str, Any]
Listener = Callable[[str, Payload], None]

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


class World:
    """One seeded server and whoever listens to what happens in it."""

    def __init__(self, *, approved_intents: discord.Intents | None = None) -> None:
        self.approved_intents = approved_intents or discord.Intents.all()
        self._gateway_listeners: list[Listener] = []
        self._page_listeners: list[Listener] = []
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

    def restore(self, messages: Iterable[Shown], buttons: Collection[str] = ()) -> int:
        """Show again what an earlier playground's channels held; return how many messages.

        Nobody hears of it: a bot that connects later sees them as Discord's. Answers get the configured
        `buttons` again, whose custom ids the bot still knows; threads are not restored.
        """
        restored = 0
        for each in messages:
            channel = self._backend.messages.get(each.channel_id)
            if channel is None:
                continue
            author_id = community.BOT_ID if each.author_id is None else each.author_id
            for user_id in (author_id, *(user_id for _, user_id in each.reactions)):
                name = each.author_name if user_id == author_id else ""
                self._backend.users.setdefault(user_id, User(id=user_id, name=name or f"member-{user_id}"))
            channel[each.discord_id] = self._message(each, author_id)
            if each.reply_id is not None:
                channel[each.discord_id].components = _rows(each.reply_id, buttons)
            restored += 1
        return restored

    def clear(self) -> tuple[list[int], int]:
        """Empty every channel; return the channels' ids, and the id of the last message of all (0: none).

        The bot hears of no deletion: for it, nobody has taken anything back.
        """
        channels = self._backend.messages
        last = max((message_id for held in channels.values() for message_id in held), default=0)
        for held in channels.values():
            held.clear()
        return list(channels), last

    def _message(self, shown: Shown, author_id: int) -> Message:
        reactions: dict[str, Reaction] = {}
        for emoji, user_id in shown.reactions:
            reactions.setdefault(emoji, Reaction(emoji)).user_ids.append(user_id)
        replied = self._backend.messages[shown.channel_id].get(shown.reply_to or 0)
        in_server = self._backend.channels[shown.channel_id].guild_id is not None
        called = [community.BOT_ID] if shown.calls_bot and in_server else []
        return Message(
            id=shown.discord_id,
            channel_id=shown.channel_id,
            author_id=author_id,
            content=" ".join([*(f"<@{each}>" for each in called), shown.content]),
            mention_user_ids=called,
            timestamp=discord.utils.snowflake_time(shown.discord_id).isoformat(),
            reactions=list(reactions.values()),
            type=0 if replied is None else discord.MessageType.reply.value,
            reference=None if replied is None else self._reference(replied),
        )

    def _reference(self, replied: Message) -> Payload:
        guild_id = self._backend.channels[replied.channel_id].guild_id
        guild = {} if guild_id is None else {"guild_id": str(guild_id)}
        return {"type": 0, "message_id": str(replied.id), "channel_id": str(replied.channel_id), **guild}

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


def _rows(reply_id: str, wanted: Collection[str]) -> list[Payload]:
    """Return the row of buttons below an answer, as the bot would send it."""
    buttons = [
        {
            "type": discord.ComponentType.button.value,
            "style": discord.ButtonStyle.secondary.value,
            "emoji": {"id": None, "name": EMOJI[action]},
            "custom_id": custom_id(action, reply_id),
            "disabled": False,
        }
        for action in FINISHED
        if action in wanted
    ]
    return [{"type": discord.ComponentType.action_row.value, "components": buttons}] if buttons else []
