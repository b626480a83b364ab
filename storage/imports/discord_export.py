"""DiscordChatExporter's files. JSON: replies to earlier messages as answers, reactions as ratings.

Its CSV names neither messages nor what they reply to, so that it holds prompts only.

Every author's and rater's own Discord id is kept, so that their consent decides; without Discord's recorded
permission nothing of it trains, whoever exported it.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from storage.chat.members import UNKNOWN_AUTHOR_ID
from storage.errors import ImportFileError
from storage.imports.examples import Author, Channel, Example, Prompt, Turn, Unusable
from storage.imports.reading import Record

# Messages that a later one may still refer to.
REMEMBERED = 50_000
MAX_CHAIN = 8
_KINDS = frozenset({"Default", "Reply"})
# Kinds of channels that not everybody of a server can read.
_PRIVATE = frozenset({"DirectTextChat", "DirectGroupTextChat", "GuildPrivateThread"})
# Shorter ones are hardly ever anything to ask: "ok", "same here".
MIN_PROMPT = 12
_TABLE = frozenset({"AuthorID", "Author", "Date", "Content"})
# Kinds of channels whose "category" is the channel that they hang on.
_THREADS = frozenset({"GuildNewsThread", "GuildPublicThread"})
# How an export is named unless somebody names it: "Server - Category - channel [id].csv".
MAX_DIGITS = 20
_ID_IN_NAME = re.compile(r"\[(\d{17,20})\]")


def matches(outline: object) -> bool:
    """Return whether a file's outline is that of an export of one channel."""
    return isinstance(outline, Mapping) and "guild" in outline and "messages" in outline


def check_public(outline: Mapping[str, Any]) -> None:
    """Raise ImportFileError for an export of direct messages or of a private thread."""
    channel = outline.get("channel")
    if isinstance(channel, Mapping) and channel.get("type") in _PRIVATE:
        raise ImportFileError(
            "These are direct messages or a private thread: what not everybody could read never trains."
        )


def channel_of(outline: Mapping[str, Any]) -> Channel | None:
    """Return the channel that an export as JSON is of; None where it has no id."""
    facts = outline.get("channel")
    if not isinstance(facts, Mapping) or (channel_id := discord_id(facts.get("id"))) is None:
        return None
    guild = outline.get("guild")
    guild_id = discord_id(guild.get("id")) if isinstance(guild, Mapping) else None
    parent = discord_id(facts.get("categoryId")) if facts.get("type") in _THREADS else None
    return Channel(guild_id, channel_id, parent)


def channel_of_name(path: Path) -> Channel | None:
    """Return the channel that an export as CSV is of, which only its name says; None where it doesn't."""
    found = _ID_IN_NAME.search(path.name)
    channel_id = discord_id(found[1]) if found else None
    return Channel(None, channel_id) if channel_id is not None else None


def discord_id(value: object) -> int | None:
    """Return an id as Discord gives it, a positive number of 63 bits; None for anything else."""
    text = str(value)
    number = int(text) if text.isascii() and text.isdecimal() and len(text) <= MAX_DIGITS else 0
    return number if 0 < number < 1 << 63 else None


def matches_table(first: object) -> bool:
    """Return whether a row is of an export as CSV."""
    return isinstance(first, Mapping) and first.keys() >= _TABLE


def read_table(channel: Channel | None, record: Record) -> Iterator[Prompt | Unusable]:
    """Yield the message of a row of an export as CSV as a prompt."""
    row = record.value
    author = discord_id(row.get("AuthorID"))
    if author is None or not isinstance(row.get("Content"), str):
        yield Unusable(record.place, "no_prompt")
    else:
        writer = Author(author, str(row.get("Author") or ""))
        yield discord_prompt(row["Content"], record.place, writer, channel)


def discord_prompt(
    content: str, place: str, author: Author, channel: Channel | None, message_id: int | None = None
) -> Prompt | Unusable:
    """Return a member's message as a prompt, if there is something to ask in it."""
    text = content.strip()
    return (
        Prompt(text, place, author, channel, message_id)
        if len(text) >= MIN_PROMPT
        else Unusable(place, "too_short")
    )


class DiscordExport:
    """A reader with the memory that replies need: each refers to an earlier message."""

    def __init__(
        self, rating_up: Collection[str], rating_down: Collection[str], channel: Channel | None = None
    ) -> None:
        self._channel = channel
        self._up = frozenset(rating_up)
        self._down = frozenset(rating_down)
        self._seen: OrderedDict[str, tuple[Mapping[str, Any], str | None]] = OrderedDict()

    def read(self, record: Record) -> Iterator[Example | Unusable]:
        """Yield the example that a message makes as an answer to the one that it replies to."""
        message = record.value
        if not isinstance(message, Mapping) or "content" not in message or "id" not in message:
            yield Unusable(record.place, "not_messages")
            return
        reference = message.get("reference")
        parent = str(reference.get("messageId")) if isinstance(reference, Mapping) else None
        self._remember(str(message["id"]), message, parent)
        if message.get("type") not in _KINDS:
            yield Unusable(record.place, "system_message")
        elif parent is None:
            yield Unusable(record.place, "answers_nothing")
        elif parent not in self._seen:
            yield Unusable(record.place, "question_missing")
        else:
            try:
                yield self._example(message, parent, record.place)
            except (ValueError, TypeError, AttributeError):
                yield Unusable(record.place, "not_messages")

    def _remember(self, message_id: str, message: Mapping[str, Any], parent: str | None) -> None:
        self._seen[message_id] = (message, parent)
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)

    def _example(self, message: Mapping[str, Any], parent: str, place: str) -> Example:
        chain: list[Mapping[str, Any]] = []
        current: str | None = parent
        while current is not None and current in self._seen and len(chain) < MAX_CHAIN:
            found, current = self._seen[current]
            chain.insert(0, found)
        answerer = _author(message)
        prompt = tuple(_turn(each, "assistant" if _author(each) == answerer else "user") for each in chain)
        if prompt[-1].role != "user":
            # Somebody who answers themselves: their own earlier message is what was asked.
            prompt = (*prompt[:-1], replace(prompt[-1], role="user"))
        liked, disliked, raters = self._reactions(message)
        answer = _turn(message, "assistant")
        return Example(prompt, answer, place, liked, disliked, raters=raters, channel=self._channel)

    def _reactions(self, message: Mapping[str, Any]) -> tuple[int, int, tuple[tuple[Author, int], ...]]:
        counts = {1: 0, -1: 0}
        raters: list[tuple[Author, int]] = []
        for reaction in message.get("reactions") or ():
            name = str((reaction.get("emoji") or {}).get("name"))
            value = 1 if name in self._up else -1 if name in self._down else 0
            if value:
                counts[value] += int(reaction.get("count", 0))
                raters += [(_person(each), value) for each in reaction.get("users") or ()]
        return counts[1], counts[-1], tuple(raters)


def _turn(message: Mapping[str, Any], role: Any) -> Turn:
    return Turn(role, str(message["content"]), _author(message), discord_id(message["id"]))


def _author(message: Mapping[str, Any]) -> Author:
    return _person(message.get("author") or {})


def _person(value: Mapping[str, Any]) -> Author:
    # Who isn't named can't have opted in.
    user_id = discord_id(value.get("id")) or UNKNOWN_AUTHOR_ID
    return Author(user_id, str(value.get("nickname") or value.get("name") or ""))
