"""What people can do with a reply: write it again, stop it, page, correct, ask why, report."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import discord
import pytest

from bot.app import make_client
from bot.chat.answerer import Answerer
from bot.client import StropClient
from bot.delivery.streaming import Paces
from bot.feedback import corrections, reply_actions, reports
from bot.feedback.reactions import RatingRecorder
from bot.feedback.reply_actions import ReplyActions
from bot.feedback.reply_buttons import EMOJI
from storage.admin import audit, blocks
from storage.chat import reply_versions
from storage.feedback import ratings
from storage.feedback.ratings import Rating
from storage.privacy import erasure
from tests.bot.conftest import Community
from tests.bot.fake_server import FakeModelServer
from tests.bot.test_commands import text

FIRST_WORDS = "Hello there, friend."


@pytest.fixture
async def reply(community: Community) -> Any:
    """One answered question of ann's; its Discord message."""
    await community.ann.send(community.channel, f"{community.mention} hello")
    return community.messages()[0]


def buttons(message: Any) -> list[str]:
    """The faces of the buttons below a message, with their labels."""
    found = []
    for row in message.components:
        for button in row["components"] if isinstance(row, dict) else row.children:
            data = button if isinstance(button, dict) else button.to_dict()
            found.append(f"{(data.get('emoji') or {}).get('name', '')}{data.get('label') or ''}")
    return found


def told(result: Any) -> str:
    """What somebody who pressed a button was told in private."""
    assert all(message.ephemeral for message in result.followups)
    return "\n".join(message.content for message in result.followups)


def press(action: str, reply_id: str) -> dict[str, str]:
    return {"custom_id": f"strop:reply:{action}:{reply_id}"}


def standing(community: Community, reply_id: str) -> list[Rating]:
    stored = community.services.database.read(lambda db: ratings.list_for_reply(db, reply_id))
    return [rating for rating in stored if not rating.retracted]


async def test_a_finished_reply_has_three_small_grey_buttons(community: Community, reply: Any) -> None:
    assert buttons(reply) == [EMOJI["regenerate"], EMOJI["better"], EMOJI["why"]]
    posts = [r for r in community.env.http_requests if r.path.endswith("/messages") and r.method == "POST"]
    assert {button["style"] for button in posts[-1].json["components"][0]["components"]} == {2}


@pytest.mark.parametrize("settings", ["[replies]\nbuttons = []"])
async def test_the_buttons_can_be_switched_off(community: Community, reply: Any) -> None:
    assert buttons(reply) == []


@pytest.mark.parametrize("settings", ['[replies]\nbuttons = ["why"]'])
async def test_only_the_wanted_buttons_are_shown(community: Community, reply: Any) -> None:
    assert buttons(reply) == [EMOJI["why"]]


async def test_regenerating_keeps_the_earlier_version_and_pages(
    community: Community, model_server: FakeModelServer, reply: Any
) -> None:
    (first,) = community.replies()
    model_server.answer = "Another way to say it."
    await community.ann.click(reply, **press("regenerate", first.id))

    assert community.said() == ["Another way to say it."]
    _, second = community.replies()
    assert (second.status, second.prompt, second.asker_id) == ("complete", first.prompt, community.ann.id)
    assert second.seed != first.seed
    message = community.messages()[0]
    assert message.id == reply.id
    assert buttons(message)[:2] == [EMOJI["back"], f"{EMOJI['forward']}2/2"]

    await community.ann.click(message, **press("back", second.id))
    assert community.said() == [FIRST_WORDS]
    assert f"{EMOJI['forward']}1/2" in buttons(community.messages()[0])
    await community.ann.click(community.messages()[0], **press("forward", first.id))
    assert community.said() == ["Another way to say it."]


