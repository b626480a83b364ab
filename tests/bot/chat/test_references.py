"""What a question refers to reaches the model under its author, and what can't be read is said."""

from __future__ import annotations

from typing import Any

import discord
import pytest
from simcord.backend.models import MessageSticker, Poll, PollAnswer
from simcord.builders import ChannelHandle

from bot.chat.answerer import SHORTENED
from bot.chat.content.references import CHAIN_CUT, CITED_GONE, CITED_WORDLESS, STICKERS
from bot.chat.listener import FORWARDED, PROXIED
from storage.chat import conversations, members
from storage.learning import eligibility
from tests.bot.admin.test_settings import put
from tests.bot.conftest import Community
from tests.bot.fake_server import FakeModelServer
from tests.bot.privacy.test_publicness import close

pytestmark = pytest.mark.parametrize("settings", ["[discord]\nmessage_content = true"], indirect=True)
ANSWER = "Hello there, friend."


def turns(model_server: FakeModelServer, index: int = -1) -> list[str]:
    return [message["content"] for message in model_server.prompt(index) if message["role"] != "system"]


def handle(community: Community, channel_id: int) -> ChannelHandle:
    return ChannelHandle(community.env, community.guild, community.env.backend.channels[channel_id])


async def ask(community: Community, text: str, about: Any, channel: Any = None) -> None:
    await community.ann.send(channel or community.channel, f"{community.mention} {text}", reply_to=about)


def posted(community: Community, message: Any) -> Any:
    """A message of the backend as one that can be replied to."""
    return next(each for each in community.channel.history() if each.id == message.id)


async def test_a_forward_of_an_answer_is_no_question_in_the_other_channel(community: Community) -> None:
    other = community.guild.create_text_channel("other")
    await community.ann.send(community.channel, f"{community.mention} hello")
    (answer,) = community.messages()
    await community.bob.forward(answer, other)
    assert community.said(other) == [] and len(community.said()) == 1
    put(community, "triggers", "every", channel=other)
    await community.bob.forward(answer, other)
    assert community.said(other) == []


async def test_a_forward_into_a_direct_message_waits_for_its_question(
    community: Community, model_server: FakeModelServer
) -> None:
    bobs = await community.bob.send(community.channel, "The meeting is at <t:1700000000:t>.")
    dm = community.ann.user.dm_channel
    source = community.env.backend
    source.create_message(
        dm.id,
        community.ann.id,
        reference={"type": 1, "channel_id": str(community.channel.id), "message_id": str(bobs.id)},
    )
    await community.env.settle()
    assert community.said(dm) == [FORWARDED]
    await community.ann.user.send_dm("when is that?")
    assert turns(model_server) == ["Someone: The meeting is at 2023-11-14 22:13 UTC.\nann: when is that?"]


async def test_a_reply_to_a_forward_has_its_text_and_nobody_s_consent(
    community: Community, model_server: FakeModelServer
) -> None:
    other = community.guild.create_text_channel("other")
    bobs = await community.bob.send(other, "Leather first, then linen.")
    forward = await community.bob.forward(bobs, community.channel)
    await ask(community, "is that right?", forward)
    assert turns(model_server) == ["Someone: Leather first, then linen.\nann: is that right?"]
    stored_row = community.services.database.read(lambda db: conversations.by_discord_id(db, forward.id))
    assert stored_row is not None and stored_row.author_id == members.UNKNOWN_AUTHOR_ID


async def test_a_forward_of_a_message_that_is_known_keeps_its_author(community: Community) -> None:
    await community.bob.send(community.channel, f"{community.mention} my question")
    (mine,) = [m for m in community.channel.history() if "my question" in m.content]
    forward = await community.ann.forward(mine, community.channel)
    await ask(community, "what of it?", forward)
    row = community.services.database.read(lambda db: conversations.by_discord_id(db, forward.id))
    assert row is not None and row.author_id == community.bob.id


async def test_a_forward_makes_nothing_public_that_was_said_in_private(community: Community) -> None:
    staff = community.guild.create_text_channel("staff")
    await community.bob.send(community.channel, f"{community.mention} in the open")
    await community.bob.send(staff, f"{community.mention} among us")
    close(community, staff)
    community.env.backend.announce_channel_update(staff.id)
    await community.env.settle()
    for place, public in ((community.channel, True), (staff, False)):
        (asked,) = [m for m in place.history() if m.author.id == community.bob.id]
        forward = await community.bob.forward(asked, community.channel)
        await ask(community, "what of it?", forward)
        row = community.services.database.read(
            lambda db, forward_id=forward.id: conversations.by_discord_id(db, forward_id)
        )
        assert row is not None and row.author_id == community.bob.id
        assert bool(row.public) is public


