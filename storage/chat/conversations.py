"""Conversations and their messages. Branches are parents."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlite_utils

from storage.admin import blocks
from storage.chat import members
from storage.chat.splits import Split, assign_split, near_duplicate_key
from storage.db import sql
from storage.db.clock import now_ms
from storage.errors import UnknownRowError

Role = Literal["user", "assistant"]


@dataclass(frozen=True, slots=True)
class Conversation:
    """One chain of replies in one channel; `guild_id` is None in a direct message."""

    id: int
    key: str
    guild_id: int | None
    channel_id: int
    scope: str
    source: str
    public: bool
    split: Split
    group_key: str | None
    created_ms: int
    parent_channel_id: int | None = None

    @property
    def settings_channel_id(self) -> int:
        """The channel whose settings hold here: a thread has its parent's."""
        return self.parent_channel_id or self.channel_id


@dataclass(frozen=True, slots=True)
class Message:
    """One message; `author_id` is None for the bot's own.

    `visible` is false for a slash command's prompt, which no Discord message shows, None where unknown.
    `public`, `channel_id` and `blocked` hold what was so when it was written: whether everybody in the server
    could read it, where, and whether its author was blocked there. None where an older version wrote it: then
    its conversation says it. `pictures` counts those that the model was shown with it; none of them is kept.
    """

    id: int
    discord_id: int | None
    conversation_id: int
    parent_id: int | None
    author_id: int | None
    role: Role
    content: str
    source: str
    consent: members.Consent
    permission_reference: str | None
    created_ms: int
    edited_ms: int | None
    deleted_ms: int | None
    visible: bool | None = None
    attached_text: str = ""
    public: bool | None = None
    channel_id: int | None = None
    blocked: bool = False
    pictures: int = 0

    @property
    def words(self) -> str:
        """All that was said: what was written, and the text out of the files that came with it."""
        return "\n\n".join(filter(None, (self.content, self.attached_text)))


def scope_of(config_scope: str, guild_id: int | None) -> str:
    """Return whose adapter answers: "guild:<id>", or "deployment" (always so in a direct message)."""
    if config_scope == "guild" and guild_id is not None:
        return f"guild:{guild_id}"
    return "deployment"


def open_conversation(
    db: sqlite_utils.Database,
    *,
    key: str,
    guild_id: int | None,
    channel_id: int,
    scope: str,
    source: str,
    public: bool,
    parent_channel_id: int | None = None,
) -> Conversation:
    """Return the conversation with this key, opened if it is new (use one key per chain of replies).

    Its split is final as soon as it has its first message: conversations that begin with nearly the
    same prompt share a group and therefore a split. A thread hangs on its `parent_channel_id`.
    """
    values = {
        "key": key,
        "guild_id": guild_id,
        "channel_id": channel_id,
        "scope": scope,
        "source": source,
        "public": int(public and guild_id is not None),
        "split": assign_split(key),
        "created_ms": now_ms(),
        "parent_channel_id": parent_channel_id,
    }
    sql.insert(db, "conversations", values, on_conflict="DO NOTHING")
    return _conversation(sql.many(db, "SELECT * FROM conversations WHERE key = ?", (key,))[0])


def get(db: sqlite_utils.Database, conversation_id: int) -> Conversation | None:
    """Return the conversation, or None."""
    row = sql.one(db, "SELECT * FROM conversations WHERE id = ?", (conversation_id,))
    return None if row is None else _conversation(row)


def add_message(
    db: sqlite_utils.Database,
    *,
    conversation_id: int,
    discord_id: int | None,
    parent_id: int | None,
    author_id: int | None,
    role: Role,
    content: str,
    permission_reference: str = "",
    visible: bool | None = None,
    attached_text: str = "",
    public: bool | None = None,
    channel_id: int | None = None,
    pictures: int = 0,
) -> int:
    """Add a message and return its id; one that is already there (by `discord_id`) is left as it is.

    `public` and `channel_id` say where it was written, which may be elsewhere than its conversation began,
    and whether everybody could read it there then. A reply is as public as the message that it answers.

    Raises UnknownRowError for an unknown conversation.
    """
    if discord_id is not None:
        known: int | None = sql.value(db, "SELECT id FROM messages WHERE discord_id = ?", (discord_id,))
        if known is not None:
            return known
    conversation = get(db, conversation_id)
    if conversation is None:
        raise UnknownRowError("There is no conversation {conversation}.", conversation=conversation_id)
    author = None
    if author_id is not None:
        author = members.get(db, author_id) or members.ensure(db, author_id, "", conversation.source)
    if conversation.group_key is None and role == "user":
        _settle_split(db, conversation_id, content or attached_text)
    values = {
        "discord_id": discord_id,
        "conversation_id": conversation_id,
        "parent_id": parent_id,
        "author_id": author_id,
        "role": role,
        "content": content,
        "source": author.source if author else conversation.source,
        "consent": author.consent if author else "unset",
        "permission_reference": permission_reference or None,
        "created_ms": now_ms(),
        "visible": None if visible is None else int(visible),
        "attached_text": attached_text,
        "pictures": pictures,
        **_facts(db, conversation, parent_id if role == "assistant" else None, author_id, public, channel_id),
    }
    return sql.insert(db, "messages", values)