async def test_ratings_go_to_the_version_that_is_shown(
    community: Community, model_server: FakeModelServer, reply: Any
) -> None:
    await community.bob.react(reply, "👍")
    (first,) = community.replies()
    model_server.answer = "Worse."
    await community.ann.click(reply, **press("regenerate", first.id))
    second = community.replies()[1]
    await community.ann.react(reply, "👎")

    assert [(r.user_id, r.value) for r in standing(community, first.id)] == [(community.bob.id, 1)]
    assert [(r.user_id, r.value) for r in standing(community, second.id)] == [(community.ann.id, -1)]
    assert await community.bot.feature(RatingRecorder).reconcile() == 0
    assert [(r.user_id, r.value) for r in standing(community, first.id)] == [(community.bob.id, 1)]


async def test_a_reaction_taken_off_counts_for_the_version_that_it_was_given_to(
    community: Community, model_server: FakeModelServer, reply: Any
) -> None:
    await community.bob.react(reply, "👍")
    (first,) = community.replies()
    await community.ann.click(reply, **press("regenerate", first.id))
    await community.bob.unreact(reply, "👍")
    assert standing(community, first.id) == []
    await community.bob.react(reply, "👍")
    assert len(standing(community, community.replies()[1].id)) == 1


async def test_later_turns_go_on_from_the_version_shown(
    community: Community, model_server: FakeModelServer, reply: Any
) -> None:
    (first,) = community.replies()
    model_server.answer = "Second version."
    await community.ann.click(reply, **press("regenerate", first.id))
    await community.ann.send(community.channel, "go on", reply_to=reply)
    assert [turn["content"] for turn in model_server.prompt()[1:]] == ["hello", "Second version.", "go on"]

    follow_up = community.messages()[-1]
    await community.ann.click(community.messages()[0], **press("back", community.replies()[1].id))
    await community.ann.send(community.channel, "and on", reply_to=follow_up)
    assert model_server.prompt()[2]["content"] == FIRST_WORDS


async def test_others_than_the_asker_and_operators_can_not_regenerate(
    community: Community, model_server: FakeModelServer
) -> None:
    await community.bob.send(community.channel, f"{community.mention} hello")
    (reply,) = community.replies()
    stranger = community.guild.add_member(community.env.create_user("carl"))
    message = community.messages()[0]
    refused = await stranger.click(message, **press("regenerate", reply.id))
    assert told(refused) == reply_actions.NOT_YOURS
    await community.ann.click(message, **press("regenerate", reply.id))
    assert len(community.replies()) == 2


async def test_a_stranger_reads_an_earlier_version_privately(
    community: Community, model_server: FakeModelServer, reply: Any
) -> None:
    (first,) = community.replies()
    model_server.answer = "Second version."
    await community.ann.click(reply, **press("regenerate", first.id))
    second = community.replies()[1]
    seen = await community.bob.click(community.messages()[0], **press("back", second.id))
    assert FIRST_WORDS in told(seen) and "Version 1 of 2" in told(seen)
    assert community.said() == ["Second version."]


async def test_a_failed_regeneration_leaves_the_earlier_version(
    community: Community, model_server: FakeModelServer, reply: Any
) -> None:
    (first,) = community.replies()
    await model_server.stop()
    failed = await community.ann.click(reply, **press("regenerate", first.id))
    assert "not reachable" in told(failed)
    assert community.said() == [FIRST_WORDS]
    assert buttons(community.messages()[0])[0] == EMOJI["regenerate"]
    await model_server.start()


async def test_a_failed_third_version_leaves_the_arrows(
    community: Community, model_server: FakeModelServer, reply: Any
) -> None:
    (first,) = community.replies()
    await community.ann.click(reply, **press("regenerate", first.id))
    second = community.replies()[1]
    before = buttons(community.messages()[0])
    await model_server.stop()
    await community.ann.click(community.messages()[0], **press("regenerate", second.id))
    assert buttons(community.messages()[0]) == before
    assert f"{EMOJI['forward']}2/2" in before
    await model_server.start()


