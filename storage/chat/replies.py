"""The bot's replies: what each said, and everything that produced it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlite_utils

from storage.chat import conversations, members
from storage.db import sql
from storage.db.clock import now_ms
from storage.errors import UnknownRowError

# The ids of replies that came in a file begin so.
IMPORTED = "import-"

Status = Literal["streaming", "complete", "stopped", "failed"]


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply. `adapter_id` None means the base model; times are milliseconds, `prompt` chat messages."""

    id: str
    message_id: int
    prompt_message_id: int
    conversation_id: int
    asker_id: int | None
    scope: str
    adapter_id: str | None
    base_hash: str
    prompt: list[dict[str, str]]
    seed: int | None
    sampling: dict[str, Any]
    prompt_tokens: int | None
    completion_tokens: int | None
    finish_reason: str | None
    queue_ms: int | None
    first_token_ms: int | None
    duration_ms: int | None
    status: Status
    error: str | None
    source: str
    created_ms: int
    text: str

    @property
    def planned(self) -> bool:
        """Whether it is known what produces it, which a reply that was only opened lacks."""
        return bool(self.sampling or self.prompt)


@dataclass(frozen=True, slots=True)
class Part:
    """One Discord message of a reply that may span several."""

    discord_id: int
    reply_id: str
    channel_id: int
    position: int


_SELECT = """SELECT replies.*, messages.content AS text
FROM replies JOIN messages ON messages.id = replies.message_id"""


def open_reply(
    db: sqlite_utils.Database,
    *,
    reply_id: str,
    prompt_message_id: int,
    scope: str,
    base_hash: str,
    asker_id: int | None = None,
    permission_reference: str = "",
) -> Reply:
    """Record that a reply is to come, with an empty assistant message below the prompt message.

    What produces it is not known yet: `start` adds it. Safe to repeat. Raises UnknownRowError.
    """
    known = get(db, reply_id)
    if known is not None:
        return known
    asked = conversations.get_message(db, prompt_message_id)
    if asked is None:
        raise UnknownRowError("There is no message {message} to reply to.", message=prompt_message_id)
    message_id = conversations.add_message(
        db,
        conversation_id=asked.conversation_id,
        discord_id=None,
        parent_id=asked.id,
        author_id=None,
        role="assistant",
        content="",
        permission_reference=permission_reference,
    )
    values = {
        "id": reply_id,
        "message_id": message_id,
        "prompt_message_id": asked.id,
        "conversation_id": asked.conversation_id,
        "asker_id": asked.author_id if asker_id is None else asker_id,
        "scope": scope,
        "base_hash": base_hash,
        "prompt_json": "[]",
        "sampling_json": "{}",
        "status": "streaming",
        "source": asked.source,
        "created_ms": now_ms(),
    }
    sql.insert(db, "replies", values)
    return _expect(db, reply_id)


def start(
    db: sqlite_utils.Database,
    *,
    reply_id: str,
    prompt_message_id: int,
    scope: str,
    adapter_id: str | None,
    base_hash: str,
    prompt: Sequence[Mapping[str, str]],
    seed: int | None,
    sampling: Mapping[str, Any],
    asker_id: int | None = None,
    context: Sequence[int] | None = None,
    permission_reference: str = "",
) -> Reply:
    """Record that a reply began, with an empty assistant message below the prompt message.

    `context` names the messages whose words are in the prompt; without it the whole chain of the prompt
    message counts. A reply that already began is returned unchanged, one that was only opened gets what
    produces it. Raises UnknownRowError.
    """
    known = get(db, reply_id)
    if known is not None and known.planned:
        return known
    opened = known or open_reply(
        db,
        reply_id=reply_id,
        prompt_message_id=prompt_message_id,
        scope=scope,
        base_hash=base_hash,
        asker_id=asker_id,
        permission_reference=permission_reference,
    )
    sql.change(
        db,
        """UPDATE replies SET adapter_id = :adapter_id, base_hash = :base_hash, prompt_json = :prompt,
                  seed = :seed, sampling_json = :sampling WHERE id = :id""",
        {
            "id": reply_id,
            "adapter_id": adapter_id,
            "base_hash": base_hash,
            "prompt": json.dumps([dict(message) for message in prompt]),
            "seed": seed,
            "sampling": json.dumps(dict(sampling)),
        },
    )
    _record_context(db, reply_id, opened.prompt_message_id, context)
    if context is not None:
        # A message that was deleted while its prompt was being put together is in it all the same.
        sql.change(
            db,
            """UPDATE replies SET prompt_json = '[]' WHERE id = :id AND EXISTS (
                   SELECT 1 FROM reply_context JOIN messages ON messages.id = reply_context.message_id
                   WHERE reply_context.reply_id = :id AND messages.deleted_ms IS NOT NULL)""",
            {"id": reply_id},
        )
    return _expect(db, reply_id)


