"""A few rated replies in a real database, for tests of what happens around a training run."""

from __future__ import annotations

from pathlib import Path

import sqlite_utils

from bot.serving.model import adapter_files
from storage.chat import conversations, members, replies
from storage.db.database import Database
from storage.feedback import ratings
from storage.learning import adapters
from tests.databases import copied

GUILD = 100000000000000001
SCOPE = f"guild:{GUILD}"
BASE_HASH = "b" * 64
TEMPLATE_HASH = "c" * 64


def open_database(home: Path, empty_database: Path | None = None) -> Database:
    """The database of a playground deployment under `home`; a new one is a copy of the empty one."""
    path = home / "playground" / "strop.db"
    return copied(empty_database, path) if empty_database else Database.open(path)


def rated_replies(db: sqlite_utils.Database, count: int, *, first: int = 0, scope: str = SCOPE) -> list[str]:
    """Insert so many conversations with one liked reply each; return the replies' ids."""
    members.ensure(db, 7, "Ada", "playground")
    ids = []
    for number in range(first, first + count):
        conversation = conversations.open_conversation(
            db,
            key=f"{scope}/{number}",
            guild_id=GUILD,
            channel_id=5,
            scope=scope,
            source="playground",
            public=True,
        )
        question = conversations.add_message(
            db,
            conversation_id=conversation.id,
            discord_id=1000 + number,
            parent_id=None,
            author_id=7,
            role="user",
            content=f"What about number {number}?",
        )
        reply_id = f"reply-{scope}-{number}"
        replies.start(
            db,
            reply_id=reply_id,
            prompt_message_id=question,
            scope=scope,
            adapter_id=None,
            base_hash=BASE_HASH,
            prompt=[{"role": "user", "content": f"What about number {number}?"}],
            seed=1,
            sampling={},
        )
        replies.finish(
            db,
            reply_id,
            content=f"Number {number} is fine.",
            status="complete",
            finish_reason="stop",
            prompt_tokens=9,
            completion_tokens=5,
            queue_ms=1,
            first_token_ms=2,
            duration_ms=3,
        )
        ratings.rate(db, reply_id=reply_id, user_id=7, kind="thumb", means="reaction", value=1, emoji="👍")
        ids.append(reply_id)
    return ids


def adapter_folder(adapters_dir: Path, content: bytes) -> str:
    """Write a real adapter folder (its weights are just bytes) and return its id."""
    partial = adapters_dir.parent / "runs" / f"making-{len(content)}-{content[:4].hex()}"
    partial.mkdir(parents=True)
    (partial / adapter_files.CONFIG).write_text('{"r": 16}')
    (partial / adapter_files.WEIGHTS).write_bytes(content)
    adapter_id = adapter_files.write_manifest(
        partial, base_hash=BASE_HASH, chat_template_hash=TEMPLATE_HASH, extra={}
    )
    adapters_dir.mkdir(parents=True, exist_ok=True)
    partial.rename(adapters_dir / adapter_id)
    return adapter_id


def champion(db: sqlite_utils.Database, adapter_id: str, *, scope: str = SCOPE) -> None:
    """Register the adapter and promote it."""
    adapters.insert_candidate(
        db, adapter_id=adapter_id, scope=scope, base_hash=BASE_HASH, path=f"adapters/{adapter_id}"
    )
    adapters.promote(
        db, scope=scope, base_hash=BASE_HASH, adapter_id=adapter_id, actor="test", reason="better"
    )