async def test_the_versions_have_a_limit(community: Community, reply: Any) -> None:
    limits = community.services.config.replies.model_copy(update={"most_versions": 2})
    community.services.config = community.services.config.model_copy(update={"replies": limits})
    (first,) = community.replies()
    await community.ann.click(reply, **press("regenerate", first.id))
    second = community.replies()[1]
    refused = await community.ann.click(community.messages()[0], **press("regenerate", second.id))
    assert "2 versions" in text(refused)


async def test_versions_of_different_lengths_send_and_take_back_messages(
    community: Community, model_server: FakeModelServer, reply: Any
) -> None:
    (first,) = community.replies()
    model_server.answer = " ".join(f"word{number}" for number in range(600))
    await community.ann.click(reply, **press("regenerate", first.id))
    assert len(community.said()) == 3
    assert [bool(buttons(message)) for message in community.messages()] == [False, False, True]
    second = community.replies()[1]

    await community.ann.click(community.messages()[-1], **press("back", second.id))
    assert community.said() == [FIRST_WORDS]
    assert buttons(community.messages()[0])
    await community.ann.click(community.messages()[0], **press("forward", first.id))
    assert " ".join(community.said()).split() == model_server.answer.split()
    assert community.replies()[1].text == model_server.answer


async def test_an_edited_question_is_answered_as_it_stands(
    community: Community, model_server: FakeModelServer
) -> None:
    asked = await community.ann.send(community.channel, f"{community.mention} helo")
    await community.ann.edit(asked, f"{community.mention} hello to you")
    (first,) = community.replies()
    await community.ann.click(community.messages()[0], **press("regenerate", first.id))
    assert model_server.prompt()[-1]["content"] == "hello to you"


async def test_a_deleted_question_is_not_answered_again(
    community: Community, model_server: FakeModelServer
) -> None:
    asked = await community.ann.send(community.channel, f"{community.mention} hello")
    await community.ann.delete(asked)
    (first,) = community.replies()
    refused = await community.ann.click(community.messages()[0], **press("regenerate", first.id))
    assert told(refused) == reply_actions.ASKED_GONE


async def test_deleting_the_message_forgets_every_version(
    community: Community, model_server: FakeModelServer, reply: Any
) -> None:
    (first,) = community.replies()
    await community.ann.click(reply, **press("regenerate", first.id))
    await community.env.bot.http.delete_message(community.channel.id, reply.id)
    await community.env.settle()
    assert [each.text for each in community.replies()] == ["", ""]


async def test_ask_keeps_its_question_above_another_version(
    community: Community, model_server: FakeModelServer
) -> None:
    await community.bob.slash(community.channel, "ask", prompt="what is this?")
    (first,) = community.replies()
    model_server.answer = "Second version."
    await community.bob.click(community.messages()[0], **press("regenerate", first.id))
    assert community.said() == ["> what is this?\n\nSecond version."]


# ------------------------------------------------------------------ stop


async def writing(community: Community, model_server: FakeModelServer) -> Any:
    """A reply of bob's that is half written; its Discord message."""
    model_server.gate = asyncio.Event()
    model_server.answer = "one two three four"
    community.env.backend.create_message(community.channel.id, community.bob.id, f"{community.mention} count")
    await until(lambda: community.messages() and community.replies())
    return community.messages()[-1]


async def until(check: Any) -> None:
    async with asyncio.timeout(30):
        while not check():  # noqa: ASYNC110 - the condition is the bot's, without an event
            await asyncio.sleep(0.02)


@contextlib.contextmanager
def while_writing(community: Community) -> Iterator[None]:
    """Let somebody act while a reply goes on: the bot doesn't come to rest, and nobody waits for that."""
    usual, community.env.settle_timeout = community.env.settle_timeout, 0.3
    try:
        with contextlib.suppress(TimeoutError):
            yield
    finally:
        community.env.settle_timeout = usual


