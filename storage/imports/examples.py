"""What every format is read into: an answer to a prompt, and what is known of who liked it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Turn:
    """One message. `author` names who wrote it where the file says so: a Discord id and a name.

    `discord_id` is the message's own id there.
    """

    role: Role
    content: str
    author: Author | None = None
    discord_id: int | None = None


@dataclass(frozen=True, slots=True)
class Author:
    """A real person of an export from Discord; their own consent decides whether their words train."""

    user_id: int
    name: str


@dataclass(frozen=True, slots=True)
class Channel:
    """Where on Discord something was written, by ids; `guild_id` None where the file doesn't say it.

    Whether it may train depends on that channel's settings; a thread has its parent's.
    """

    guild_id: int | None
    channel_id: int
    parent_channel_id: int | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """An answer to a prompt.

    `prompt` ends with a user's turn. `liked` and `disliked` count people; with neither, and without a
    `better` answer, the answer is one to imitate. `raters` holds who gave a 1 or a -1, where the file names
    them. `place` says where in the file it stands, for messages to people.
    """

    prompt: tuple[Turn, ...]
    answer: Turn
    place: str
    liked: int = 0
    disliked: int = 0
    better: str | None = None
    raters: tuple[tuple[Author, int], ...] = field(default=())
    channel: Channel | None = None

    @property
    def rated(self) -> bool:
        """Whether somebody said what they thought of the answer."""
        return bool(self.liked or self.disliked or self.better)

    @property
    def question(self) -> str:
        """The last thing that was said before the answer."""
        return self.prompt[-1].content

    @property
    def opening(self) -> Prompt:
        """What the conversation began with."""
        first = next(turn for turn in self.prompt if turn.role == "user")
        return Prompt(first.content.strip(), self.place, first.author, self.channel, first.discord_id)


@dataclass(frozen=True, slots=True)
class Prompt:
    """Something to ask, without an answer. `author` is the member of Discord whose words it is."""

    text: str
    place: str
    author: Author | None = None
    channel: Channel | None = None
    discord_id: int | None = None


@dataclass(frozen=True, slots=True)
class Unusable:
    """A record that holds no example or prompt; `reason` is a key of `checks.REASONS`."""

    place: str
    reason: str
