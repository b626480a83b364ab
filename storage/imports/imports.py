"""Imports in the database: stored in batches, listed, and taken back whole.

An import's conversations are asked in the name of a member of its own, which is nobody (a negative id): so
everything that finds a member's words, and what was trained on them, finds an import's. Its anonymous raters
have the ids below. Real people of an export from Discord keep their ids, and with them their consent.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import sqlite_utils

from storage.admin import audit
from storage.chat import conversations, members, replies
from storage.db import sql
from storage.db.clock import now_ms
from storage.errors import ImportFileError
from storage.feedback import ratings, tastings
from storage.feedback.tastings import NewPrompt
from storage.imports.checks import fingerprint
from storage.imports.examples import Author, Example, Prompt, Turn
from storage.imports.prompts import permitted
from storage.privacy import erasure

State = Literal["running", "done", "removed"]
SOURCE = "import"
DISCORD = "discord"
# What stands as the adapter of an answer that no model of ours wrote.
WRITER = "import"
IDS_PER_IMPORT = 1_000
MAX_RATERS = 20


@dataclass(frozen=True, slots=True)
class Import:
    """One file that was brought in. `stored` examples are new, `known` were there already."""

    id: int
    name: str
    sha256: str
    format: str
    rights: str
    licence: str
    scope: str
    state: State
    stored: int
    known: int
    left_out: dict[str, int]
    actor: str
    created_ms: int
    ended_ms: int | None

    @property
    def member_id(self) -> int:
        """The member in whose name its prompts are asked."""
        return member_of(self.id)


def member_of(import_id: int) -> int:
    """Return the member in whose name the prompts of an import are asked."""
    return -import_id * IDS_PER_IMPORT


def begin(
    db: sqlite_utils.Database,
    *,
    name: str,
    sha256: str,
    format_name: str,
    rights: str,
    licence: str,
    scope: str,
    actor: str,
) -> Import:
    """Record that a file is being brought in; one that was interrupted goes on as the same import.

    Raises ImportFileError where the same file is in this scope already.
    """
    row = sql.one(
        db, "SELECT * FROM imports WHERE scope = ? AND sha256 = ? AND state <> 'removed'", (scope, sha256)
    )
    if row is not None and row["state"] == "done":
        raise ImportFileError(
            f"This file is import {row['id']} already ({row['name']}): nothing was changed."
        )
    if row is not None:
        # What is stored of it is met again; what others hold is counted anew.
        sql.change(db, "UPDATE imports SET known = 0 WHERE id = ?", (row["id"],))
        return expect(db, row["id"])
    values = {
        "name": name,
        "sha256": sha256,
        "format": format_name,
        "rights": rights,
        "licence": licence,
        "scope": scope,
        "state": "running",
        "actor": actor,
        "created_ms": now_ms(),
    }
    import_id = sql.insert(db, "imports", values)
    audit.record(db, actor, "import.begin", {"import_id": import_id, "format": format_name, "scope": scope})
    return expect(db, import_id)


def store(
    db: sqlite_utils.Database, found: Import, examples: Iterable[Example], *, permission_reference: str
) -> int:
    """Store some examples and their ratings in the caller's transaction; return how many were new."""
    members.ensure(db, found.member_id, f"Import {found.id}", SOURCE)
    new = known = 0
    for example in examples:
        reply_id = _unused_id(db, found, example)
        if isinstance(reply_id, _Known):
            known += reply_id.import_id != found.id
            continue
        _store_reply(db, found, reply_id, example, permission_reference)
        _store_ratings(db, found, reply_id, example, permission_reference)
        new += 1
    sql.change(
        db, "UPDATE imports SET stored = stored + ?, known = known + ? WHERE id = ?", (new, known, found.id)
    )
    return new