@pytest.mark.parametrize("who", ["asker", "operator"])
async def test_stopping_keeps_what_is_there_and_frees_the_model(
    community: Community, model_server: FakeModelServer, who: str
) -> None:
    message = await writing(community, model_server)
    (reply,) = community.replies()
    assert buttons(message) == [EMOJI["stop"]]
    member = community.bob if who == "asker" else community.ann
    await member.click(message, **press("stop", reply.id))
    await until(lambda: community.replies()[0].status == "stopped")
    await until(lambda: model_server.cut_off == 1)
    await until(lambda: "Stopped" in community.said()[0])
    (reply,) = community.replies()
    assert (reply.text, community.said()[0]) == ("one two", "one two\n\n-# Stopped.")
    assert EMOJI["regenerate"] in buttons(community.messages()[0])
    assert community.bot.feature(Answerer).in_flight == 0
    again = await member.click(community.messages()[0], **{"custom_id": buttons_id(community, "why")})
    assert "wrote this" in text(again)


def buttons_id(community: Community, action: str) -> str:
    return f"strop:reply:{action}:{community.replies()[-1].id}"


async def test_strangers_can_not_stop_but_moderators_can(
    community: Community, model_server: FakeModelServer
) -> None:
    stranger = community.guild.add_member(community.env.create_user("carl"))
    role = community.guild.create_role("mods", permissions=discord.Permissions(manage_messages=True))
    moderator = community.guild.add_member(community.env.create_user("mo"), roles=[role])
    message = await writing(community, model_server)
    (reply,) = community.replies()
    with while_writing(community):
        await stranger.click(message, **press("stop", reply.id))

    def hidden() -> list[str]:
        return [r.json["content"] for r in community.env.http_requests if "/webhooks/" in r.path]

    await until(hidden)
    assert hidden() == [reply_actions.NOT_YOURS_TO_STOP]
    assert community.bot.feature(Answerer).in_flight == 1
    await moderator.click(message, **press("stop", reply.id))
    await until(lambda: community.replies()[0].status == "stopped")
    entry = community.services.database.read(audit.latest)[0]
    assert (entry.actor, entry.action, entry.detail) == (
        str(moderator.id),
        "reply.stop",
        {"reply_id": reply.id},
    )


async def test_stopping_what_is_finished_says_so(community: Community, reply: Any) -> None:
    result = await community.ann.context_menu(community.channel, "Stop writing", reply)
    assert text(result) == reply_actions.NOTHING_TO_STOP


# ------------------------------------------------------------------ better answers


async def test_a_better_answer_is_kept_changed_and_taken_back(community: Community, reply: Any) -> None:
    (first,) = community.replies()

    async def send(words: str) -> str:
        opened = await community.bob.click(reply, **press("better", first.id))
        return text(await community.bob.submit_modal(opened, {"text": words}))

    assert await send("Ahoy!") == corrections.KEPT
    (kept,) = standing(community, first.id)
    assert (kept.kind, kept.means, kept.text, kept.user_id) == (
        "correction",
        "modal",
        "Ahoy!",
        community.bob.id,
    )
    assert await send("Ahoy, sailor!") == corrections.KEPT
    assert [each.text for each in standing(community, first.id)] == ["Ahoy, sailor!"]
    assert await send("  ") == corrections.TAKEN_BACK
    assert standing(community, first.id) == []
    assert await send("") == corrections.NONE_THERE
    assert await send(FIRST_WORDS) == corrections.SAME
    stored = community.services.database.read(lambda db: ratings.list_for_reply(db, first.id))
    assert [each.text for each in stored] == [None]


async def test_a_better_answer_to_an_erased_reply_is_refused(community: Community, reply: Any) -> None:
    (first,) = community.replies()
    opened = await community.bob.click(reply, **press("better", first.id))
    community.services.database.write(lambda db: erasure.erase_member(db, community.ann.id, "test"))
    assert text(await community.bob.submit_modal(opened, {"text": "Ahoy!"})) == corrections.GONE
    assert text(await community.bob.click(reply, **press("better", first.id))) == reply_actions.GONE


