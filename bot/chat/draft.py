"""A reply while it is being written, and what people see of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from bot.chat.prompt import Turn
from bot.chat.question import Question
from bot.delivery.streaming import ReplyRenderer
from bot.language.texts import mark, tr
from bot.serving.protocol import Usage
from storage.chat import replies
from storage.chat.reply_versions import Versions
from storage.config_sections import ChatConfig
from storage.learning.trials import BASE, Route

INVITATION = mark("-# Two answers this time. Which is better? Vote, and I tell you which is which.")


@dataclass(frozen=True, slots=True)
class Asked:
    """What storage knows once the question is recorded; ``turn_ids`` are the messages behind ``turns``.

    ``route`` is who answers: the champion, or the other side of a trial. ``left_out_before``: an earlier
    reply of this conversation already left out its oldest messages.
    """

    conversation_id: int
    message_id: int
    scope: str
    route: Route
    turns: tuple[Turn, ...]
    turn_ids: tuple[int, ...]
    left_out_before: bool = False


@dataclass(frozen=True, slots=True)
class Again:
    """An earlier reply to the same question: the draft writes another version of it, over its messages.

    ``text`` is what the messages show, ``messages`` are their ids in order; ``versions`` and ``votes`` are
    what its buttons say.
    """

    reply_id: str
    prompt_message_id: int
    text: str
    messages: tuple[int, ...]
    versions: Versions
    votes: tuple[int, int] = (0, 0)


@dataclass
class Draft:
    """A reply while it is being written; times are the event loop's, in seconds."""

    reply_id: str
    question: Question
    renderer: ReplyRenderer
    started_at: float
    chat: ChatConfig = field(default_factory=ChatConfig)
    text: str = ""
    waiting: str = ""
    waiting_shown_at: float | None = None
    notes: list[str] = field(default_factory=list)
    parts: list[tuple[int, int]] = field(default_factory=list)
    reply: replies.Reply | None = None
    adapter_id: str | None = None
    route: Route = BASE
    finish_reason: str | None = None
    usage: Usage | None = None
    prompt_tokens: int | None = None
    requested_at: float | None = None
    first_token_at: float | None = None
    again: Again | None = None
    versions: Versions | None = None
    stop_requested: bool = False
    ended: bool = False
    delivered: bool = True
    pair: Pair | None = None

    @property
    def fell_back(self) -> bool:
        """Whether nothing came of another version, so that the earlier one stays."""
        return self.again is not None and not self.text.strip()

    def shown(self) -> str:
        """The whole visible text: the question where it must be quoted, the answer, the notes below it."""
        if self.pair is not None:
            return self.pair.shown(self.question.quote, finished=self.ended)
        if self.again is not None and self.fell_back:
            return self.again.text
        body = self.text.strip()
        if self.finish_reason == "length" and body:
            body += " …"
        pieces = (self.question.quote, body, self.question.note, *self.notes)
        return "\n\n".join(piece for piece in pieces if piece)

    def shown_while_waiting(self) -> str:
        """What stands there before the first word: the question where it must be quoted, and the wait."""
        return "\n\n".join(piece for piece in (self.question.quote, self.waiting) if piece)

    def ms(self, since: float | None, until: float | None) -> int | None:
        """Return the time between two moments, where both are known."""
        return None if since is None or until is None else round((until - since) * 1000)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two drafts of one reply in the order shown."""

    first: Draft
    second: Draft

    def shown(self, quote: str, *, finished: bool) -> str:
        """Return both texts, as far as they are written."""
        sides = []
        for name, draft in (("A", self.first), ("B", self.second)):
            body = draft.text.strip() or (tr("*(no words)*") if finished else "…")
            sides.append(f"**{name}**\n{body}{' …' if draft.finish_reason == 'length' else ''}")
        return "\n\n".join([*([quote] if quote else []), *sides, *([tr(INVITATION)] if finished else [])])