def store_prompts(
    db: sqlite_utils.Database, found: Import, prompts: Iterable[Prompt], *, permission_reference: str
) -> dict[str, int]:
    """Put the prompts of a file without answers into the bank, from which tastings ask them.

    Returns how many could not be taken, by reason (checks.REASONS). Raises ImportFileError for messages from
    Discord without its recorded permission, or where none of their authors has opted in.
    """
    allowed, unwilling = permitted(db, prompts, permission_reference)
    if unwilling and not allowed:
        raise ImportFileError(
            "Nobody whose messages these are has opted in with /privacy: nothing was imported."
        )
    members.ensure(db, found.member_id, f"Import {found.id}", SOURCE)
    new = [NewPrompt(each.text, _person(db, each.author) if each.author else None) for each in allowed]
    added = tastings.add(db, new, found.actor, import_id=found.id)
    sql.change(
        db,
        "UPDATE imports SET stored = stored + ?, known = known + ? WHERE id = ?",
        (added.new, added.known, found.id),
    )
    reasons = {"no_consent": unwilling, "prompt_too_long": added.too_long, "bank_full": added.over}
    return {reason: count for reason, count in reasons.items() if count}


def abandon(db: sqlite_utils.Database, import_id: int) -> None:
    """Forget an import that ended before anything of it was stored; another stays to be gone on with."""
    sql.change(db, "DELETE FROM imports WHERE id = ? AND stored = 0 AND state = 'running'", (import_id,))


def finish(db: sqlite_utils.Database, import_id: int, left_out: Mapping[str, int]) -> Import:
    """Record that all of a file is in."""
    sql.change(
        db,
        "UPDATE imports SET state = 'done', left_out_json = ?, ended_ms = ? WHERE id = ?",
        (json.dumps(dict(left_out)), now_ms(), import_id),
    )
    return expect(db, import_id)


def listing(db: sqlite_utils.Database) -> list[Import]:
    """Return every import, the newest first."""
    return [_import(row) for row in sql.many(db, "SELECT * FROM imports ORDER BY id DESC")]


def expect(db: sqlite_utils.Database, import_id: int) -> Import:
    """Return an import. Raises ImportFileError where there is none."""
    row = sql.one(db, "SELECT * FROM imports WHERE id = ?", (import_id,))
    if row is None:
        raise ImportFileError(f"There is no import {import_id}: `strop imports list` lists them.")
    return _import(row)


def remove(db: sqlite_utils.Database, import_id: int, actor: str) -> erasure.Erasure:
    """Take an import back: its words, its ratings, and the adapters that learned from it.

    The files of the returned erasure are still to be scrubbed. Raises ImportFileError where there is none.
    """
    found = expect(db, import_id)
    tastings.remove_imported(db, import_id)
    erased = erasure.erase_member(db, found.member_id, actor)
    # Words of real people: they are authors of their own, and stand in its conversations and under its name.
    sql.change(
        db,
        """UPDATE messages SET content = '', deleted_ms = coalesce(deleted_ms, :now)
           WHERE conversation_id IN (SELECT id FROM conversations WHERE key >= :first AND key < :end)
              OR id IN (SELECT prompt_message_id FROM replies WHERE asker_id = :member)""",
        {
            "now": now_ms(),
            "first": f"import:{import_id}:",
            "end": f"import:{import_id};",
            "member": found.member_id,
        },
    )
    sql.change(db, "UPDATE imports SET state = 'removed', ended_ms = ? WHERE id = ?", (now_ms(), import_id))
    audit.record(db, actor, "import.remove", {"import_id": import_id, "adapters": erased.affected_adapters})
    return erased


@dataclass(frozen=True, slots=True)
class _Known:
    import_id: int


def _unused_id(db: sqlite_utils.Database, found: Import, example: Example) -> str | _Known:
    """Return the id of a new reply, or which import holds the example (one that was taken back doesn't)."""
    digest = hashlib.sha256(f"{found.scope}:{fingerprint(example)}".encode()).hexdigest()[:20]
    generation = 0
    while True:
        reply_id = f"import-{digest}-{generation}"
        row = sql.one(
            db,
            """SELECT replies.prompt_json, conversations.key FROM replies
               JOIN conversations ON conversations.id = replies.conversation_id WHERE replies.id = ?""",
            (reply_id,),
        )
        if row is None:
            return reply_id
        if row["prompt_json"] != "[]":
            return _Known(int(row["key"].split(":")[1]))
        generation += 1