# ------------------------------------------------------------------ why


async def test_why_says_where_a_reply_came_from(community: Community, reply: Any) -> None:
    (first,) = community.replies()
    why = await community.bob.click(reply, **press("why", first.id))
    assert why.ephemeral
    assert "base model" in text(why) and f"`{first.seed}`" in text(why) and "wrote 3" in text(why)


async def test_a_button_of_an_unknown_reply_says_so(community: Community, reply: Any) -> None:
    del reply
    known = await community.bot.feature(ReplyActions).find_reply("r0")
    assert known is None


# ------------------------------------------------------------------ the context menu


async def test_the_menu_offers_the_same_and_reports(community: Community, reply: Any) -> None:
    why = await community.bob.context_menu(community.channel, "Why this reply?", reply)
    assert "base model" in text(why)
    opened = await community.bob.context_menu(community.channel, "Better answer", reply)
    assert text(await community.bob.submit_modal(opened, {"text": "Ahoy!"})) == corrections.KEPT
    done = await community.ann.context_menu(community.channel, "Regenerate", reply)
    assert "another version" in text(done) and len(community.replies()) == 2


async def test_the_menu_on_a_message_of_somebody_else_says_so(community: Community) -> None:
    asked = await community.ann.send(community.channel, "hello everyone")
    for name in ("Regenerate", "Better answer", "Why this reply?", "Report reply"):
        assert text(await community.bob.context_menu(community.channel, name, asked)) == reply_actions.UNKNOWN


async def test_a_report_reaches_the_operators_with_a_link_and_no_copy(
    community: Community, reply: Any
) -> None:
    (first,) = community.replies()
    opened = await community.bob.context_menu(community.channel, "Report reply", reply)
    assert text(await community.bob.submit_modal(opened, {"text": "It was rude."})) == reports.THANKS

    direct = community.said(community.ann.user.dm_channel)
    assert len(direct) == 1 and f"/{community.channel.id}/{reply.id}" in direct[0]
    assert "> It was rude." in direct[0] and FIRST_WORDS not in direct[0]
    entry = community.services.database.read(audit.latest)[0]
    assert (entry.action, entry.detail) == ("reply.report", {"reply_id": first.id})
    again = await community.bob.context_menu(community.channel, "Report reply", reply)
    assert text(await community.bob.submit_modal(again, {"text": "Still."})) == reports.TWICE


async def test_versions_survive_in_storage(community: Community, reply: Any) -> None:
    (first,) = community.replies()
    await community.ann.click(reply, **press("regenerate", first.id))
    found = community.services.database.read(lambda db: reply_versions.of(db, first.id))
    assert (found.total, found.number) == (2, 2)
    assert isinstance(community.bot, StropClient)


# ------------------------------------------------------------------ a restart in between


async def restart(community: Community) -> None:
    await community.env.restart_bot(make_client(community.services))
    await community.env.settle()


async def test_the_buttons_work_after_a_restart(
    community: Community, model_server: FakeModelServer, reply: Any
) -> None:
    (first,) = community.replies()
    await restart(community)
    model_server.answer = "Second version."
    await community.ann.click(reply, **press("regenerate", first.id))
    await restart(community)
    second = community.replies()[1]
    await community.ann.click(community.messages()[0], **press("back", second.id))
    assert community.said() == [FIRST_WORDS]


async def test_a_form_that_was_opened_before_a_restart_is_still_taken(
    community: Community, reply: Any
) -> None:
    (first,) = community.replies()
    opened = await community.bob.click(reply, **press("better", first.id))
    await restart(community)
    done = await community.bob.submit_modal(opened, {"text": "Ahoy!"})
    assert text(done) == corrections.KEPT
    assert [each.text for each in standing(community, first.id)] == ["Ahoy!"]


