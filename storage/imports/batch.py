"""The rows of some examples, put together in memory and inserted a table at a time.

One example is about ten rows in six tables. Stored through the functions that a live reply takes one step
after the other, it is thirty statements; here it is its rows and nothing else, so that the write lock is held
for a fraction of the time. What a row holds is the same: `tests/storage/imports` compares the two.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import sqlite_utils

from storage.admin import blocks
from storage.chat import members
from storage.chat.members import Member
from storage.chat.replies import IMPORTED
from storage.chat.splits import assign_split, near_duplicate_key
from storage.db import sql
from storage.db.clock import now_ms
from storage.errors import ImportFileError
from storage.imports.checks import fingerprint
from storage.imports.examples import Author, Channel, Example, Turn

SOURCE = "import"
DISCORD = "discord"
# What stands as the adapter of an answer that no model of ours wrote.
WRITER = "import"
MAX_RATERS = 20
_NOWHERE = Channel(None, 0)
# In the order in which they refer to each other.
_TABLES = ("conversations", "messages", "imported_copies", "replies", "reply_context", "ratings")


class Batch:
    """Examples of one import on their way into the database, inside the caller's write transaction.

    Their prompts are asked in the name of `member_id`, and anonymous ratings given in those of the ids below
    it. `known` counts those of the examples that another import holds.
    """

    def __init__(
        self,
        db: sqlite_utils.Database,
        import_id: int,
        member_id: int,
        scope: str,
        permission_reference: str,
    ) -> None:
        self._db = db
        self._import_id = import_id
        self._scope = scope
        self._guild_id = _guild_of(scope)
        self._permission = permission_reference or None
        self._now_ms = now_ms()
        self._people: dict[int, Member] = {}
        self._blocked: dict[tuple[int, int], bool] = {}
        self._rows: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        self._reply_ids: set[str] = set()
        # As SQLite itself numbers rows; nobody else writes before this transaction ends.
        self._conversation_id, self._message_id = (
            int(sql.value(db, f"SELECT coalesce(max(id), 0) FROM {table}"))
            for table in ("conversations", "messages")
        )
        self._asker = members.ensure(db, member_id, f"Import {import_id}", SOURCE)
        self.known = 0

    def add(self, example: Example) -> None:
        """Take in an example that no import of this scope holds yet; count one that does."""
        reply_id = self._unused_id(example)
        if reply_id is not None:
            self._reply_ids.add(reply_id)
            self._add_reply(reply_id, example)
            self._add_ratings(reply_id, example)

    def insert(self) -> int:
        """Insert all that was taken in; return how many examples that are."""
        for table in _TABLES:
            sql.insert_many(self._db, table, self._rows[table])
        return len(self._reply_ids)

    def _unused_id(self, example: Example) -> str | None:
        """Return the id of a new reply; None where an import holds the example that wasn't taken back."""
        digest = hashlib.sha256(f"{self._scope}:{fingerprint(example)}".encode()).hexdigest()[:20]
        generation = 0
        while True:
            reply_id = f"{IMPORTED}{digest}-{generation}"
            if reply_id in self._reply_ids:
                return None
            row = sql.one(
                self._db,
                """SELECT replies.prompt_json, conversations.key FROM replies
                   JOIN conversations ON conversations.id = replies.conversation_id WHERE replies.id = ?""",
                (reply_id,),
            )
            if row is None:
                return reply_id
            if row["prompt_json"] != "[]":
                self.known += int(row["key"].split(":")[1]) != self._import_id
                return None
            generation += 1

    def _add_reply(self, reply_id: str, example: Example) -> None:
        source = DISCORD if any(turn.author for turn in example.prompt) else SOURCE
        where = self._add_conversation(reply_id, example, source)
        parent: int | None = None
        context: dict[int, int | None] = {}
        asked: Member | None = None
        for turn in example.prompt:
            if turn.role != "system":
                asked = self._author(turn)
                parent = self._add_message(where, parent, turn, turn.role, asked, source)
                context[parent] = asked.user_id if asked else None
        if parent is None:
            raise ImportFileError(f"{example.place} has no question.")
        if example.answer.author is not None:
            # Somebody's words are the answer: their consent counts as that of everybody in the context.
            said = self._person(example.answer.author)
            message_id = self._add_message(where, parent, example.answer, "user", said, source)
            context[message_id] = said.user_id
        answer = self._add_message(where, parent, example.answer, "assistant", None, source)
        prompt = [{"role": turn.role, "content": turn.content} for turn in example.prompt]
        self._rows["replies"].append(
            {
                "id": reply_id,
                "message_id": answer,
                "prompt_message_id": parent,
                "conversation_id": self._conversation_id,
                "asker_id": self._asker.user_id,
                "scope": self._scope,
                "adapter_id": WRITER,
                "base_hash": "",
                "prompt_json": json.dumps(prompt),
                "sampling_json": "{}",
                "status": "complete",
                "source": asked.source if asked else source,
                "created_ms": self._now_ms,
            }
        )
        self._rows["reply_context"] += [
            {"reply_id": reply_id, "message_id": message_id, "user_id": user_id}
            for message_id, user_id in context.items()
        ]

    def _add_conversation(self, reply_id: str, example: Example, source: str) -> Channel:
        """Open the example's own conversation; return where it was held."""
        place = example.channel or _NOWHERE
        guild_id = self._guild_id if place.guild_id is None else place.guild_id
        first = next((turn for turn in example.prompt if turn.role == "user"), None)
        group_key = near_duplicate_key(first.content) if first else None
        key = f"import:{self._import_id}:{reply_id}"
        self._conversation_id += 1
        self._rows["conversations"].append(
            {
                "id": self._conversation_id,
                "key": key,
                "guild_id": guild_id,
                "channel_id": place.channel_id,
                "scope": self._scope,
                "source": source,
                "public": 1,
                "split": assign_split(group_key or key),
                "group_key": group_key,
                "created_ms": self._now_ms,
                "parent_channel_id": place.parent_channel_id,
            }
        )
        return Channel(guild_id, place.channel_id, place.parent_channel_id)

    def _add_message(
        self,
        where: Channel,
        parent_id: int | None,
        turn: Turn,
        role: str,
        author: Member | None,
        source: str,
    ) -> int:
        self._message_id += 1
        self._rows["messages"].append(
            {
                "id": self._message_id,
                "conversation_id": self._conversation_id,
                "parent_id": parent_id,
                "author_id": author.user_id if author else None,
                "role": role,
                "content": turn.content,
                "source": author.source if author else source,
                "consent": author.consent if author else "unset",
                "permission_reference": self._permission,
                "created_ms": self._now_ms,
                "public": 1,
                "channel_id": where.channel_id,
                "blocked": int(author is not None and self._is_blocked(where.guild_id, author.user_id)),
            }
        )
        if turn.discord_id is not None:
            copy = {"discord_id": turn.discord_id, "message_id": self._message_id}
            self._rows["imported_copies"].append(copy)
        return self._message_id

    def _add_ratings(self, reply_id: str, example: Example) -> None:
        named = [(self._person(author), value) for author, value in example.raters]
        counts = {value: sum(1 for _, each in named if each == value) for value in (1, -1)}
        liked = max(example.liked - counts[1], 0) if example.rated else 1
        values = [1] * liked + [-1] * max(example.disliked - counts[-1], 0)
        anonymous = [(self._rater(number), value) for number, value in enumerate(values[:MAX_RATERS], 1)]
        # The last word of a member counts.
        thumbs = {person.user_id: (person, value) for person, value in [*named, *anonymous]}
        guild_id = self._rows["conversations"][-1]["guild_id"]
        for person, value in thumbs.values():
            self._add_rating(reply_id, guild_id, person, "thumb", value, None)
        if example.better is not None:
            self._add_rating(reply_id, guild_id, self._rater(1), "correction", 1, example.better)

    def _add_rating(
        self, reply_id: str, guild_id: int, person: Member, kind: str, value: int, text: str | None
    ) -> None:
        if self._is_blocked(guild_id, person.user_id):
            return
        self._rows["ratings"].append(
            {
                "reply_id": reply_id,
                "user_id": person.user_id,
                "scope": self._scope,
                "kind": kind,
                "means": "page",
                "value": value,
                "text": text,
                "source": person.source,
                "consent": person.consent,
                "permission_reference": self._permission,
                "created_ms": self._now_ms,
                "updated_ms": self._now_ms,
            }
        )

    def _author(self, turn: Turn) -> Member | None:
        if turn.author is not None:
            return self._person(turn.author)
        return self._asker if turn.role == "user" else None

    def _person(self, author: Author) -> Member:
        return self._member(author.user_id, author.name, DISCORD)

    def _rater(self, number: int) -> Member:
        name = f"Import {self._import_id}, rater {number}"
        return self._member(self._asker.user_id - number, name, SOURCE)

    def _member(self, user_id: int, name: str, source: str) -> Member:
        known = self._people.get(user_id)
        if known is None or name not in ("", known.display_name):
            known = self._people[user_id] = members.ensure(self._db, user_id, name, source)
        return known

    def _is_blocked(self, guild_id: int | None, user_id: int) -> bool:
        key = (guild_id or blocks.EVERYWHERE, user_id)
        if key not in self._blocked:
            self._blocked[key] = blocks.is_blocked(self._db, guild_id, user_id)
        return self._blocked[key]


def store(
    db: sqlite_utils.Database,
    examples: Sequence[Example],
    *,
    import_id: int,
    member_id: int,
    scope: str,
    permission_reference: str,
) -> tuple[int, int]:
    """Store examples in the caller's transaction; return how many were new, and how many others hold."""
    batch = Batch(db, import_id, member_id, scope, permission_reference)
    for example in examples:
        batch.add(example)
    return batch.insert(), batch.known


def _guild_of(scope: str) -> int:
    """Return the guild of a scope; 0, which is no guild's id, for a whole deployment."""
    kind, _, guild = scope.partition(":")
    return int(guild) if kind == "guild" else 0
