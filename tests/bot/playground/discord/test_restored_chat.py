"""After a restart the stand-in shows the chat that the database has, and a bot finds it as Discord's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import discord
import pytest
import sqlite_utils

from bot.playground.discord import community
from bot.playground.saved_state import read_chat
from bot.playground.server import Playground
from storage.chat import conversations, members, replies, transcript
from storage.db.database import Database
from storage.feedback import ratings
from storage.learning import runs
from tests.bot.playground.conftest import Recorder, connected

GENERAL, YOU = community.GENERAL_ID, community.OWNER.user_id
ADA = community.PEOPLE[1].user_id
ASKED, ANSWERED, UPLOADED = (1_300_000_000_000_000_000 + n * 4_194_304_000 for n in range(3))


def chat(db: sqlite_utils.Database) -> None:
    """A question with an answer that Ada likes, and a message that is nothing but a file."""
    members.ensure(db, YOU, "You", "playground")
    members.ensure(db, ADA, "Ada", "playground")
    conversation = conversations.open_conversation(
        db,
        key="c1",
        guild_id=community.GUILD_ID,
        channel_id=GENERAL,
        scope="guild:1",
        source="playground",
        public=True,
    )
    values: dict[str, Any] = {"conversation_id": conversation.id, "author_id": YOU, "role": "user"}
    asked = conversations.add_message(
        db, discord_id=ASKED, parent_id=None, content="How do I store bread?", **values
    )
    conversations.add_message(db, discord_id=UPLOADED, parent_id=None, content="", **values)
    replies.start(
        db,
        reply_id="r1",
        prompt_message_id=asked,
        scope="guild:1",
        adapter_id=None,
        base_hash="b",
        prompt=[{"role": "user", "content": "How do I store bread?"}],
        seed=1,
        sampling={},
    )
    unknown: dict[str, Any] = dict.fromkeys(
        ("finish_reason", "prompt_tokens", "completion_tokens", "queue_ms", "first_token_ms", "duration_ms")
    )
    replies.finish(db, "r1", content="In a paper bag.", status="complete", **unknown)
    replies.add_part(db, "r1", ANSWERED, GENERAL, 0)
    ratings.rate(db, reply_id="r1", user_id=ADA, kind="thumb", means="reaction", value=1, emoji="👍")


@pytest.fixture
def shown(tmp_path: Path) -> list[transcript.Shown]:
    database = Database.open(tmp_path / "strop.db")
    try:
        database.write(chat)
        return database.read(lambda db: transcript.latest(db, 100))
    finally:
        database.close()


def test_the_page_shows_questions_answers_and_who_liked_them(shown: list[transcript.Shown]) -> None:
    playground = Playground()
    assert playground.backend.restore(shown) == 3
    asked, answered, uploaded = playground.backend.history(100)[str(GENERAL)]
    assert (asked["content"], asked["author"]["id"]) == (
        f"<@{community.BOT_ID}> How do I store bread?",
        str(YOU),
    )
    assert [each["id"] for each in asked["mentions"]] == [str(community.BOT_ID)]
    assert (answered["content"], answered["author"]["id"]) == ("In a paper bag.", str(community.BOT_ID))
    assert answered["reactions"][0]["users"] == [str(ADA)]
    assert answered["message_reference"]["message_id"] == asked["id"]
    assert uploaded["content"] == ""
    assert not answered["components"]


def test_a_runs_message_is_there_again_for_the_bot_to_edit(tmp_path: Path) -> None:
    after = ANSWERED + 1
    with Database.open(tmp_path / "strop.db") as database:
        database.write(chat)

        def run(db: sqlite_utils.Database) -> None:
            queued = runs.enqueue(db, scope="guild:1", trigger="manual", requested_by="1")
            runs.lease_next(db, "trainer", 60_000)
            runs.finish(db, queued.id, outcome="refused", message="a1 was not promoted")
            runs.set_report(db, queued.id, channel_id=GENERAL, message_id=after, said="refused")

        database.write(run)
        shown = database.read(lambda db: read_chat(db, "guild:1", 100))
        elsewhere = database.read(lambda db: read_chat(db, "guild:2", 100))
    playground = Playground()
    playground.backend.restore(shown)
    told = playground.backend.history(100)[str(GENERAL)][2]
    assert (told["content"], told["author"]["id"]) == ("a1 was not promoted", str(community.BOT_ID))
    assert after not in {each.discord_id for each in elsewhere}


def test_an_answer_of_before_has_its_buttons_again(shown: list[transcript.Shown]) -> None:
    playground = Playground()
    playground.backend.restore(shown, ("stop", "why", "regenerate"))
    asked, answered, _ = playground.backend.history(100)[str(GENERAL)]
    (row,) = answered["components"]
    assert [button["custom_id"] for button in row["components"]] == [
        "strop:reply:regenerate:r1",
        "strop:reply:why:r1",
    ]
    assert not asked["components"]


async def test_a_bot_reads_restored_messages_and_hears_of_new_reactions_to_them(
    shown: list[transcript.Shown],
) -> None:
    async with Playground() as playground:
        playground.backend.restore(shown)
        client = Recorder()
        async with connected(client, playground):
            channel = client.get_partial_messageable(GENERAL)
            found = [message async for message in channel.history(limit=10, oldest_first=True)]
            assert [message.id for message in found] == [ASKED, ANSWERED, UPLOADED]
            reacted = [user.id async for user in found[1].reactions[0].users()]
            assert reacted == [ADA]
            playground.backend.set_reaction(GENERAL, ANSWERED, YOU, "👎", reacted=True)
            event = await client.reactions.get()
            assert (event.message_id, event.user_id) == (ANSWERED, YOU)
            assert isinstance(found[1].reference, discord.MessageReference)


def test_deleted_messages_and_channels_that_are_gone_do_not_come_back(tmp_path: Path) -> None:
    database = Database.open(tmp_path / "strop.db")
    try:
        database.write(chat)
        database.write(lambda db: conversations.delete_message(db, ASKED))
        left = database.read(lambda db: transcript.latest(db, 100))
    finally:
        database.close()
    assert ASKED not in {each.discord_id for each in left}
    assert all(each.reply_to is None for each in left)
    elsewhere = [transcript.Shown(9, 12345, YOU, "You", "hello", None)]
    assert Playground().backend.restore(elsewhere) == 0
