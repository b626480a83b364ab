"""A small community in a real database: people who write, a bot that answers, ratings."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import sqlite_utils

from storage.chat import conversations, members, replies
from storage.db.database import Database
from storage.feedback import ratings
from tests.databases import copied

GUILD = 5
SCOPE = f"guild:{GUILD}"
BASE = "base-hash"


@dataclass
class Community:
    """Writes rows the way the bot does. Its functions take the `db` of a write."""

    source: str = "playground"
    public: bool = True
    guild_id: int | None = GUILD
    ids: Iterator[int] = field(default_factory=lambda: count(1_000))

    def asks(
        self,
        db: sqlite_utils.Database,
        user_id: int,
        text: str,
        *,
        answer: str = "An answer.",
        **changes: Any,
    ) -> str:
        """Let a member ask and the bot answer; return the reply's id."""
        number = next(self.ids)
        members.ensure(db, user_id, f"member {user_id}", self.source)
        conversation = conversations.open_conversation(
            db,
            key=f"discord:{number}",
            guild_id=self.guild_id,
            channel_id=6,
            scope=SCOPE,
            source=self.source,
            public=self.public,
        )
        message_id = conversations.add_message(
            db,
            conversation_id=conversation.id,
            discord_id=number,
            parent_id=None,
            author_id=user_id,
            role="user",
            content=text,
        )
        return self.answers(db, message_id, text, answer=answer, **changes)

    def follows_up(self, db: sqlite_utils.Database, user_id: int, reply_id: str, text: str) -> str:
        """Let a member write below a reply and the bot answer with the whole chain as its prompt."""
        members.ensure(db, user_id, f"member {user_id}", self.source)
        parent = replies.get(db, reply_id)
        assert parent is not None
        message_id = conversations.add_message(
            db,
            conversation_id=parent.conversation_id,
            discord_id=next(self.ids),
            parent_id=parent.message_id,
            author_id=user_id,
            role="user",
            content=text,
        )
        return self.answers(db, message_id, text)

    def answers(
        self,
        db: sqlite_utils.Database,
        message_id: int,
        text: str,
        *,
        answer: str = "An answer.",
        status: replies.Status = "complete",
    ) -> str:
        number = next(self.ids)
        prompt = [
            {"role": message.role, "content": message.content}
            for message in conversations.chain(db, message_id)
        ]
        reply_id = f"reply-{number}"
        replies.start(
            db,
            reply_id=reply_id,
            prompt_message_id=message_id,
            scope=SCOPE,
            adapter_id=None,
            base_hash=BASE,
            prompt=prompt,
            seed=7,
            sampling={"temperature": 0.7},
        )
        replies.add_part(db, reply_id, number, 6, 0)
        finish(db, reply_id, answer, status)
        return reply_id


def finish(
    db: sqlite_utils.Database, reply_id: str, content: str, status: replies.Status = "complete"
) -> replies.Reply:
    return replies.finish(
        db,
        reply_id,
        content=content,
        status=status,
        finish_reason="stop",
        prompt_tokens=10,
        completion_tokens=5,
        queue_ms=1,
        first_token_ms=20,
        duration_ms=200,
    )


def thumb(db: sqlite_utils.Database, reply_id: str, user_id: int, value: int = 1, emoji: str = "👍") -> bool:
    return ratings.rate(
        db, reply_id=reply_id, user_id=user_id, kind="thumb", means="reaction", value=value, emoji=emoji
    )


@pytest.fixture
def database(tmp_path: Path, empty_database: Path) -> Iterator[Database]:
    with copied(empty_database, tmp_path / "home" / "strop.db") as opened:
        yield opened


@pytest.fixture
def community() -> Community:
    return Community()
