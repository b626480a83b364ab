"""Versions of one reply, and pairs of candidates: what is kept, what is shown, what counts."""

from __future__ import annotations

import pytest

from storage import comparisons, conversations, dataset, privacy, ratings, replies, versions
from storage.database import Database
from storage.errors import UnknownRowError
from tests.storage.conftest import Community

ANN, BOB = 1, 2


@pytest.fixture
def first(database: Database, community: Community) -> str:
    return database.write(lambda db: community.reply(db, "Hello?", "First.", asker=ANN))


def again(database: Database, first_id: str, reply_id: str, text: str) -> str:
    def work(db: object) -> None:
        earlier = replies.get(db, first_id)
        assert earlier is not None
        replies.start(
            db,
            reply_id=reply_id,
            prompt_message_id=earlier.prompt_message_id,
            scope=earlier.scope,
            adapter_id=None,
            base_hash=earlier.base_hash,
            prompt=earlier.prompt,
            seed=2,
            sampling={},
        )
        replies.finish(
            db,
            reply_id,
            content=text,
            status="complete",
            finish_reason="stop",
            prompt_tokens=1,
            completion_tokens=1,
            queue_ms=1,
            first_token_ms=1,
            duration_ms=1,
        )
        versions.add(db, reply_id, beside=first_id)

    database.write(work)
    return reply_id
