"""Links to messages are opened for whoever may read them, where all who read along may; else it is said."""

from __future__ import annotations

from typing import Any

import discord
import pytest

from bot.chat.content.message_links import MOST_LINKED
from bot.chat.content.references import LINK_CLOSED, LINK_GONE, LINK_TAKEN, LINK_WORDLESS, LINKS_CUT
from storage.chat import conversations, members
from storage.learning import eligibility
from tests.bot.admin.test_settings import put
from tests.bot.chat.test_references import ANSWER, ask, turns
from tests.bot.conftest import Community
from tests.bot.fake_server import FakeModelServer

pytestmark = pytest.mark.parametrize("settings", ["[discord]\nmessage_content = true"], indirect=True)


def link(community: Community, message: Any, guild_id: int | None = None) -> str:
    place = community.guild.id if guild_id is None else guild_id
    return f"https://discord.com/channels/{place}/{message.channel.id}/{message.id}"


def closed_channel(community: Community, *, but_for: Any = None, deny: Any = None) -> Any:
    """A channel that everybody, or one member, can't see."""
    target = community.guild.default_role if deny is None else deny
    overwrites = {target: discord.PermissionOverwrite(view_channel=False)}
    if but_for is not None:
        overwrites[but_for] = discord.PermissionOverwrite(view_channel=True, read_message_history=True)
    overwrites[community.guild.me] = discord.PermissionOverwrite(view_channel=True, read_message_history=True)
    return community.guild.create_text_channel("closed", overwrites=overwrites)


async def test_a_message_elsewhere_that_everybody_may_read_is_read_under_its_author(
    community: Community, model_server: FakeModelServer
) -> None:
    other = community.guild.create_text_channel("other")
    bobs = await community.bob.send(other, "Leather first, then linen.")
    await ask(community, f"is {link(community, bobs)} right?", None)
    assert turns(model_server) == [f"bob: Leather first, then linen.\nann: is {link(community, bobs)} right?"]
    assert community.said() == [ANSWER]
    row = community.services.database.read(lambda db: conversations.by_discord_id(db, bobs.id))
    assert row is not None and row.author_id == community.bob.id and row.channel_id == other.id


async def test_a_linked_message_stands_below_what_the_question_replies_to(
    community: Community, model_server: FakeModelServer
) -> None:
    await community.ann.send(community.channel, f"{community.mention} what is a strop?")
    (answer,) = community.messages()
    bobs = await community.bob.send(community.channel, "A strop is a mood.")
    await ask(community, f"and {link(community, bobs)}?", answer)
    assert turns(model_server)[-1].startswith("bob: A strop is a mood.\nann: and https://")
    assert turns(model_server)[:-1] == ["ann: what is a strop?", ANSWER]


async def test_a_linked_message_of_somebody_who_said_no_keeps_the_reply_out_of_training(
    community: Community,
) -> None:
    database, scope = community.services.database, f"guild:{community.guild.id}"
    bobs = await community.bob.send(community.channel, "Leather first.")
    database.write(lambda db: members.set_consent(db, community.bob.id, "out", "test"))
    await ask(community, f"is {link(community, bobs)} right?", None)
    await ask(community, "and alone?", None)
    for answer in community.messages():
        await community.ann.react(answer, "👍")
    found = database.read(lambda db: eligibility.eligible_rows(db, scope, permission_reference=""))
    assert len(found.rows) == 1 and sum(found.excluded.values()) == 1


@pytest.mark.parametrize("who", ["nobody", "the asker may, the others not", "the asker may not"])
async def test_what_the_asker_or_the_others_may_not_read_stays_a_link_and_that_is_said(
    community: Community, model_server: FakeModelServer, who: str
) -> None:
    member = community.env.backend.guilds[community.guild.id].owner_id
    assert member != community.ann.id, "an owner reads everything"
    closed = closed_channel(
        community,
        but_for=community.ann if who.startswith("the asker may,") else None,
        deny=community.ann if who.endswith("may not") else None,
    )
    secret = community.env.backend.create_message(closed.id, community.bob.id, "the password is oak")
    await community.env.settle()
    address = f"https://discord.com/channels/{community.guild.id}/{closed.id}/{secret.id}"
    await ask(community, f"what is {address}?", None)
    assert turns(model_server) == [f"what is {address}?"]
    assert community.said() == [f"{ANSWER}\n\n{LINK_CLOSED}"]
    assert community.services.database.read(lambda db: conversations.by_discord_id(db, secret.id)) is None


async def test_another_server_s_message_stays_a_link_also_where_the_link_lies_about_its_server(
    community: Community, model_server: FakeModelServer
) -> None:
    neighbours = community.env.create_guild()
    room = neighbours.create_text_channel("theirs")
    owner = neighbours.add_member(community.env.create_user("eve"))
    theirs = await owner.send(room, "ours alone")
    for guild_id in (neighbours.id, community.guild.id):
        await ask(community, f"what is {link(community, theirs, guild_id)}?", None)
    assert all("ours alone" not in turn for turn in turns(model_server))
    assert community.said() == [f"{ANSWER}\n\n{LINK_CLOSED}"] * 2


async def test_what_is_gone_wordless_or_too_much_is_said(community: Community) -> None:
    gone = await community.bob.send(community.channel, "soon gone")
    await community.bob.delete(gone)
    hook = community.guild.create_webhook(community.channel, "CI")
    empty = await hook.send(embed=discord.Embed().set_image(url="https://example.org/a.png"))
    third = await community.bob.send(community.channel, "third")
    await ask(community, " ".join(link(community, each) for each in (gone, empty, third)), None)
    notes = "\n".join([LINK_GONE, LINK_WORDLESS, LINKS_CUT.format(count=MOST_LINKED)])
    assert community.said() == [f"{ANSWER}\n\n{notes}"]


async def test_a_link_to_an_answer_takes_its_conversation_up_or_says_that_it_is_another_one(
    community: Community, model_server: FakeModelServer
) -> None:
    put(community, "triggers", "mention")
    other = community.guild.create_text_channel("other")
    await community.ann.send(other, f"{community.mention} what is a strop?")
    (answer,) = community.messages(other)
    await ask(community, f"more of {link(community, answer)}", None)
    assert turns(model_server)[:-1] == ["what is a strop?", ANSWER]
    assert community.said() == [ANSWER]
    bobs = await community.bob.send(community.channel, "unrelated")
    await ask(community, f"and {link(community, answer)}?", bobs)
    assert community.said()[-1] == f"{ANSWER}\n\n{LINK_TAKEN}"


async def test_a_linked_message_is_forgotten_with_its_channel(community: Community) -> None:
    other = community.guild.create_text_channel("other")
    bobs = await community.bob.send(other, "my secret plan")
    await ask(community, f"is {link(community, bobs)} good?", None)
    database = community.services.database
    assert database.write(lambda db: conversations.delete_channel(db, other.id)) == 1
    row = database.read(lambda db: conversations.by_discord_id(db, bobs.id))
    assert row is not None and row.content == ""


async def test_a_slash_command_s_links_are_opened_as_well(
    community: Community, model_server: FakeModelServer
) -> None:
    bobs = await community.bob.send(community.channel, "Leather first.")
    await community.ann.slash(community.channel, "ask", prompt=f"is {link(community, bobs)} right?")
    assert turns(model_server) == [f"bob: Leather first.\nann: is {link(community, bobs)} right?"]