async def test_the_embed_of_a_webhook_is_read_under_its_name(
    community: Community, model_server: FakeModelServer
) -> None:
    hook = community.guild.create_webhook(community.channel, "CI")
    sent = await hook.send(embed=discord.Embed(title="Build 7 failed", description="in lint"))
    await ask(community, "why?", sent)
    assert turns(model_server) == ["CI: Build 7 failed\nin lint\nann: why?"]


async def test_words_of_a_webhook_never_train_on_discord(community: Community) -> None:
    community.services.playground = False
    community.services.config = community.services.config.model_copy(
        update={
            "discord": community.services.config.discord.model_copy(
                update={"training_permission_reference": "T-1", "training_permission_date": "2026-01-31"}
            )
        }
    )
    community.services.database.write(lambda db: members.set_consent(db, community.ann.id, "in", "test"))
    hook = community.guild.create_webhook(community.channel, "CI")
    await ask(community, "why?", await hook.send("Build 7 failed"))
    await ask(community, "and alone?", None)
    for answer in community.messages():
        await community.ann.react(answer, "👍")
    found = community.services.database.read(
        lambda db: eligibility.eligible_rows(db, f"guild:{community.guild.id}", permission_reference="T-1")
    )
    assert len(found.rows) == 1 and found.excluded == {"no_consent": 1}


async def test_another_bot_s_answer_is_read(community: Community, model_server: FakeModelServer) -> None:
    other = community.guild.add_member(community.env.create_user("oracle", bot=True))
    sent = await other.send(community.channel, "Forty-two.")
    await ask(community, "what does it mean?", sent)
    assert turns(model_server) == ["oracle: Forty-two.\nann: what does it mean?"]


async def test_a_poll_and_a_sticker_are_read_as_text(
    community: Community, model_server: FakeModelServer
) -> None:
    backend, place = community.env.backend, community.channel.id
    poll = Poll("Lunch?", [PollAnswer(1, "Soup"), PollAnswer(2, "Bread")], "2030-01-01T00:00:00+00:00")
    asked = backend.create_message(place, community.bob.id, "", poll=poll)
    await community.env.settle()
    await ask(community, "which one?", posted(community, asked))
    read = "bob: Poll: Lunch?\n1. Soup (0 votes)\n2. Bread (0 votes)\nann: which one?"
    assert turns(model_server) == [read]
    sent = backend.create_message(place, community.bob.id, "", stickers=[MessageSticker(7, "Wave", 1, 1)])
    await community.env.settle()
    await ask(community, "and this?", posted(community, sent))
    assert turns(model_server) == ["bob: [sticker: Wave]\nann: and this?"]
    assert STICKERS.format(names="Wave") in community.said()[-1]


async def test_a_chain_of_replies_is_read_from_its_beginning_with_names_kept_apart(
    community: Community, model_server: FakeModelServer
) -> None:
    first = await community.bob.send(community.channel, "I say leather.")
    second = await community.ann.send(community.channel, "I say linen.", reply_to=first)
    third = await community.bob.send(community.channel, "You are wrong.", reply_to=second)
    await ask(community, "who is right?", third)
    assert turns(model_server) == [
        "bob: I say leather.\nann: I say linen.\nbob: You are wrong.\nann: who is right?"
    ]


async def test_a_long_chain_is_read_from_its_end_and_that_is_said(
    community: Community, model_server: FakeModelServer
) -> None:
    last = await community.bob.send(community.channel, "number 0")
    for number in range(1, 7):
        last = await community.bob.send(community.channel, f"number {number}", reply_to=last)
    await ask(community, "sum?", last)
    assert turns(model_server) == [
        "\n".join([*(f"bob: number {number}" for number in range(3, 7)), "ann: sum?"])
    ]
    assert CHAIN_CUT.format(count=4) in community.said()[-1]