def finish(
    db: sqlite_utils.Database,
    reply_id: str,
    *,
    content: str,
    status: Status,
    finish_reason: str | None,
    prompt_tokens: int | None,
    completion_tokens: int | None,
    queue_ms: int | None,
    first_token_ms: int | None,
    duration_ms: int | None,
    error: str | None = None,
) -> Reply:
    """Store the reply's text and figures. Raises UnknownRowError."""
    reply = _expect(db, reply_id)
    sql.change(
        db,
        """UPDATE replies SET status = :status, finish_reason = :finish_reason, error = :error,
                  prompt_tokens = :prompt_tokens, completion_tokens = :completion_tokens,
                  queue_ms = :queue_ms, first_token_ms = :first_token_ms, duration_ms = :duration_ms
           WHERE id = :id""",
        {
            "id": reply_id,
            "status": status,
            "finish_reason": finish_reason,
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "queue_ms": queue_ms,
            "first_token_ms": first_token_ms,
            "duration_ms": duration_ms,
            "error": error,
        },
    )
    sql.change(
        db,
        "UPDATE messages SET content = ? WHERE id = ? AND deleted_ms IS NULL",
        (content, reply.message_id),
    )
    return _expect(db, reply_id)


def reassign(db: sqlite_utils.Database, reply_id: str, adapter_id: str | None) -> None:
    """Say that another adapter writes a reply of which nothing has been written yet."""
    sql.change(
        db, "UPDATE replies SET adapter_id = ? WHERE id = ? AND status = 'streaming'", (adapter_id, reply_id)
    )


def add_part(
    db: sqlite_utils.Database, reply_id: str, discord_id: int, channel_id: int, position: int
) -> None:
    """Tie one Discord message to the reply; the first part also names the reply's own message."""
    reply = _expect(db, reply_id)
    sql.change(
        db, "DELETE FROM parts_on_their_way WHERE reply_id = ? AND position <= ?", (reply_id, position)
    )
    sql.change(
        db,
        "INSERT INTO reply_parts VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (discord_id, reply_id, channel_id, position),
    )
    if position == 0:
        sql.change(
            db,
            "UPDATE messages SET discord_id = ? WHERE id = ? AND discord_id IS NULL",
            (discord_id, reply.message_id),
        )


def drop_part(db: sqlite_utils.Database, discord_id: int) -> None:
    """Forget a Discord message that the reply turned out not to need."""
    sql.change(db, "DELETE FROM reply_parts WHERE discord_id = ?", (discord_id,))
    sql.change(db, "UPDATE messages SET discord_id = NULL WHERE discord_id = ?", (discord_id,))


def get(db: sqlite_utils.Database, reply_id: str) -> Reply | None:
    """Return the reply, or None."""
    row = sql.one(db, f"{_SELECT} WHERE replies.id = ?", (reply_id,))
    return None if row is None else _reply(row)


def by_discord_id(db: sqlite_utils.Database, discord_id: int) -> Reply | None:
    """Return the reply that this Discord message is a part of, or None."""
    row = sql.one(
        db,
        f"{_SELECT} WHERE replies.id = (SELECT reply_id FROM reply_parts WHERE discord_id = ?)",
        (discord_id,),
    )
    return None if row is None else _reply(row)


