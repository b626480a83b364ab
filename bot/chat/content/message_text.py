"""What people see of a Discord message, as plain text: its words, and what Discord keeps beside them.

Forwards, embeds, polls, stickers and the text of components lie outside `content`. Mentions, times, commands
and custom emoji stand in it as ids and are put into words. Nothing is fetched here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

import discord
import regex

EMBED_LIMIT = 1500
"""The longest text of one embed, in characters; Discord allows 6,000 in a message."""

_USER = re.compile(r"<@!?(\d+)>")
_ROLE = re.compile(r"<@&(\d+)>")
_CHANNEL = re.compile(r"<#(\d+)>")
_EMOJI = re.compile(r"<a?(:\w+:)\d+>")
_TIME = re.compile(r"<t:(-?\d{1,13})(?::[tTdDfFRsS])?>")
_COMMAND = re.compile(r"</([^:<>\n]{1,100}):\d+>")
_PLACE = re.compile(r"<id:(customize|browse|guide|linked-roles)(?::\d+)?>")
_PLACES = {
    "customize": "Channels & Roles",
    "browse": "Browse Channels",
    "guide": "Server Guide",
    "linked-roles": "Linked Roles",
}
_VISIBLE = regex.compile(r"[^\s\p{Cf}\p{Mn}\u115f\u1160\u2800\u3164]")
# The kinds of embed that Discord makes out of an address in the text.
_PREVIEWS = frozenset({"link", "article", "video", "image", "gifv"})

Name = Callable[[int], str | None]


def _nobody(_: int) -> str | None:
    return None


@dataclass(frozen=True, slots=True)
class Names:
    """The names behind ids, as far as they are known; `own_id` is the bot's, whose mention is left out."""

    user: Name = _nobody
    role: Name = _nobody
    channel: Name = _nobody
    own_id: int | None = None


class Content(Protocol):
    """What a message and a snapshot of a forwarded one have in common."""

    content: str
    embeds: list[discord.Embed]
    stickers: list[Any]
    components: list[Any]


@dataclass(frozen=True, slots=True)
class Flat:
    """A message as plain text: what its author wrote, what stands beside it, and what can't be read."""

    written: str = ""
    beside: str = ""
    unread: tuple[str, ...] = field(default=())

    @property
    def text(self) -> str:
        """All of it."""
        return "\n".join(filter(None, (self.written, self.beside)))


def names_of(message: discord.Message, me: discord.ClientUser) -> Names:
    """Return the names behind the ids of a message."""
    mentioned = {user.id: str(user.display_name) for user in message.mentions}
    guild = message.guild

    def user(user_id: int) -> str | None:
        member = guild.get_member(user_id) if guild and user_id not in mentioned else None
        return mentioned.get(user_id) or (str(member.display_name) if member else None)

    def role(role_id: int) -> str | None:
        known = guild.get_role(role_id) if guild else None
        return known.name if known else None

    def channel(channel_id: int) -> str | None:
        known = guild.get_channel_or_thread(channel_id) if guild else None
        return known.name if known else None

    return Names(user, role, channel, me.id)


def replace_ids(content: str, names: Names) -> str:
    """Return a text with names instead of ids, and without the bot's own mention."""

    def user(found: re.Match[str]) -> str:
        user_id = int(found[1])
        return "" if user_id == names.own_id else f"@{names.user(user_id) or 'someone'}"

    # Discord's JSON can hold half a character, which no database takes.
    text = content.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    text = _USER.sub(user, text)
    text = _ROLE.sub(lambda found: f"@{names.role(int(found[1])) or 'role'}", text)
    text = _CHANNEL.sub(lambda found: f"#{names.channel(int(found[1])) or 'channel'}", text)
    text = _PLACE.sub(lambda found: f"#{_PLACES[found[1]]}", text)
    text = _TIME.sub(lambda found: _time(int(found[1])), text)
    text = _EMOJI.sub(r"\1", _COMMAND.sub(r"/\1", text)).strip()
    return text if _VISIBLE.search(text) else ""


def flatten(message: Content, names: Names, *, previews: bool = False) -> Flat:
    """Return all that can be read of a message or a snapshot; `previews` takes those of addresses as well."""
    beside = [_embed(embed, names) for embed in message.embeds if previews or embed.type not in _PREVIEWS]
    beside += [replace_ids(text, names) for text in _component_texts(message.components)]
    poll = getattr(message, "poll", None)
    if poll is not None:
        beside.append(_poll(poll))
    stickers = tuple(f"[sticker: {_line(sticker.name)}]" for sticker in message.stickers)
    words = replace_ids(message.content or _event(message), names)
    return Flat(words, "\n".join(filter(None, [*beside, *stickers])), tuple(s.name for s in message.stickers))


def is_forward(message: discord.Message) -> bool:
    """Whether a message is somebody else's, forwarded: its author asks nothing with it."""
    reference = message.reference
    forwarded = reference is not None and reference.type is discord.MessageReferenceType.forward
    return forwarded or bool(message.message_snapshots)


def flatten_forward(message: discord.Message, names: Names) -> Flat:
    """Return what a forward carries."""
    flats = [flatten(snapshot, names, previews=True) for snapshot in message.message_snapshots]
    return Flat(
        "\n".join(filter(None, (flat.text for flat in flats))),
        unread=tuple(name for flat in flats for name in flat.unread),
    )


def _time(seconds: int) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (ValueError, OverflowError, OSError):
        return "an unknown time"


def _line(text: object) -> str:
    return " ".join(str(text or "").split())


def _event(message: Content) -> str:
    """Return what Discord itself says in place of words: that somebody joined, pinned, or ran a command."""
    kind = getattr(message, "type", discord.MessageType.default)
    if kind in (discord.MessageType.default, discord.MessageType.reply):
        return ""
    said = getattr(message, "system_content", "")
    return said if isinstance(said, str) else ""


def _embed(embed: discord.Embed, names: Names) -> str:
    """Return an embed's text, line by line as it is shown."""
    lines = [
        _line(embed.provider.name),
        _line(embed.author.name),
        _line(embed.title),
        embed.description or "",
    ]
    lines += [f"{_line(item.name)}: {item.value}" for item in embed.fields]
    lines.append(_line(embed.footer.text))
    text = replace_ids("\n".join(line.strip() for line in lines if line and line.strip()), names)
    return text if len(text) <= EMBED_LIMIT else f"{text[:EMBED_LIMIT].rstrip()} […]"


def _poll(poll: discord.Poll) -> str:
    question = poll.question if isinstance(poll.question, str) else poll.question.text
    lines = [f"Poll: {_line(question)}"]
    for number, answer in enumerate(poll.answers, 1):
        votes = "1 vote" if answer.vote_count == 1 else f"{answer.vote_count} votes"
        lines.append(f"{number}. {_line(answer.text)} ({votes})")
    return "\n".join(lines)


def _component_texts(components: Sequence[Any]) -> Iterator[str]:
    """Yield the texts of a message that is laid out in components instead of content, in reading order."""
    for component in components:
        if isinstance(component, discord.TextDisplay):
            yield component.content
        yield from _component_texts(getattr(component, "children", None) or ())
