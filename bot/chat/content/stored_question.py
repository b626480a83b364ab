"""Store a question with what it refers to, below what it answers to."""

from __future__ import annotations

from bot.chat.question import Cited, Continuation, Question
from bot.services import Person
from storage.chat import channels, conversations, replies
from storage.chat.conversations import Message
from storage.db.clock import now_ms
from storage.db.database import Connection

DM_MEMORY_MS = 30 * 60 * 1000
"""For how long the next direct message goes on with the conversation before it."""


def store(db: Connection, question: Question, scope: str, permission_reference: str) -> Message:
    """Store a question, once, and return its message."""
    question.author.ensure(db)
    channels.note(
        db,
        question.channel_id,
        guild_id=question.guild_id,
        public=question.public,
        parent_channel_id=question.parent_channel_id,
    )
    known = conversations.by_discord_id(db, question.discord_id)
    if known is not None:
        return known
    parent_id, conversation_id = _parent(db, question, scope, permission_reference)
    message_id = conversations.add_message(
        db,
        conversation_id=conversation_id or _new_conversation(db, question, scope),
        discord_id=question.discord_id,
        parent_id=parent_id,
        author_id=question.author.user_id if question.words_of is None else question.words_of,
        role="user",
        content=question.text,
        permission_reference=permission_reference,
        attached_text=question.attached_text,
        pictures=len(question.pictures),
        visible=question.visible,
        public=question.public,
        channel_id=question.channel_id,
    )
    stored = conversations.get_message(db, message_id)
    if stored is None:
        raise LookupError(message_id)
    return stored


def _parent(
    db: Connection, question: Question, scope: str, permission_reference: str
) -> tuple[int | None, int | None]:
    """Return the message that the question answers to or goes on from, and its conversation."""
    return _record_cited(db, question, scope, permission_reference, _below(db, question))


def _below(db: Connection, question: Question) -> tuple[int | None, int | None]:
    """Return what is known of what the question, and all that it cites, stands below."""
    if question.parent_discord_id is None:
        return _goes_on_from(db, question)
    parent = conversations.by_discord_id(db, question.parent_discord_id)
    if parent is not None:
        return parent.id, parent.conversation_id
    return (None, None) if question.cited else _goes_on_from(db, question)


def _goes_on_from(db: Connection, question: Question) -> tuple[int | None, int | None]:
    """Return the newest reply, or the thread's first message, that a question goes on from."""
    follows = question.follows
    if question.guild_id is None:
        follows = Continuation(now_ms() - DM_MEMORY_MS)
    if follows is None:
        return None, None
    last = replies.latest_in(db, question.channel_id, since_ms=follows.since_ms, asker_id=follows.asker_id)
    return _thread_starter(db, question) if last is None else (last.message_id, last.conversation_id)


def _thread_starter(db: Connection, question: Question) -> tuple[int | None, int | None]:
    """Return the message that the question's thread was opened on: a thread bears its message's id."""
    if question.parent_channel_id is None or question.channel_id == question.discord_id:
        return None, None
    starter = conversations.by_discord_id(db, question.channel_id)
    return (None, None) if starter is None else (starter.id, starter.conversation_id)


def _record_cited(
    db: Connection,
    question: Question,
    scope: str,
    permission_reference: str,
    below: tuple[int | None, int | None],
) -> tuple[int | None, int | None]:
    """Store what the question refers to, each message as its author's, below what that replies to."""
    parent_id, conversation_id = below
    for cited in question.cited:
        above = None
        if cited.parent_discord_id is not None:
            above = conversations.by_discord_id(db, cited.parent_discord_id)
        if above is not None:
            parent_id, conversation_id = above.id, above.conversation_id
        conversation_id = conversation_id or _new_conversation(db, question, scope)
        original = None if cited.forwarded_id is None else conversations.by_discord_id(db, cited.forwarded_id)
        author = _author(cited, original)
        author.ensure(db)
        parent_id = conversations.add_message(
            db,
            conversation_id=conversation_id,
            discord_id=cited.discord_id,
            parent_id=parent_id,
            author_id=author.user_id,
            role="user",
            content=cited.text,
            permission_reference=permission_reference,
            visible=True,
            attached_text=cited.attached_text,
            public=question.public and _is_public(db, original),
            channel_id=cited.channel_id or question.channel_id,
        )
    return parent_id, conversation_id


def _author(cited: Cited, original: Message | None) -> Person:
    """Return whose words a message holds: of a forward, its author where the original is known here."""
    if original is None or original.author_id is None:
        return cited.author
    return Person(original.author_id, "", original.source)


def _is_public(db: Connection, original: Message | None) -> bool:
    """Whether the original of a forward isn't known to stand where not everybody reads."""
    if original is None:
        return True
    hidden = original.channel_id is not None and channels.any_private(db, [original.channel_id])
    return bool(original.public) and not hidden


def _new_conversation(db: Connection, question: Question, scope: str) -> int:
    place = "dm" if question.guild_id is None else str(question.guild_id)
    return conversations.open_conversation(
        db,
        key=f"{place}:{question.channel_id}:{question.discord_id}",
        guild_id=question.guild_id,
        channel_id=question.channel_id,
        scope=scope,
        source=question.author.source,
        public=question.public,
        parent_channel_id=question.parent_channel_id,
    ).id