async def test_a_chain_that_reaches_an_answer_goes_on_from_it(
    community: Community, model_server: FakeModelServer
) -> None:
    await community.ann.send(community.channel, f"{community.mention} what is a strop?")
    (answer,) = community.messages()
    put(community, "triggers", "mention")
    bobs = await community.bob.send(community.channel, "I doubt that.", reply_to=answer)
    await ask(community, "who is right?", bobs)
    assert turns(model_server) == ["ann: what is a strop?", ANSWER, "bob: I doubt that.\nann: who is right?"]


async def test_the_message_that_a_thread_was_opened_on_is_read_once(
    community: Community, model_server: FakeModelServer
) -> None:
    bobs = await community.bob.send(community.channel, "The earth is flat.")
    channel = community.bot.get_partial_messageable(community.channel.id, guild_id=community.guild.id)
    opened = await (await channel.fetch_message(bobs.id)).create_thread(name="shapes")
    thread = handle(community, opened.id)
    await ask(community, "is it?", None, thread)
    assert turns(model_server) == ["bob: The earth is flat.\nann: is it?"]
    await ask(community, "sure?", None, thread)
    assert turns(model_server) == ["bob: The earth is flat.\nann: is it?", ANSWER, "ann: sure?"]


async def test_a_forum_post_is_read_with_its_title(
    community: Community, model_server: FakeModelServer
) -> None:
    forum = community.guild.create_forum_channel("help")
    backend = community.env.backend
    thread = backend.create_thread(forum.id, "Dull razor", community.bob.id)
    post = backend.create_message(thread.id, community.bob.id, "It pulls at the skin.")
    # A forum's thread bears the id of its first message.
    kept = backend.messages[thread.id].pop(post.id)
    kept.id = thread.id
    backend.messages[thread.id][thread.id] = kept
    await community.env.settle()
    await ask(community, "what to do?", None, handle(community, thread.id))
    assert turns(model_server) == ["bob: Dull razor\nIt pulls at the skin.\nann: what to do?"]


async def test_what_is_gone_or_has_no_words_is_said_below_the_answer(community: Community) -> None:
    bobs = await community.bob.send(community.channel, "soon gone")
    await community.bob.delete(bobs)
    community.env.backend.create_message(
        community.channel.id,
        community.ann.id,
        f"{community.mention} what was that?",
        reference={"channel_id": str(community.channel.id), "message_id": str(bobs.id)},
    )
    await community.env.settle()
    assert community.said() == [f"{ANSWER}\n\n{CITED_GONE}"]
    hook = community.guild.create_webhook(community.channel, "CI")
    picture = discord.Embed().set_image(url="https://example.org/a.png")
    await ask(community, "and that?", await hook.send(embed=picture))
    assert community.said()[-1] == f"{ANSWER}\n\n{CITED_WORDLESS}"
    photo = await community.bob.send(community.channel, "", attachments=[("cat.png", b"x")])
    await ask(community, "and that?", photo)
    assert community.said()[-1] == f"{ANSWER}\n\n-# I can't open cat.png: I read only text."


async def test_a_message_that_does_not_fit_is_read_at_both_ends_and_that_is_said(
    community: Community, model_server: FakeModelServer
) -> None:
    hook = community.guild.create_webhook(community.channel, "CI")
    log = "BEGIN " + "some words of a log " * 90 + "THE END"
    embeds = [discord.Embed(description=log[:1400]), discord.Embed(description=log[-1400:])]
    sent = await hook.send(log, embeds=embeds)
    put(community, "max_new_tokens", "1024")
    model_server.context_tokens = 1424
    await ask(community, "what is it?", sent)
    (read,) = turns(model_server)
    assert read.startswith("CI: BEGIN some words") and read.endswith("THE END\nann: what is it?")
    assert "left out" in read
    assert community.said()[-1] == f"{ANSWER}\n\n{SHORTENED}"


async def test_a_proxied_message_is_declined_in_words_once(community: Community) -> None:
    hook = community.guild.create_webhook(community.channel, "Proxy")
    for _ in range(2):
        await hook.send(f"{community.mention} hello", username="Luna")
    await hook.send("nothing for the bot")
    await hook.send(f"`{community.mention}` is how it is called")
    assert community.said() == [PROXIED]


async def test_deleting_what_was_referred_to_forgets_it(community: Community) -> None:
    bobs = await community.bob.send(community.channel, "my secret plan")
    await ask(community, "is it good?", bobs)
    await community.bob.delete(bobs)
    row = community.services.database.read(lambda db: conversations.by_discord_id(db, bobs.id))
    assert row is not None and row.content == "" and row.deleted_ms is not None