def _facts(
    db: sqlite_utils.Database,
    conversation: Conversation,
    answered_id: int | None,
    author_id: int | None,
    public: bool | None,
    channel_id: int | None,
) -> dict[str, int | None]:
    """Return what a message keeps of the moment at which it was written."""
    answered = get_message(db, answered_id) if answered_id is not None else None
    if answered is not None:
        public = answered.public if public is None else public
        channel_id = answered.channel_id if channel_id is None else channel_id
    if public is None:
        public = conversation.public
    blocked = author_id is not None and blocks.is_blocked(db, conversation.guild_id, author_id)
    return {
        "public": int(public and conversation.guild_id is not None),
        "channel_id": conversation.channel_id if channel_id is None else channel_id,
        "blocked": int(blocked),
    }


def get_message(db: sqlite_utils.Database, message_id: int) -> Message | None:
    """Return the message, or None."""
    row = sql.one(db, "SELECT * FROM messages WHERE id = ?", (message_id,))
    return None if row is None else _message(row)


def by_discord_id(db: sqlite_utils.Database, discord_id: int) -> Message | None:
    """Return the message that Discord knows by this id; any part of a split reply leads to the whole one."""
    row = sql.one(
        db,
        """SELECT * FROM messages WHERE discord_id = :id
           UNION ALL
           SELECT messages.* FROM reply_parts JOIN replies ON replies.id = reply_parts.reply_id
           JOIN messages ON messages.id = replies.message_id WHERE reply_parts.discord_id = :id
           LIMIT 1""",
        {"id": discord_id},
    )
    return None if row is None else _message(row)


def chain(db: sqlite_utils.Database, message_id: int, limit: int = 64) -> list[Message]:
    """Return the message and up to `limit - 1` of its ancestors, the oldest first.

    Where a reply has several versions, the one that is shown stands in the chain.
    """
    rows = sql.many(
        db,
        """WITH RECURSIVE up (id, depth) AS (
               SELECT :start, 0
               UNION ALL
               SELECT messages.parent_id, depth + 1 FROM up JOIN messages ON messages.id = up.id
               WHERE messages.parent_id IS NOT NULL AND depth + 1 < :limit
           )
           SELECT messages.* FROM up JOIN messages ON messages.id = coalesce(
               (SELECT shown.message_id FROM replies AS kept
                JOIN reply_versions AS mine ON mine.reply_id = kept.id
                JOIN reply_versions AS theirs ON theirs.first_id = mine.first_id AND theirs.shown = 1
                JOIN replies AS shown ON shown.id = theirs.reply_id
                WHERE kept.message_id = up.id),
               up.id)
           ORDER BY depth DESC""",
        {"start": message_id, "limit": limit},
    )
    return [_message(row) for row in rows]


def edit_message(
    db: sqlite_utils.Database, discord_id: int, content: str, *, without_files: bool = False
) -> bool:
    """Replace the text of a message; return whether it changed. A deleted message stays deleted.

    `without_files` also forgets the text of files, which their author took out of the message.
    """
    return bool(
        sql.change(
            db,
            """UPDATE messages SET content = :content, edited_ms = :now,
                      attached_text = iif(:without_files, '', attached_text)
               WHERE discord_id = :id AND deleted_ms IS NULL
                     AND (content <> :content OR (:without_files AND attached_text <> ''))""",
            {"content": content, "now": now_ms(), "id": discord_id, "without_files": int(without_files)},
        )
    )


def delete_message(db: sqlite_utils.Database, discord_id: int) -> bool:
    """Forget a message's text, and the prompts that quote it; return whether there was one.

    A reply goes with all its versions, and with a message go the copies that imports hold of it. The rows
    stay, so that a thread keeps its shape and the reply's numbers keep their meaning.
    """
    message = by_discord_id(db, discord_id)
    found = [] if message is None or message.deleted_ms is not None else [message.id]
    found += [row["id"] for row in sql.many(db, _COPIES, (discord_id,))]
    _forget(db, found)
    return bool(found)


_COPIES = """
SELECT messages.id FROM imported_copies JOIN messages ON messages.id = imported_copies.message_id
WHERE imported_copies.discord_id = ? AND messages.deleted_ms IS NULL"""


def _forget(db: sqlite_utils.Database, message_ids: Sequence[int]) -> None:
    """Forget messages and the versions of replies that they are; of a channel these can be many thousands."""
    if message_ids:
        whole = {"ids": json.dumps(_versions(db, message_ids)), "now": now_ms()}
        for statement in _FORGET.split("\n\n"):
            sql.change(db, statement, whole)


