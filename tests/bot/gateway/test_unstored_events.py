"""What Discord tells once is stored, also where the database can't be used at that moment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from sqlite_utils.utils import sqlite3

from bot.gateway.unstored_events import TRY_AGAIN_S, UnstoredEvents
from bot.privacy.deletions import DeletionKeeper
from storage.chat import conversations
from storage.errors import DatabaseBusyError
from storage.learning import eligibility
from tests.bot.conftest import Community
from tests.bot.privacy.test_publicness import close


async def until(check: Callable[[], object]) -> None:
    for _ in range(500):
        if check():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it never came")


@pytest.fixture
def soon(community: Community) -> None:
    community.bot.job_again_s = 0.05
    community.services.database.write(lambda db: db.conn.execute("PRAGMA busy_timeout=20").fetchone())


@pytest.mark.usefixtures("soon")
async def test_what_is_deleted_reworded_or_closed_while_the_database_is_locked_is_made_up_for(
    community: Community,
) -> None:
    database, bob = community.services.database, community.bob
    gone, reworded, kept = [
        await bob.send(community.channel, f"{community.mention} {word}") for word in ("gone", "old", "kept")
    ]
    await bob.react(community.messages()[2], "👍")

    def content(message: Any) -> str:
        stored = database.read(lambda db: conversations.by_discord_id(db, message.id))
        assert stored is not None
        return stored.content

    def trains() -> bool:
        scope = f"guild:{community.guild.id}"
        found = database.read(lambda db: eligibility.eligible_rows(db, scope, permission_reference=""))
        return bool(found.rows)

    assert trains()
    other = sqlite3.connect(str(database.path), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    await bob.delete(gone)
    await bob.edit(reworded, f"{community.mention} newer")
    await bob.edit(reworded, f"{community.mention} newest")
    close(community)
    community.env.backend.announce_channel_update(community.channel.id)
    await community.env.settle()
    assert [content(each) for each in (gone, reworded, kept)] == ["gone", "old", "kept"]
    other.execute("ROLLBACK")
    other.close()
    await community.env.advance_time(TRY_AGAIN_S + 1.0)
    assert not trains()
    assert [content(each) for each in (gone, reworded, kept)] == ["", "newest", "kept"]


@pytest.mark.usefixtures("soon")
async def test_a_session_that_begins_while_the_database_is_locked_compares_later(
    community: Community,
) -> None:
    kept = await community.bob.send(community.channel, f"{community.mention} kept")
    asked = await community.bob.send(community.channel, f"{community.mention} gone")
    del community.env.backend.messages[community.channel.id][asked.id]
    database, keeper = community.services.database, community.bot.feature(DeletionKeeper)
    other = sqlite3.connect(str(database.path), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseBusyError):
        await keeper.forget_messages([asked.id])
    community.bot.start_session_jobs()
    await asyncio.sleep(0.2)
    other.execute("ROLLBACK")
    other.close()

    def is_forgotten() -> bool:
        stored = database.read(lambda db: conversations.by_discord_id(db, asked.id))
        return stored is not None and stored.content == ""

    await until(is_forgotten)
    stored = database.read(lambda db: conversations.by_discord_id(db, kept.id))
    assert stored is not None and stored.content == "kept"


async def test_beyond_what_is_remembered_everything_is_compared_once_what_is_remembered_is_handled() -> None:
    handled: list[object] = []
    locked = True

    async def handle(event: object) -> None:
        if locked:
            raise DatabaseBusyError("locked")
        if event == 2:
            raise ValueError("something else")
        handled.append(event)

    async def compare_all() -> None:
        handled.append("all")

    unstored = UnstoredEvents(compare_all, try_again_s=0.01, most_owed=3)
    keep = unstored.kept(handle)
    for number in range(1, 6):
        await keep(number)
    await asyncio.sleep(0.05)
    assert handled == []
    locked = False
    await until(lambda: "all" in handled)
    await keep(6)
    assert handled == [1, 3, "all", 6]
    await unstored.stop()