def find_shown_reply(db: sqlite_utils.Database, prompt_message_id: int) -> str | None:
    """Return the id of the reply to a message that Discord shows, or None."""
    found: str | None = sql.value(
        db,
        """SELECT reply_parts.reply_id FROM replies JOIN reply_parts ON reply_parts.reply_id = replies.id
           WHERE replies.prompt_message_id = ? LIMIT 1""",
        (prompt_message_id,),
    )
    return found


def parts(db: sqlite_utils.Database, reply_id: str) -> list[Part]:
    """Return the Discord messages of a reply in order."""
    rows = sql.many(db, "SELECT * FROM reply_parts WHERE reply_id = ? ORDER BY position", (reply_id,))
    return [Part(**row) for row in rows]


def recent(
    db: sqlite_utils.Database, since_ms: int, limit: int, *, before: tuple[int, str] | None = None
) -> list[Reply]:
    """Return replies begun at or after `since_ms`, the newest first, those behind `before` (time, id)."""
    rows = sql.many(
        db,
        f"""{_SELECT} WHERE replies.created_ms >= :since
            AND (:at IS NULL OR (replies.created_ms, replies.id) < (:at, :id))
            ORDER BY replies.created_ms DESC, replies.id DESC LIMIT :limit""",
        {
            "since": since_ms,
            "limit": limit,
            "at": before[0] if before else None,
            "id": before[1] if before else None,
        },
    )
    return [_reply(row) for row in rows]


def latest_in(
    db: sqlite_utils.Database, channel_id: int, *, since_ms: int = 0, asker_id: int | None = None
) -> Reply | None:
    """Return the newest reply with a text that ended in a channel at or after `since_ms`, or None.

    With `asker_id`, the newest one if it was this member's, so that nobody is answered in another's place.
    An answer of a tasting is nobody's talk: it is passed over.
    """
    rows = sql.many(
        db,
        f"""{_SELECT} WHERE replies.id IN (
                SELECT reply_id FROM reply_parts WHERE channel_id = ? ORDER BY discord_id DESC LIMIT 20)
            AND messages.content <> '' AND messages.deleted_ms IS NULL AND replies.status <> 'streaming'
            AND (replies.asker_id IS NULL OR replies.asker_id > ?)
            AND replies.created_ms + coalesce(replies.duration_ms, 0) >= ?
            ORDER BY replies.message_id DESC LIMIT 1""",
        (channel_id, members.OPERATOR_ID, since_ms),
    )
    found = _reply(rows[0]) if rows else None
    return found if found is None or asker_id in (None, found.asker_id) else None


def had_left_out(db: sqlite_utils.Database, message_id: int, turns: int) -> bool:
    """Whether the reply that a message is had already left out some of the `turns` before its own end."""
    seen = sql.value(
        db,
        """SELECT count(*) FROM reply_context JOIN messages ON messages.id = reply_context.message_id
           WHERE reply_id = (SELECT id FROM replies WHERE message_id = ?)""",
        (message_id,),
    )
    return 0 < int(seen) < turns


def _record_context(
    db: sqlite_utils.Database, reply_id: str, prompt_message_id: int, context: Sequence[int] | None
) -> None:
    if context is None:
        context = [message.id for message in conversations.chain(db, prompt_message_id)]
    for message_id in {*context, prompt_message_id}:
        sql.change(
            db,
            """INSERT INTO reply_context (reply_id, message_id, user_id)
               SELECT ?, id, author_id FROM messages WHERE id = ?""",
            (reply_id, message_id),
        )


def _expect(db: sqlite_utils.Database, reply_id: str) -> Reply:
    reply = get(db, reply_id)
    if reply is None:
        raise UnknownRowError("There is no reply {reply}.", reply=reply_id)
    return reply


def _reply(row: dict[str, Any]) -> Reply:
    prompt, sampling = json.loads(row.pop("prompt_json")), json.loads(row.pop("sampling_json"))
    return Reply(**row, prompt=prompt, sampling=sampling)