def half_written(community: Community, reply_id: str) -> None:
    community.services.database.write(
        lambda db: (
            db.conn.execute("UPDATE replies SET status = 'streaming' WHERE id = ?", (reply_id,)),
            db.conn.execute(
                "UPDATE messages SET content = '' WHERE id = (SELECT message_id FROM replies WHERE id = ?)",
                (reply_id,),
            ),
        )
    )


async def test_a_version_that_a_crash_left_half_written_gives_way_to_the_earlier_one(
    community: Community, model_server: FakeModelServer, reply: Any
) -> None:
    (first,) = community.replies()
    model_server.answer = "Second ver"
    await community.ann.click(reply, **press("regenerate", first.id))
    half_written(community, community.replies()[1].id)
    await restart(community)
    assert community.said() == [FIRST_WORDS]
    assert buttons(community.messages()[0])[0] == EMOJI["regenerate"]
    found = community.services.database.read(lambda db: reply_versions.of(db, first.id))
    assert found.total == 1


async def test_a_reply_that_a_crash_left_half_written_can_be_written_again(
    community: Community, model_server: FakeModelServer, reply: Any
) -> None:
    (first,) = community.replies()
    half_written(community, first.id)
    await restart(community)
    assert buttons(community.messages()[0]) == [EMOJI["regenerate"]]
    model_server.answer = "Now whole."
    await community.ann.click(community.messages()[0], **press("regenerate", first.id))
    assert community.said() == ["Now whole."]


# ------------------------------------------------------------------ at the same time


async def test_two_who_regenerate_at_once_get_one_version(
    community: Community, model_server: FakeModelServer, reply: Any
) -> None:
    (first,) = community.replies()
    busy = community.bot.feature(ReplyActions)
    known = await busy.find_reply(first.id)
    assert known is not None
    busy._changing.add(first.id)
    refused = await community.ann.click(reply, **press("regenerate", first.id))
    assert told(refused) == reply_actions.BUSY and len(community.replies()) == 1


async def test_a_message_that_is_deleted_while_it_is_written_again_stays_deleted(
    community: Community, model_server: FakeModelServer, reply: Any
) -> None:
    (first,) = community.replies()
    model_server.answer = "one two three four"
    model_server.gate = asyncio.Event()
    community.bot.feature(Answerer).paces = Paces(0.0)
    with while_writing(community):
        await community.ann.click(reply, **press("regenerate", first.id))
    await until(lambda: community.said() == ["one two"])
    community.env.backend.delete_message(community.channel.id, reply.id)
    await until(lambda: community.replies()[0].text == "")
    await until(lambda: model_server.cut_off == 1 and community.bot.feature(Answerer).in_flight == 0)
    assert [each.text for each in community.replies()] == ["", ""]
    assert community.said() == []


async def test_a_blocked_member_can_not_have_a_reply_written_again(
    community: Community, model_server: FakeModelServer, reply: Any
) -> None:
    (first,) = community.replies()
    guild_id, ann = community.guild.id, community.ann.id
    community.services.database.write(
        lambda db: blocks.block(db, guild_id=guild_id, user_id=ann, actor="1", reason="")
    )
    refused = await community.ann.click(reply, **press("regenerate", first.id))
    assert "moderator" in told(refused)
    assert len(community.replies()) == 1


async def test_another_servers_buttons_and_forms_open_nothing(community: Community, reply: Any) -> None:
    """The ids in them come from whoever pressed: the server of the press is compared with the reply's."""
    (first,) = community.replies()
    community.services.database.write(
        lambda db: db.conn.execute(
            "UPDATE conversations SET guild_id = 1 WHERE id = ?", (first.conversation_id,)
        )
    )
    for action in ("why", "regenerate", "better"):
        result = await community.bob.click(reply, **press(action, first.id))
        assert reply_actions.UNKNOWN in text(result)
    assert community.services.database.read(lambda db: ratings.list_for_reply(db, first.id)) == []
    assert len(community.replies()) == 1
