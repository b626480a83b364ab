"""What members delete is forgotten here too: at once, in bulk, and after an absence."""

from __future__ import annotations

import asyncio
from typing import Any

import discord
import pytest
from simcord.builders import ChannelHandle

from bot.app import make_client
from bot.chat.answerer import Answerer
from bot.chat.question import Question
from bot.privacy.deletions import DeletionKeeper
from bot.services import Person
from storage.chat import conversations
from storage.db import sql
from storage.db.database import Connection
from storage.feedback import prompt_bank
from storage.feedback.prompt_bank import NewPrompt
from storage.imports import imports
from storage.imports.examples import Author, Channel, Example, Turn
from tests.bot.conftest import Community, in_force
from tests.bot.screen import Screen


def stored(community: Community, message_id: int) -> conversations.Message | None:
    return community.services.database.read(lambda db: conversations.by_discord_id(db, message_id))


def content(community: Community, message_id: int) -> str | None:
    found = stored(community, message_id)
    return None if found is None else found.content


async def test_a_deleted_question_is_forgotten_with_every_prompt_that_quotes_it(community: Community) -> None:
    asked = await community.ann.send(community.channel, f"{community.mention} my secret")
    await community.bob.send(community.channel, "go on", reply_to=community.messages()[0])
    assert "my secret" in str(community.replies()[1].prompt)
    await community.ann.delete(asked)
    assert content(community, asked.id) == ""
    assert [reply.prompt for reply in community.replies()] == [[], []]


async def test_a_bulk_deletion_forgets_all_of_them(community: Community) -> None:
    asked = [await community.ann.send(community.channel, f"{community.mention} {n}") for n in range(3)]
    event = discord.RawBulkMessageDeleteEvent(
        {"ids": [str(each.id) for each in asked], "channel_id": str(community.channel.id)}
    )
    community.bot.dispatch("raw_bulk_message_delete", event)
    for _ in range(500):
        if not any(content(community, each.id) for each in asked):
            break
        await asyncio.sleep(0.02)
    assert [content(community, each.id) for each in asked] == ["", "", ""]


async def test_what_imports_hold_of_a_message_or_a_channel_goes_with_it(community: Community) -> None:
    mia, where = Author(5, "mia"), Channel(community.guild.id, 77)
    asked = [Turn("user", f"How do I store loaf {number}?", mia, 900 + number) for number in range(2)]
    examples = [Example((turn,), Turn("assistant", "In a bag."), "1", channel=where) for turn in asked]
    scope = community.services.scope(community.guild.id)
    values = {"name": "x", "sha256": "a", "format_name": "x", "rights": "x", "licence": "x", "actor": "x"}
    bank = [
        NewPrompt(f"Which flour for loaf {number}?", None, None, 77, None, 910 + number)
        for number in range(2)
    ]

    def bring_in(db: Connection) -> None:
        begun = imports.begin(db, scope=scope, **values)
        imports.store(db, begun, examples, permission_reference="")
        prompt_bank.add(db, bank, "test")

    def left(db: Connection) -> list[str]:
        words = sql.many(db, "SELECT content FROM messages WHERE role = 'user' AND content <> ''")
        return [row["content"] for row in words] + [each.text for each in prompt_bank.prompts(db)]

    database, keeper = community.services.database, community.bot.feature(DeletionKeeper)
    database.write(bring_in)
    assert await keeper.forget_messages([900, 910]) == 2
    assert database.read(left) == ["How do I store loaf 1?", "Which flour for loaf 1?"]
    await keeper.channel_deleted(77)
    assert database.read(left) == []


async def test_a_question_that_is_deleted_before_it_is_stored_leaves_nothing(community: Community) -> None:
    await community.bot.feature(DeletionKeeper).forget_messages([999])
    assert not await community.bot.feature(DeletionKeeper).overtook(998)
    person = Person(community.ann.id, "ann", "playground")
    question = Question(
        999, community.channel.id, community.guild.id, True, person, "my secret", in_force(community.services)
    )
    screen = Screen()
    task = community.bot.feature(Answerer).start(question, screen)
    assert task is not None
    await task
    assert content(community, 999) == "" and screen.messages == {}
    assert [(reply.status, reply.text, reply.prompt) for reply in community.replies()] == [
        ("stopped", "", [])
    ]


async def test_what_was_deleted_while_away_is_forgotten_after_the_start(
    community: Community, services: Any
) -> None:
    kept = await community.ann.send(community.channel, f"{community.mention} kept")
    gone = await community.ann.send(community.channel, f"{community.mention} gone")
    answers = community.messages()
    for message_id in (gone.id, answers[1].id):
        del community.env.backend.messages[community.channel.id][message_id]
    await community.env.restart_bot(make_client(services))
    await community.env.settle()
    assert content(community, gone.id) == "" and content(community, answers[1].id) == ""
    assert content(community, kept.id) == "kept" and content(community, answers[0].id)


