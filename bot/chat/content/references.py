"""What a question refers to: the messages above it in a chain of replies, a thread's first one, a forward.

Everything is read as text and kept under its author. What Discord doesn't show, or no longer has, is said.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import discord
import structlog

from bot.chat.content.attachments import AttachmentReader
from bot.chat.content.message_links import MOST_LINKED, links_in, resolve_channel
from bot.chat.content.message_text import flatten, flatten_forward, is_forward, names_of
from bot.chat.question import Cited
from bot.delivery.targets import translate_errors
from bot.errors import DeliveryError
from bot.language.texts import mark, tr
from bot.services import Person, Services
from storage.chat import channels, conversations, members, replies
from storage.db.database import Connection

MOST_CITED = 4
"""So many messages of a chain of replies are read; each costs a call."""
FORWARD_MEMORY_S = 600.0
"""For so long a question without a reference may be about what its author forwarded just before."""

CITED_HIDDEN = mark("-# Discord does not show me the message that you replied to: I answer only yours.")
CITED_GONE = mark("-# I could not get the message that this refers to: it is gone, or hidden from me.")
CITED_WORDLESS = mark("-# I found no words in the message that this refers to.")
CHAIN_CUT = mark("-# I read only the last {count} messages of the chain that you replied to.")
LINK_CLOSED = mark(
    "-# I open a link to a message only where it leads to this server, and to a place that everybody who "
    "reads along here may read."
)
LINK_GONE = mark("-# I could not get a message that you linked to: it is gone, or hidden from me.")
LINK_WORDLESS = mark("-# I found no words in a message that you linked to.")
LINK_HIDDEN = mark("-# Discord does not show me the text of a message that you linked to.")
LINK_TAKEN = mark(
    "-# A message that you linked to is part of another conversation with me: reply to it to go on there."
)
LINKS_CUT = mark("-# I opened only the first {count} links to messages.")
STICKERS = mark("-# I can't see stickers, only their names: {names}.")

_REMEMBERED = 500

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class References:
    """What a question refers to, the oldest message first, and what has to be said about it.

    ``goes_on_from`` is a message of an earlier conversation here that a link takes up.
    """

    cited: tuple[Cited, ...] = ()
    notes: tuple[str, ...] = ()
    goes_on_from: int | None = None


class ReferenceReader:
    """Reads what questions refer to."""

    def __init__(
        self, services: Services, attachments: Callable[[], AttachmentReader], *, sees_content: bool
    ) -> None:
        self._services = services
        self._attachments = attachments
        self._sees_content = sees_content
        # Only the ids: when it is asked about, a forward is got again, or is gone.
        self._forwards: OrderedDict[tuple[int, int], tuple[float, int]] = OrderedDict()

    def remember(self, forward: discord.Message) -> None:
        """Keep in mind that a member forwarded something: their next question may be about it."""
        place = (forward.channel.id, forward.author.id)
        self._forwards.pop(place, None)
        self._forwards[place] = (asyncio.get_running_loop().time(), forward.id)
        if len(self._forwards) > _REMEMBERED:
            self._forwards.popitem(last=False)

    async def read(self, message: discord.Message, me: discord.ClientUser) -> References:
        """Return what a question refers to, as far as it isn't known already."""
        notes: list[str] = []
        cited = await self._chain(message, me, notes)
        linked = await self.resolve_links(message.content, message.author, message.channel, me)
        alone = message.reference is None and not cited and not linked.cited
        if linked.goes_on_from is not None and not alone:
            notes.append(tr(LINK_TAKEN))
        return References(
            (*cited, *linked.cited),
            tuple(dict.fromkeys([*notes, *linked.notes])),
            linked.goes_on_from if alone else None,
        )

    async def resolve_links(
        self, text: str, asker: discord.abc.User, here: Any, me: discord.ClientUser
    ) -> References:
        """Return the messages that a question links to, as far as they may be opened where it is asked."""
        notes: list[str] = []
        cited: list[Cited] = []
        goes_on_from: int | None = None
        links = links_in(text)
        for link in links[:MOST_LINKED]:
            there = resolve_channel(link, asker, here)
            if there is None:
                notes.append(tr(LINK_CLOSED))
            elif await self._known(link.message_id):
                if goes_on_from is None and await self._may_go_on(link.message_id, here.id):
                    goes_on_from = link.message_id
                else:
                    notes.append(tr(LINK_TAKEN))
            elif (found := await _fetched(there, link.message_id)) is None:
                notes.append(tr(LINK_GONE))
            else:
                cited += await self._with_words(found, me, notes)
        if links[MOST_LINKED:]:
            notes.append(tr(LINKS_CUT, count=MOST_LINKED))
        return References(tuple(cited), tuple(dict.fromkeys(notes)), goes_on_from)

    async def _may_go_on(self, message_id: int, channel_id: int) -> bool:
        """Whether all that stands above a known message may be read in a channel as well."""

        def work(db: Connection) -> bool:
            known = conversations.by_discord_id(db, message_id)
            above = conversations.chain(db, known.id) if known is not None else []
            elsewhere = [each for each in above if each.channel_id != channel_id]
            places = {each.channel_id for each in elsewhere if each.channel_id is not None}
            return all(each.public for each in elsewhere) and not channels.any_private(db, places)

        return await self._services.database.aread(work)

    async def _with_words(
        self, found: discord.Message, me: discord.ClientUser, notes: list[str]
    ) -> list[Cited]:
        """Return a linked message, or say that there is nothing to read in it."""
        said_before = len(notes)
        each = None if found.author.id == me.id else await self._cited(found, me, notes)
        if each is not None and (each.text or each.attached_text):
            return [each]
        if len(notes) == said_before:
            notes.append(tr(LINK_WORDLESS if self._sees_content else LINK_HIDDEN))
        return []

    async def _chain(self, message: discord.Message, me: discord.ClientUser, notes: list[str]) -> list[Cited]:
        """Return the chain of replies that a question ends, or what else it is plainly about."""
        found = await self._first(message, notes)
        chain: list[Cited] = []
        while found is not None and not await self._known(found.id):
            if found.author.id == me.id:
                break  # one of the bot's own notices, which says nothing
            if len(chain) == MOST_CITED:
                notes.append(tr(CHAIN_CUT, count=MOST_CITED))
                break
            chain.append(await self._cited(found, me, notes))
            above = _above(found)
            if above is None:
                break
            chain[-1] = replace(chain[-1], parent_discord_id=above)
            if await self._known(above):
                break
            # What stands further up is an extra: that it is gone needs no words.
            found = await self._above(found, above)
        cited = [each for each in reversed(chain) if each.text or each.attached_text]
        if chain and not cited and not notes:
            notes.append(tr(CITED_WORDLESS if self._sees_content else CITED_HIDDEN))
        return cited

    async def _first(self, message: discord.Message, notes: list[str]) -> discord.Message | None:
        """Return the message that a question is about, if it is about one that isn't known."""
        reference = message.reference
        if reference is not None and reference.message_id is not None:
            return await self._replied_to(message, reference.message_id, notes)
        remembered = self._forwards.pop((message.channel.id, message.author.id), None)
        if remembered is not None and asyncio.get_running_loop().time() - remembered[0] < FORWARD_MEMORY_S:
            return await _fetched(message.channel, remembered[1])
        if isinstance(message.channel, discord.Thread):
            return await self._starter(message.channel)
        return None

    async def _replied_to(
        self, message: discord.Message, message_id: int, notes: list[str]
    ) -> discord.Message | None:
        resolved = message.reference.resolved if message.reference is not None else None
        if isinstance(resolved, discord.Message):
            return await self._resolved(resolved)
        if await self._known(message_id):
            return None
        found = None
        if not isinstance(resolved, discord.DeletedReferencedMessage):
            found = await _fetched(message.channel, message_id)
        if found is None:
            notes.append(tr(CITED_GONE))
        return found

    async def _resolved(self, message: discord.Message) -> discord.Message | None:
        """Return a message that came along; of a thread's first line, the message that it stands for."""
        if message.type is discord.MessageType.thread_starter_message:
            channel = message.channel
            return await self._starter(channel) if isinstance(channel, discord.Thread) else None
        return message

    async def _starter(self, thread: discord.Thread) -> discord.Message | None:
        """Return the message that a thread was opened on, where nothing was said to the bot in it yet."""

        def has_begun(db: Connection) -> bool:
            return replies.latest_in(db, thread.id) is not None

        if await self._services.database.aread(has_begun):
            return None
        forum = isinstance(thread.parent, discord.ForumChannel)
        where = thread if forum else thread.parent
        # A thread bears the id of the message that it was opened on; one without such a message bears none's.
        return await _fetched(where, thread.id)

    async def _above(self, message: discord.Message, message_id: int) -> discord.Message | None:
        resolved = message.reference.resolved if message.reference is not None else None
        if isinstance(resolved, discord.Message):
            return resolved
        return await _fetched(message.channel, message_id)

    async def _known(self, message_id: int) -> bool:
        return await self._services.database.aread(
            lambda db: conversations.by_discord_id(db, message_id) is not None
        )

    async def _cited(self, message: discord.Message, me: discord.ClientUser, notes: list[str]) -> Cited:
        """Read one message with its files, under its author; a forward's author is nobody that we know."""
        names, forward = names_of(message, me), is_forward(message)
        flat = flatten_forward(message, names) if forward else flatten(message, names, previews=True)
        files = [file for snapshot in message.message_snapshots for file in snapshot.attachments]
        attached = await self._attachments().read([*message.attachments, *files])
        notes += [f"-# {note}" for note in attached.notes]
        if flat.unread:
            notes.append(tr(STICKERS, names=", ".join(flat.unread)))
        thread = message.channel
        title = thread.name if isinstance(thread, discord.Thread) and thread.id == message.id else ""
        return Cited(
            message.id,
            self._unknown() if forward else self._services.person(message.author),
            "\n".join(filter(None, (title, flat.text))),
            attached.text,
            channel_id=message.channel.id,
            forwarded_id=message.reference.message_id if forward and message.reference else None,
        )

    def _unknown(self) -> Person:
        source = "playground" if self._services.playground else "discord"
        return Person(members.UNKNOWN_AUTHOR_ID, "", source)


def _above(message: discord.Message) -> int | None:
    """Return the message that a message replies to; a forward replies to none."""
    if message.reference is None or is_forward(message):
        return None
    return message.reference.message_id


async def _fetched(channel: Any, message_id: int) -> discord.Message | None:
    """Return a message that Discord didn't send along, or None where it can't be had."""
    if channel is None:
        return None
    try:
        found: discord.Message = await translate_errors(channel.fetch_message(message_id))
    except DeliveryError as error:
        _log.info("reference.not_fetched", error=type(error.__cause__ or error).__name__)
        return None
    return found
