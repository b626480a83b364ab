"""Reactions are ratings: the last one counts, a removal retracts, an absence loses none."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from types import SimpleNamespace
from typing import Any

import pytest
from sqlite_utils.utils import sqlite3

from bot.app import make_client
from bot.feedback.reactions import EmojiValues, RatingRecorder, plain_emoji
from bot.gateway.unstored_events import UnstoredEvents
from bot.privacy.commands import erase
from bot.services import Services
from storage.chat import conversations, members, replies
from storage.db import key_values
from storage.errors import DatabaseBusyError, DiskFullError
from storage.feedback import ratings
from tests.bot.conftest import Community
from tests.bot.fake_server import FakeModelServer


@pytest.fixture
async def reply(community: Community) -> Any:
    """One answered question; its Discord message."""
    await community.ann.send(community.channel, f"{community.mention} hello")
    return community.messages()[0]


def standing(community: Community) -> dict[int, int]:
    """User id -> value of the ratings that stand on the first reply."""
    reply_id = community.replies()[0].id
    stored = community.services.database.read(lambda db: ratings.list_for_reply(db, reply_id))
    return {rating.user_id: rating.value for rating in stored if not rating.retracted}


async def test_a_reaction_rates_and_a_removal_retracts(community: Community, reply: Any) -> None:
    await community.ann.react(reply, "👍")
    await community.bob.react(reply, "👎")
    assert standing(community) == {community.ann.id: 1, community.bob.id: -1}

    await community.bob.unreact(reply, "👎")
    assert standing(community) == {community.ann.id: 1}
    reply_id = community.replies()[0].id
    stored = community.services.database.read(lambda db: ratings.list_for_reply(db, reply_id))
    assert [(rating.user_id, rating.retracted) for rating in stored] == [
        (community.ann.id, False),
        (community.bob.id, True),
    ]


async def test_the_last_reaction_counts(community: Community, reply: Any) -> None:
    await community.ann.react(reply, "👍")
    await community.ann.react(reply, "👎")
    assert standing(community) == {community.ann.id: -1}
    await community.ann.unreact(reply, "👍")
    assert standing(community) == {community.ann.id: -1}


async def test_taking_the_last_reaction_back_leaves_the_other_one(community: Community, reply: Any) -> None:
    await community.ann.react(reply, "👍")
    await community.ann.react(reply, "👎")
    await community.ann.unreact(reply, "👎")
    assert standing(community) == {community.ann.id: 1}


async def test_a_replayed_event_changes_nothing(community: Community, reply: Any) -> None:
    await community.ann.react(reply, "👍")
    reply_id = community.replies()[0].id
    before = community.services.database.read(lambda db: ratings.list_for_reply(db, reply_id))
    payload = {
        "user_id": str(community.ann.id),
        "message_id": str(reply.id),
        "channel_id": str(community.channel.id),
        "guild_id": str(community.guild.id),
        "emoji": {"name": "👍", "id": None},
        "type": 0,
    }
    for _ in range(3):
        with community.env._bot_scope():
            community.bot._connection.parsers["MESSAGE_REACTION_ADD"](dict(payload))
        await community.env.settle()
    after = community.services.database.read(lambda db: ratings.list_for_reply(db, reply_id))
    assert after == before


async def test_a_quick_change_of_mind_ends_as_it_was_meant(community: Community, reply: Any) -> None:
    payload = {
        "user_id": str(community.ann.id),
        "message_id": str(reply.id),
        "channel_id": str(community.channel.id),
        "emoji": {"name": "👍", "id": None},
        "type": 0,
    }
    with community.env._bot_scope():
        for _ in range(10):
            community.bot._connection.parsers["MESSAGE_REACTION_ADD"](dict(payload))
            community.bot._connection.parsers["MESSAGE_REACTION_REMOVE"](dict(payload))
    await community.env.settle()
    assert standing(community) == {}


async def test_moderators_clearing_reactions_retracts_them(community: Community, reply: Any) -> None:
    await community.ann.react(reply, "👍")
    await community.bob.react(reply, "👎")
    location = {
        "channel_id": str(community.channel.id),
        "message_id": str(reply.id),
        "guild_id": str(community.guild.id),
    }
    parsers = community.bot._connection.parsers
    with community.env._bot_scope():
        parsers["MESSAGE_REACTION_REMOVE_EMOJI"]({**location, "emoji": {"name": "👎", "id": None}})
    await community.env.settle()
    assert standing(community) == {community.ann.id: 1}
    with community.env._bot_scope():
        parsers["MESSAGE_REACTION_REMOVE_ALL"](location)
    await community.env.settle()
    assert standing(community) == {}


async def test_every_part_of_a_reply_rates_it_once_a_member(
    community: Community, model_server: FakeModelServer
) -> None:
    model_server.answer = " ".join(["word"] * 900)
    await community.ann.send(community.channel, f"{community.mention} talk")
    first, *_, last = community.messages()
    await community.ann.react(first, "👍")
    await community.ann.react(last, "👍")
    await community.bob.react(last, "👎")
    assert standing(community) == {community.ann.id: 1, community.bob.id: -1}


async def test_other_emoji_bots_and_unknown_messages_are_ignored(community: Community, reply: Any) -> None:
    other = community.guild.add_member(community.env.create_user("other", bot=True))
    unknown = await community.bob.send(community.channel, "not a reply")
    await community.ann.react(reply, "🎉")
    await other.react(reply, "👍")
    await community.ann.react(unknown, "👍")
    assert standing(community) == {}
    assert community.env.errors == []


@pytest.mark.parametrize(
    "settings", ['[discord]\nrating_up = ["❤️", "🔥"]\nrating_down = ["💩"]'], indirect=True
)
async def test_the_set_of_emoji_is_configurable(community: Community, reply: Any) -> None:
    await community.ann.react(reply, "❤️")
    await community.bob.react(reply, "💩")
    assert standing(community) == {community.ann.id: 1, community.bob.id: -1}
    await community.bob.react(reply, "👍")
    assert standing(community)[community.bob.id] == -1


@pytest.mark.parametrize(("emoji", "plain"), [("👍🏽", "👍"), ("❤️", "❤"), ("<:ok:12>", "<:ok:12>")])
def test_skin_tones_and_variants_are_one_emoji(emoji: str, plain: str) -> None:
    assert plain_emoji(emoji) == plain


async def test_the_rater_is_stored_with_their_name_and_source(community: Community, reply: Any) -> None:
    await community.bob.react(reply, "👍")
    bob = community.services.database.read(lambda db: members.get(db, community.bob.id))
    assert bob is not None
    assert (bob.display_name, bob.source, bob.simulated, bob.consent) == ("bob", "playground", False, "unset")


async def test_simulated_members_are_told_apart_in_the_playground(community: Community) -> None:
    cat = community.guild.add_member(community.env.create_user("cat·sim"))
    await cat.send(community.channel, f"{community.mention} hello")
    cat_row = community.services.database.read(lambda db: members.get(db, cat.id))
    assert cat_row is not None and cat_row.simulated and cat_row.source == "rehearsal"
    assert community.replies()[0].source == "rehearsal"


async def test_ratings_given_and_taken_back_during_an_absence_are_recovered(
    community: Community, reply: Any, services: Services
) -> None:
    await community.bob.react(reply, "👎")
    with community.unheard() as backend:
        backend.set_reaction(community.channel.id, reply.id, "👍", community.ann.id, True)
        backend.remove_reaction(community.channel.id, reply.id, "👎", community.bob.id)
    assert standing(community) == {community.bob.id: -1}

    await community.env.restart_bot(make_client(services))
    await community.env.settle()
    assert standing(community) == {community.ann.id: 1}
    assert services.database.read(lambda db: key_values.get(db, key_values.RECOVERED_RATINGS)) == "2"


async def test_what_is_recovered_is_counted_together_with_its_rating(
    community: Community, services: Services
) -> None:
    for _ in range(3):
        await community.ann.send(community.channel, f"{community.mention} hello")
    with community.unheard() as backend:
        for message in community.messages():
            backend.set_reaction(message.channel.id, message.id, "👍", community.bob.id, True)

    def recovered(db: Any) -> tuple[int, int]:
        stored = sum(len(ratings.list_for_reply(db, reply.id)) for reply in replies.recent(db, 0, 10))
        return stored, int(key_values.get(db, key_values.RECOVERED_RATINGS) or 0)

    reconciling = asyncio.create_task(community.bot.feature(RatingRecorder).reconcile())
    while not reconciling.done():
        stored, counted = services.database.read(recovered)
        assert counted == stored
        await asyncio.sleep(0)
    assert services.database.read(recovered) == (3, 3)


async def test_reconciling_asks_for_users_only_where_somebody_reacted(
    community: Community, reply: Any, services: Services
) -> None:
    before = len(community.env.http_requests)
    assert await community.bot.feature(RatingRecorder).reconcile() == 0
    paths = [request.path for request in community.env.http_requests[before:]]
    assert paths == [f"/channels/{community.channel.id}/messages/{reply.id}"]


async def test_what_a_member_erased_does_not_come_back_with_the_next_session(
    community: Community, reply: Any, services: Services
) -> None:
    """Their reactions still stand at Discord."""
    await community.bob.react(reply, "👍")
    await erase(services, community.bob.id)
    await community.env.restart_bot(make_client(services))
    await community.env.settle()
    (stored,) = community.replies()
    member = services.database.read(lambda db: members.get(db, community.bob.id))
    assert services.database.read(lambda db: ratings.list_for_reply(db, stored.id)) == []
    assert member is not None and member.display_name == ""

    await community.bob.react(reply, "👎")
    assert standing(community) == {community.bob.id: -1}
    await community.bot.feature(RatingRecorder).reconcile()
    assert standing(community) == {community.bob.id: -1}


async def test_two_who_swapped_their_reactions_during_an_absence_are_both_heard(
    community: Community, reply: Any, services: Services
) -> None:
    """The counts are as they were before."""
    await community.ann.react(reply, "👍")
    await community.bob.react(reply, "👎")
    with community.unheard() as backend:
        for who, emoji in ((community.ann, "👍"), (community.bob, "👎")):
            backend.remove_reaction(community.channel.id, reply.id, emoji, who.id)
        for who, emoji in ((community.ann, "👎"), (community.bob, "👍")):
            backend.add_reaction(community.channel.id, reply.id, emoji, who.id)
    assert await community.bot.feature(RatingRecorder).reconcile() == 2
    (stored,) = community.replies()
    given = services.database.read(lambda db: ratings.list_for_reply(db, stored.id))
    assert {(each.user_id, each.value) for each in given if not each.retracted} == {
        (community.ann.id, -1),
        (community.bob.id, 1),
    }


async def test_a_deleted_question_is_forgotten(community: Community) -> None:
    question = await community.ann.send(community.channel, f"{community.mention} my secret")
    await community.ann.delete(question)
    stored = community.services.database.read(lambda db: conversations.by_discord_id(db, question.id))
    assert stored is not None and stored.content == "" and stored.deleted_ms is not None
    assert community.replies()[0].prompt == []


async def test_an_edited_question_is_stored_as_people_see_it(community: Community) -> None:
    question = await community.ann.send(community.channel, f"{community.mention} colour?")
    await community.ann.edit(question, f"{community.mention} which color?")
    stored = community.services.database.read(lambda db: conversations.by_discord_id(db, question.id))
    assert stored is not None and stored.content == "which color?"


async def test_a_rating_that_overtakes_its_messages_row_still_counts(
    community: Community, model_server: FakeModelServer
) -> None:
    model_server.gate = asyncio.Event()
    model_server.answer = "one two three four"
    community.env.backend.create_message(community.channel.id, community.ann.id, f"{community.mention} hi")
    for _ in range(100):
        await asyncio.sleep(0.02)
        if community.messages():
            break
    message = community.messages()[0]
    community.env.backend.set_reaction(community.channel.id, message.id, "👍", community.bob.id, True)
    model_server.gate.set()
    await community.env.settle()
    assert standing(community) == {community.bob.id: 1}


async def test_a_rating_that_is_taken_back_while_it_is_being_stored_does_not_stand(
    community: Community, monkeypatch: pytest.MonkeyPatch
) -> None:
    await community.ann.send(community.channel, f"{community.mention} hello")
    recorder, released = community.bot.feature(RatingRecorder), asyncio.Event()
    read = recorder._value

    async def read_slowly(message_id: int, emoji: str) -> int | None:
        await released.wait()
        return await read(message_id, emoji)

    monkeypatch.setattr(recorder, "_value", read_slowly)
    message_id = community.messages()[0].id
    for reacted in (True, False):
        community.env.backend.set_reaction(community.channel.id, message_id, "👍", community.bob.id, reacted)
    await asyncio.sleep(0.1)
    released.set()
    await community.env.settle()
    assert standing(community) == {}


async def test_a_channel_that_refuses_is_asked_once_and_does_not_silence_the_others(
    community: Community, services: Services
) -> None:
    other = community.guild.create_text_channel("other")
    for _ in range(3):
        await community.ann.send(community.channel, f"{community.mention} hello")
    await community.ann.send(other, f"{community.mention} hello")
    with community.unheard() as backend:
        for message in (*community.messages(), *community.messages(other)):
            backend.set_reaction(message.channel.id, message.id, "👍", community.bob.id, True)
    community.env.inject_error(
        "GET", f"/channels/{community.channel.id}/messages/*", status=403, code=50001, times=None
    )
    before = len(community.env.http_requests)
    assert await community.bot.feature(RatingRecorder).reconcile() == 1
    refused = [r for r in community.env.http_requests[before:] if str(community.channel.id) in r.path]
    assert len(refused) == 1


def test_a_custom_emoji_rates_by_its_id_whatever_it_is_called() -> None:
    values = EmojiValues(["<:strop:123456789012345678>", "👍"], ["<a:blunt:123456789012345679>"])
    assert values.value("<:renamed:123456789012345678>") == 1
    assert values.value("<:blunt:123456789012345679>") == -1
    assert values.value("👍🏽") == 1 and values.value("<:strop:999999999999999999>") is None


async def test_more_ratings_than_a_page_are_recovered_after_an_absence(
    community: Community,
) -> None:
    for _ in range(7):
        await community.ann.send(community.channel, f"{community.mention} hello")
    with community.unheard() as backend:
        for message in community.messages():
            backend.set_reaction(message.channel.id, message.id, "👍", community.bob.id, True)
    assert await community.bot.feature(RatingRecorder).reconcile(2) == 7


@pytest.mark.parametrize("trouble", ["locked", "full"])
async def test_a_rating_that_can_not_be_stored_is_made_up_for(
    community: Community, reply: Any, trouble: str
) -> None:
    """Nobody's word gets lost because the disk is full or another program holds the database."""
    database = community.services.database
    recorder = community.bot.feature(RatingRecorder)
    unstored = UnstoredEvents(recorder.reconcile, try_again_s=0.05)
    event = SimpleNamespace(
        user_id=community.bob.id,
        message_id=reply.id,
        channel_id=community.channel.id,
        emoji="👍",
        member=None,
    )
    with community.unheard() as backend:
        backend.set_reaction(community.channel.id, reply.id, "👍", community.bob.id, True)
    database.write(lambda db: db.conn.execute("PRAGMA busy_timeout=20").fetchone())
    other = sqlite3.connect(str(database.path), isolation_level=None)
    if trouble == "locked":
        other.execute("BEGIN IMMEDIATE")
    else:
        pages = database.read(lambda db: db.conn.execute("PRAGMA page_count").fetchone()[0])
        database.write(lambda db: db.conn.execute(f"PRAGMA max_page_count={pages}").fetchone())
        with contextlib.suppress(DiskFullError):
            while True:
                database.write(lambda db: key_values.put(db, secrets.token_hex(8), "x" * 500))
    await unstored.compared(recorder.handle_added, recorder.compare)(event)
    if trouble == "locked":
        assert standing(community) == {}
        other.execute("ROLLBACK")
    else:
        database.write(lambda db: db.conn.execute("PRAGMA max_page_count=1000000").fetchone())
    other.close()
    for _ in range(100):
        await asyncio.sleep(0.05)
        if standing(community):
            break
    assert standing(community) == {community.bob.id: 1}
    await unstored.stop()


async def test_beyond_what_is_remembered_all_recent_replies_are_compared() -> None:
    compared: list[int | str] = []

    async def one(message_id: int) -> int:
        compared.append(message_id)
        return 1

    async def everything() -> int:
        compared.append("all")
        return 1

    async def refused(event: Any) -> None:
        raise DatabaseBusyError("locked")

    keep = UnstoredEvents(everything, try_again_s=0.01, most_owed=2).compared(refused, one)
    for number in (1, 2, 2, 3):
        await keep(SimpleNamespace(message_id=number))
    for _ in range(200):
        await asyncio.sleep(0.01)
        if "all" in compared:
            break
    assert compared == [1, 2, "all"]
