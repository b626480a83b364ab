"""A reply while it is being written: what was asked, what is planned, how far it is, and what people see."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from bot.chat.prompt import Prompt, Turn
from bot.chat.question import Question
from bot.delivery.formatting import Formatting
from bot.delivery.streaming import ReplyRenderer
from bot.language.texts import mark, tr
from bot.serving.protocol import BaseDescription, Sampling, Usage
from storage.chat.reply_versions import Versions
from storage.learning.trials import Route

INVITATION = mark("-# Two answers this time. Which is better? Vote, and I tell you which is which.")


@dataclass(frozen=True, slots=True)
class RecordedQuestion:
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
class Regeneration:
    """The earlier reply of which a draft writes another version, into the same messages.

    ``text`` is what the messages show, ``messages`` are their ids in order; ``versions`` and ``votes`` are
    what its buttons say.
    """

    reply_id: str
    prompt_message_id: int
    text: str
    messages: tuple[int, ...]
    versions: Versions
    votes: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Plan:
    """How a reply is to be made; an `adapter_id` of None is the base model.

    ``route`` is where the reply counts: for the champion, or for one side of a trial.
    """

    base: BaseDescription
    adapter_id: str | None
    route: Route
    prompt: Prompt
    prompt_tokens: int
    sampling: Sampling

    @property
    def model(self) -> str:
        """The name by which the model server knows who answers."""
        return self.adapter_id or self.base.id

    def route_to(self, adapter_id: str | None, route: Route) -> Plan:
        """Return the plan with somebody else to answer."""
        return dataclasses.replace(self, adapter_id=adapter_id, route=route)


@dataclass
class Progress:
    """How far a reply is; times are the event loop's, in seconds.

    ``parts`` are its Discord messages with their positions, ``notes`` stand below its text; ``stored`` says
    whether it has a row, ``versions`` which of several is shown.
    """

    started_at: float
    text: str = ""
    notes: list[str] = field(default_factory=list)
    parts: list[tuple[int, int]] = field(default_factory=list)
    waiting: str = ""
    waiting_shown_at: float | None = None
    requested_at: float | None = None
    first_token_at: float | None = None
    finish_reason: str | None = None
    usage: Usage | None = None
    versions: Versions | None = None
    stored: bool = False
    stop_requested: bool = False
    ended: bool = False
    delivered: bool = True

    @property
    def has_words(self) -> bool:
        """Whether anything was said yet."""
        return bool(self.text.strip())

    def ms_until(self, moment: float | None) -> int | None:
        """Return the time from the start to a moment, where it is known."""
        return None if moment is None else round((moment - self.started_at) * 1000)


@dataclass
class Draft:
    """A reply while it is being written; `recorded` and `plan` are there once it has come so far."""

    reply_id: str
    question: Question
    renderer: ReplyRenderer
    progress: Progress
    again: Regeneration | None = None
    recorded: RecordedQuestion | None = None
    plan: Plan | None = None
    pair: Pair | None = None

    @property
    def fell_back(self) -> bool:
        """Whether nothing came of another version, so that the earlier one stays."""
        return self.again is not None and not self.progress.has_words

    def require_plan(self) -> Plan:
        """Return the plan of a draft that has one. Raises LookupError."""
        if self.plan is None:
            raise LookupError(f"reply {self.reply_id} has no plan yet")
        return self.plan

    def visible_text(self) -> str:
        """The whole visible text: the question where it must be quoted, the answer, the notes below it."""
        if self.pair is not None:
            return self.pair.visible_text(self.question.quote, finished=self.progress.ended)
        if self.again is not None and self.fell_back:
            return self.again.text
        body = answer_text(self.progress)
        pieces = (self.question.quote, body, self.question.note, *self.progress.notes)
        return "\n\n".join(piece for piece in pieces if piece)

    def waiting_text(self) -> str:
        """What stands there before the first word: the question where it must be quoted, and the wait."""
        return "\n\n".join(piece for piece in (self.question.quote, self.progress.waiting) if piece)


def answer_text(progress: Progress) -> str:
    """Return the answer so far; a code block that it leaves open is closed: what follows is no code."""
    body = progress.text.strip()
    if progress.finish_reason == "length" and body:
        body += " …"
    return body + Formatting(body).closing(len(body), body)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two drafts of one reply in the order shown."""

    first: Draft
    second: Draft

    def other(self, draft: Draft) -> Draft:
        """Return the other one."""
        return self.second if draft is self.first else self.first

    def visible_text(self, quote: str, *, finished: bool) -> str:
        """Return both texts, as far as they are written."""
        sides = []
        for name, draft in (("A", self.first), ("B", self.second)):
            body = answer_text(draft.progress) or (tr("*(no words)*") if finished else "…")
            sides.append(f"**{name}**\n{body}")
        return "\n\n".join([*([quote] if quote else []), *sides, *([tr(INVITATION)] if finished else [])])