async def test_what_was_reworded_while_away_is_followed_after_the_start(
    community: Community, services: Any
) -> None:
    asked = await community.ann.send(community.channel, f"{community.mention} my address is cnry 7")
    as_it_was = await community.ann.send(community.channel, f"{community.mention} kept")
    with community.unheard() as backend:
        backend.edit_message(community.channel.id, asked.id, {"content": f"{community.mention} hello"})
    await community.env.restart_bot(make_client(services))
    await community.env.settle()
    assert content(community, asked.id) == "hello" and content(community, as_it_was.id) == "kept"


async def test_an_edit_that_was_followed_already_is_not_stored_again(community: Community) -> None:
    asked = await community.ann.send(community.channel, f"{community.mention} hello")
    await community.ann.edit(asked, f"{community.mention} good morning")
    before = stored(community, asked.id)
    assert before is not None and before.content == "good morning"
    await community.bot.feature(DeletionKeeper).reconcile()
    assert stored(community, asked.id) == before


async def test_a_slash_commands_prompt_is_not_taken_for_a_deleted_message(community: Community) -> None:
    await community.ann.send(community.channel, f"{community.mention} hello")
    await community.ann.slash(community.channel, "ask", prompt="what is this?")
    assert await community.bot.feature(DeletionKeeper).reconcile() == 0
    assert [reply.prompt[-1]["content"] for reply in community.replies()] == ["hello", "what is this?"]


async def test_a_playground_that_forgot_everything_proves_nothing(community: Community) -> None:
    asked = await community.ann.send(community.channel, f"{community.mention} hello")
    community.env.backend.messages[community.channel.id].clear()
    assert await community.bot.feature(DeletionKeeper).reconcile() == 0
    assert content(community, asked.id) == "hello"


async def test_a_playground_that_began_anew_and_was_talked_to_proves_nothing_of_what_was_before(
    community: Community,
) -> None:
    asked = await community.ann.send(community.channel, f"{community.mention} yesterday")
    community.env.backend.messages[community.channel.id].clear()
    today = await community.ann.send(community.channel, f"{community.mention} today")
    gone = await community.ann.send(community.channel, f"{community.mention} gone")
    del community.env.backend.messages[community.channel.id][gone.id]
    assert await community.bot.feature(DeletionKeeper).reconcile() == 1
    assert [content(community, each.id) for each in (asked, today, gone)] == ["yesterday", "today", ""]


async def test_the_oldest_question_that_is_known_can_be_found_deleted_in_the_playground_too(
    community: Community,
) -> None:
    """An older message of the channel, which nobody asked the bot, proves that it wasn't forgotten."""
    await community.bob.send(community.channel, "hello everybody")
    gone = await community.ann.send(community.channel, f"{community.mention} gone")
    del community.env.backend.messages[community.channel.id][gone.id]
    assert await community.bot.feature(DeletionKeeper).reconcile() == 1
    assert content(community, gone.id) == ""


async def test_at_discord_an_empty_channel_was_emptied(community: Community, services: Any) -> None:
    asked = await community.ann.send(community.channel, f"{community.mention} hello")
    community.env.backend.messages[community.channel.id].clear()
    services.playground = False
    assert await DeletionKeeper(services, community.bot).reconcile() == 2
    assert content(community, asked.id) == ""
    services.playground = True


@pytest.mark.parametrize("playground", [True, False])
async def test_a_channel_that_is_gone_at_the_start_takes_its_messages_along(
    community: Community, services: Any, playground: bool
) -> None:
    asked = await community.ann.send(community.channel, f"{community.mention} hello")
    del community.env.backend.channels[community.channel.id]
    services.playground = playground
    await DeletionKeeper(services, community.bot).reconcile()
    assert content(community, asked.id) == ("hello" if playground else "")
    services.playground = True


async def test_deleting_a_channel_forgets_what_was_said_in_it(community: Community) -> None:
    asked = await community.ann.send(community.channel, f"{community.mention} hello")
    other = community.guild.create_text_channel("other")
    elsewhere = await community.ann.send(other, f"{community.mention} elsewhere")
    assert await community.bot.feature(DeletionKeeper).channel_deleted(community.channel.id) == 2
    assert content(community, asked.id) == "" and content(community, elsewhere.id) == "elsewhere"


async def test_deleting_a_channel_forgets_its_archived_threads(community: Community) -> None:
    """Discord tells nothing of them: they are in nobody's cache any more."""
    created = community.env.backend.create_thread(community.channel.id, "aside", community.ann.id)
    thread = ChannelHandle(community.env, community.guild, created)
    asked = await community.ann.send(thread, f"{community.mention} hello")
    assert content(community, asked.id) == "hello"
    assert await community.bot.feature(DeletionKeeper).channel_deleted(community.channel.id) == 2
    assert content(community, asked.id) == ""