# The messages, and the copies of them in prompts and in pairs that members vote on.
_FORGET = """
UPDATE messages SET content = '', attached_text = '', deleted_ms = coalesce(deleted_ms, :now)
WHERE id IN (SELECT value FROM json_each(:ids))

UPDATE replies SET prompt_json = '[]' WHERE id IN (
    SELECT reply_id FROM reply_context WHERE message_id IN (SELECT value FROM json_each(:ids)))

UPDATE duels SET prompt_json = '[]', first_text = '', second_text = '', closed_ms = coalesce(closed_ms, :now)
WHERE reply_id IN (
    SELECT reply_id FROM reply_context WHERE message_id IN (SELECT value FROM json_each(:ids)))"""


def delete_channel(db: sqlite_utils.Database, channel_id: int) -> int:
    """Forget every message of a channel that is gone, imported ones too; return how many there were."""
    rows = sql.many(
        db,
        """SELECT messages.id FROM conversations
           JOIN messages ON messages.conversation_id = conversations.id
           WHERE coalesce(messages.channel_id, conversations.channel_id) = ?
                 AND messages.deleted_ms IS NULL""",
        (channel_id,),
    )
    _forget(db, [row["id"] for row in rows])
    return len(rows)


def visible_since(db: sqlite_utils.Database, since_ms: int, limit: int) -> list[tuple[int, int]]:
    """Return (Discord's message id, channel id) of what was said in channels since then, the newest first.

    Slash commands' prompts have no message of their own and are left out; so is what was deleted already.
    """
    rows = sql.many(
        db,
        """SELECT messages.discord_id, coalesce(messages.channel_id, conversations.channel_id) AS channel_id,
                  messages.created_ms AS at_ms FROM messages
           JOIN conversations ON conversations.id = messages.conversation_id
           WHERE messages.created_ms >= :since AND messages.visible = 1
                 AND messages.deleted_ms IS NULL AND messages.discord_id IS NOT NULL
           UNION ALL
           SELECT reply_parts.discord_id, reply_parts.channel_id, replies.created_ms FROM replies
           JOIN messages ON messages.id = replies.message_id AND messages.deleted_ms IS NULL
           JOIN reply_parts ON reply_parts.reply_id = replies.id
           WHERE replies.created_ms >= :since
           ORDER BY at_ms DESC LIMIT :limit""",
        {"since": since_ms, "limit": limit},
    )
    return [(row["discord_id"], row["channel_id"]) for row in rows]


def guild_of(db: sqlite_utils.Database, channel_id: int) -> int | None:
    """Return the server of a channel or thread in which something was said; None of direct messages too."""
    guild_id: int | None = sql.value(
        db,
        """SELECT guild_id FROM conversations
           WHERE channel_id = ?1 OR parent_channel_id = ?1 ORDER BY id DESC LIMIT 1""",
        (channel_id,),
    )
    return guild_id


def latest_channels(db: sqlite_utils.Database, limit: int, *, direct: bool = False) -> list[int]:
    """Return the channels of servers in which something was said, the one that was spoken in last first;

    with `direct`, those of direct messages.
    """
    rows = sql.many(
        db,
        """SELECT channel_id FROM (
               SELECT channel_id, id FROM conversations WHERE (guild_id IS NULL) = ?
               ORDER BY id DESC LIMIT 5000)
           GROUP BY channel_id ORDER BY max(id) DESC LIMIT ?""",
        (int(direct), limit),
    )
    return [row["channel_id"] for row in rows]


def _versions(db: sqlite_utils.Database, message_ids: Sequence[int]) -> list[int]:
    """Return messages and, of those that are versions of a reply, the other versions."""
    rows = sql.many(
        db,
        """SELECT others.message_id FROM json_each(?) AS wanted
           CROSS JOIN replies ON replies.message_id = wanted.value
           JOIN reply_versions AS mine ON mine.reply_id = replies.id
           JOIN reply_versions AS all_of_it ON all_of_it.first_id = mine.first_id
           JOIN replies AS others ON others.id = all_of_it.reply_id""",
        (json.dumps(message_ids),),
    )
    return sorted({*message_ids, *(row["message_id"] for row in rows)})


def _settle_split(db: sqlite_utils.Database, conversation_id: int, prompt: str) -> None:
    group_key = near_duplicate_key(prompt)
    sql.change(
        db,
        "UPDATE conversations SET group_key = ?, split = ? WHERE id = ?",
        (group_key, assign_split(group_key), conversation_id),
    )


def _message(row: dict[str, Any]) -> Message:
    flags = {key: None if row[key] is None else bool(row[key]) for key in ("visible", "public", "blocked")}
    return Message(**{**row, **flags})


def _conversation(row: dict[str, Any]) -> Conversation:
    return Conversation(**{**row, "public": bool(row["public"])})
