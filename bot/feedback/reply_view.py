"""A reply with all that storage knows around it, read in one go, and the text that its messages show."""

from __future__ import annotations

from dataclasses import dataclass

from bot.chat.question import Question, quote_line
from bot.language.texts import mark, tr
from bot.services import Person
from storage.admin.settings import InForce
from storage.chat import conversations, members, replies, reply_versions
from storage.chat.conversations import Conversation, Message
from storage.chat.replies import Part, Reply
from storage.chat.reply_versions import Versions
from storage.db.database import Connection
from storage.feedback import ratings, side_by_side
from storage.feedback.side_by_side import Comparison

STOPPED_NOTE = mark("-# Stopped.")
NOT_KEPT = mark("-# I don't keep pictures: this answer is to your words alone.")


@dataclass(frozen=True, slots=True)
class ReplyRecord:
    """One reply as storage knows it; `parts` are the messages that it shares with its other versions."""

    reply: Reply
    answer: Message
    asked: Message
    asker: members.Member | None
    conversation: Conversation
    versions: Versions
    parts: tuple[Part, ...]
    comparison: Comparison | None
    votes: tuple[int, int]

    @property
    def gone(self) -> bool:
        """Whether the reply's words were deleted or erased."""
        return self.answer.deleted_ms is not None

    @property
    def text(self) -> str:
        """The whole visible text of the reply, as it stood when it was done."""
        pieces = [self.quote, self.reply.text.strip()]
        if self.reply.finish_reason == "length" and pieces[1]:
            pieces[1] += " …"
        if self.reply.status == "stopped":
            pieces.append(tr(STOPPED_NOTE))
        return "\n\n".join(piece for piece in pieces if piece)

    @property
    def quote(self) -> str:
        """The question, where no message shows it."""
        return quote_line(self.asked.content) if self.asked.visible is False and self.asked.content else ""

    def question(self, in_force: InForce) -> Question:
        """Return the question once more, as it stands today."""
        asker = self.asker
        return Question(
            discord_id=self.asked.discord_id or 0,
            channel_id=self.parts[0].channel_id if self.parts else self.conversation.channel_id,
            guild_id=self.conversation.guild_id,
            public=self.conversation.public,
            author=Person(
                self.reply.asker_id or 0,
                asker.display_name if asker else "",
                asker.source if asker else self.conversation.source,
                asker.simulated if asker else False,
            ),
            text=self.asked.content,
            in_force=in_force,
            quote=self.quote,
            visible=self.asked.visible is not False,
            attached_text=self.asked.attached_text,
            note=tr(NOT_KEPT) if self.asked.pictures else "",
            parent_channel_id=self.conversation.parent_channel_id,
        )


def find(db: Connection, reply_id: str) -> ReplyRecord | None:
    """Return the reply with this id, or None."""
    reply = replies.get(db, reply_id)
    return None if reply is None else _known(db, reply)


def find_in_server(db: Connection, reply_id: str, guild_id: int | None) -> ReplyRecord | None:
    """Return the reply if it is one of this server (None: of direct messages).

    Ids in buttons and forms come from whoever pressed: in another server they open nothing.
    """
    known = find(db, reply_id)
    return known if known is not None and known.conversation.guild_id == guild_id else None


def by_discord_id(db: Connection, discord_id: int) -> ReplyRecord | None:
    """Return the reply that a Discord message shows, or None."""
    reply = replies.by_discord_id(db, discord_id)
    return None if reply is None else _known(db, reply)


def thumbs(db: Connection, reply_id: str) -> tuple[int, int]:
    """Return how many members like a reply, and how many don't."""
    values = [
        rating.value
        for rating in ratings.list_for_reply(db, reply_id)
        if rating.kind == "thumb" and not rating.retracted
    ]
    return values.count(1), values.count(-1)


def _known(db: Connection, reply: Reply) -> ReplyRecord:
    answer = conversations.get_message(db, reply.message_id)
    asked = conversations.get_message(db, reply.prompt_message_id)
    conversation = conversations.get(db, reply.conversation_id)
    # The rows behind a reply are never deleted, only emptied.
    if answer is None or asked is None or conversation is None:
        raise LookupError(f"reply {reply.id} has lost its conversation")
    found = reply_versions.of(db, reply.id)
    return ReplyRecord(
        reply=reply,
        answer=answer,
        asked=asked,
        asker=members.get(db, reply.asker_id) if reply.asker_id is not None else None,
        conversation=conversation,
        versions=found,
        parts=tuple(replies.parts(db, found.shown_id)),
        comparison=side_by_side.of(db, reply.id),
        votes=thumbs(db, reply.id),
    )
