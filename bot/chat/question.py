"""What somebody asks the bot, apart from how it arrived: a message, or a slash command."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import discord

from bot.chat.content.message_text import flatten, is_forward, names_of
from bot.services import Person, Services
from bot.ui.channels import is_public, parent_of
from storage.admin.settings import InForce

_QUOTED = 300


@dataclass(frozen=True, slots=True)
class Continuation:
    """Goes on where the bot's newest reply in the channel ended, if that was at or after ``since_ms``.

    With ``asker_id`` only if that reply was to this member.
    """

    since_ms: int = 0
    asker_id: int | None = None


@dataclass(frozen=True, slots=True)
class Cited:
    """A message that the question refers to, as context.

    ``parent_discord_id`` is what it replies to, ``channel_id`` where it stands if that is elsewhere. Of a
    forward, whose author Discord doesn't name, ``forwarded_id`` is the message that was forwarded.
    """

    discord_id: int
    author: Person
    text: str
    attached_text: str = ""
    parent_discord_id: int | None = None
    channel_id: int | None = None
    forwarded_id: int | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """One message to answer.

    ``discord_id`` is the message's (or the interaction's) id; ``parent_discord_id`` the message that it
    replies to; ``follows`` says what it goes on with otherwise. ``parent_channel_id`` is the channel that a
    thread hangs on. ``quote`` is shown above the answer where the question isn't ``visible`` in the channel,
    ``note`` below it. ``attached_text`` came in files with the message, and so did ``pictures`` (data URLs),
    which are shown to the model and never stored. ``compared`` asks for two candidates. ``in_force`` are the
    settings of its place when it was asked: they are read once. ``words_of`` is a member whose words are
    asked in the name of ``author``.
    """

    discord_id: int
    channel_id: int
    guild_id: int | None
    public: bool
    author: Person
    text: str
    in_force: InForce
    parent_discord_id: int | None = None
    quote: str = ""
    note: str = ""
    visible: bool = True
    attached_text: str = ""
    pictures: tuple[str, ...] = field(default=(), repr=False)
    parent_channel_id: int | None = None
    follows: Continuation | None = None
    cited: tuple[Cited, ...] = ()
    compared: bool = False
    words_of: int | None = None

    @property
    def home_channel_id(self) -> int:
        """The channel whose settings hold: a thread has its parent's."""
        return self.parent_channel_id or self.channel_id


def from_message(
    services: Services,
    message: discord.Message,
    me: discord.ClientUser,
    in_force: InForce,
    *,
    note: str = "",
    attached_text: str = "",
    pictures: tuple[str, ...] = (),
    follows: Continuation | None = None,
    cited: Sequence[Cited] = (),
    goes_on_from: int | None = None,
) -> Question:
    """Read a question from a Discord message; ``goes_on_from`` is what it takes up without a reply."""
    reference = None if is_forward(message) else message.reference
    return Question(
        discord_id=message.id,
        channel_id=message.channel.id,
        guild_id=message.guild.id if message.guild else None,
        public=is_public(message.channel),
        author=services.person(message.author),
        text=readable(message, me),
        in_force=in_force,
        parent_discord_id=reference.message_id if reference is not None else goes_on_from,
        note=note,
        attached_text=attached_text,
        pictures=pictures,
        parent_channel_id=parent_of(message.channel),
        follows=follows,
        cited=tuple(cited),
    )


def move_to_thread(question: Question, thread: discord.Thread) -> Question:
    """Return the question as one that is asked in a thread of the channel that it came from."""
    return dataclasses.replace(question, channel_id=thread.id, parent_channel_id=question.home_channel_id)


def readable(message: discord.Message, me: discord.ClientUser) -> str:
    """Return what a member wrote as people see it, with what stands beside their words."""
    flat = flatten(message, names_of(message, me))
    return flat.text if flat.written else ""


def quote_line(prompt: str) -> str:
    """Return the line that shows a question above its answer."""
    shown = " ".join(prompt.split())
    return f"> {shown[:_QUOTED]}{'…' if len(shown) > _QUOTED else ''}"