def _store_reply(
    db: sqlite_utils.Database, found: Import, reply_id: str, example: Example, permission_reference: str
) -> None:
    from_discord = any(turn.author for turn in example.prompt)
    conversation = conversations.open_conversation(
        db,
        key=f"import:{found.id}:{reply_id}",
        guild_id=_guild_of(found.scope),
        channel_id=0,
        scope=found.scope,
        source=DISCORD if from_discord else SOURCE,
        public=True,
    )
    context: list[int] = []
    parent: int | None = None
    for turn in example.prompt:
        if turn.role != "system":
            parent = _store_turn(db, found, conversation.id, turn, parent, permission_reference)
            context.append(parent)
    if parent is None:
        raise ImportFileError(f"{example.place} has no question.")
    if example.answer.author is not None:
        # Somebody's words are the answer: their consent counts as that of everybody in the context.
        said = Turn("user", example.answer.content, example.answer.author)
        context.append(_store_turn(db, found, conversation.id, said, parent, permission_reference))
    replies.start(
        db,
        reply_id=reply_id,
        prompt_message_id=parent,
        scope=found.scope,
        adapter_id=WRITER,
        base_hash="",
        prompt=[{"role": turn.role, "content": turn.content} for turn in example.prompt],
        seed=None,
        sampling={},
        asker_id=found.member_id,
        context=context,
        permission_reference=permission_reference,
    )
    unknown: dict[str, Any] = dict.fromkeys(
        ("finish_reason", "prompt_tokens", "completion_tokens", "queue_ms", "first_token_ms", "duration_ms")
    )
    replies.finish(db, reply_id, content=example.answer.content, status="complete", **unknown)


def _store_turn(
    db: sqlite_utils.Database,
    found: Import,
    conversation_id: int,
    turn: Turn,
    parent_id: int | None,
    permission_reference: str,
) -> int:
    author = found.member_id if turn.author is None else _person(db, turn.author)
    return conversations.add_message(
        db,
        conversation_id=conversation_id,
        discord_id=None,
        parent_id=parent_id,
        author_id=author if turn.role == "user" or turn.author is not None else None,
        role="assistant" if turn.role == "assistant" else "user",
        content=turn.content,
        permission_reference=permission_reference,
    )


def _store_ratings(
    db: sqlite_utils.Database, found: Import, reply_id: str, example: Example, permission_reference: str
) -> None:
    named = [(_person(db, author), value) for author, value in example.raters]
    counts = {value: sum(1 for _, each in named if each == value) for value in (1, -1)}
    liked = max(example.liked - counts[1], 0) if example.rated else 1
    values = [1] * liked + [-1] * max(example.disliked - counts[-1], 0)
    anonymous = [(_rater(db, found, number), value) for number, value in enumerate(values[:MAX_RATERS], 1)]
    for user_id, value in [*named, *anonymous]:
        ratings.rate(
            db,
            reply_id=reply_id,
            user_id=user_id,
            kind="thumb",
            means="page",
            value=value,
            permission_reference=permission_reference,
        )
    if example.better is not None:
        ratings.rate(
            db,
            reply_id=reply_id,
            user_id=_rater(db, found, 1),
            kind="correction",
            means="page",
            value=1,
            text=example.better,
            permission_reference=permission_reference,
        )


def _person(db: sqlite_utils.Database, author: Author) -> int:
    return members.ensure(db, author.user_id, author.name, DISCORD).user_id


def _rater(db: sqlite_utils.Database, found: Import, number: int) -> int:
    name = f"Import {found.id}, rater {number}"
    return members.ensure(db, found.member_id - number, name, SOURCE).user_id


def _guild_of(scope: str) -> int:
    """Return the guild of a scope; 0, which is no guild's id, for a whole deployment."""
    kind, _, guild = scope.partition(":")
    return int(guild) if kind == "guild" else 0


def _import(row: Mapping[str, Any]) -> Import:
    values = dict(row)
    left_out = json.loads(values.pop("left_out_json"))
    return Import(**values, left_out=left_out)
