"""Two candidates side by side: shown in any order, voted on by button, and revealed only to who voted."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bot.app import make_client
from bot.feedback import reply_actions, side_by_side
from bot.feedback.reactions import RatingRecorder
from bot.feedback.reply_buttons import EMOJI
from bot.services import Services
from storage.chat import open_replies
from storage.feedback import ratings
from storage.feedback import side_by_side as comparisons
from storage.learning import loop_status
from storage.privacy import consent
from tests.bot.admin.test_settings import put
from tests.bot.conftest import Community
from tests.bot.fake_server import BASE_HASH, FakeModelServer
from tests.bot.feedback.test_reply_buttons import buttons, until
from tests.bot.test_commands import FIRST, SECOND, register, text

ALWAYS = pytest.mark.parametrize("settings", ["[replies]\ncompare = 1.0"])


def vote(choice: str, first_id: str) -> dict[str, str]:
    return {"custom_id": f"strop:compare:{first_id}:{choice}"}


async def pair(community: Community) -> comparisons.Comparison:
    """One question of ann's with two candidates."""
    await community.ann.send(community.channel, f"{community.mention} hello")
    found = community.services.database.read(lambda db: comparisons.of(db, community.replies()[0].id))
    assert found is not None
    return found


def votes(community: Community, reply_id: str) -> dict[int, int]:
    stored = community.services.database.read(lambda db: ratings.list_for_reply(db, reply_id))
    return {each.user_id: each.value for each in stored if each.kind == "vote" and not each.retracted}


@ALWAYS
async def test_two_candidates_stand_in_one_message_with_three_buttons(
    community: Community, model_server: FakeModelServer
) -> None:
    found = await pair(community)
    (shown,) = community.said()
    assert shown.startswith("**A**\nHello there, friend.\n\n**B**\nHello there, friend.")
    assert buttons(community.messages()[0]) == ["A", "Tie", "B"]
    assert {each.status for each in community.replies()} == {"complete"}
    assert len({each["seed"] for each in model_server.requests}) == 2
    assert {found.first_id, found.second_id} == {each.id for each in community.replies()}


@ALWAYS
async def test_a_pair_that_two_crashes_cut_short_is_written_anew_once(
    community: Community, services: Services
) -> None:
    """The rows of both candidates are left; one of them waits for Discord while the other is answered."""
    await pair(community)

    def cut_short(db: Any) -> None:
        for table in ("comparisons", "reply_versions", "reply_parts"):
            db.conn.execute(f"DELETE FROM {table}")
        db.conn.execute("UPDATE replies SET status = 'failed', error = ?", (open_replies.INTERRUPTED,))

    services.database.write(cut_short)
    with community.unheard() as backend:
        backend.delete_message(community.channel.id, community.messages()[0].id)
    community.env.inject_error("GET", "/channels/*/messages")
    await community.env.restart_bot(make_client(services))
    await community.env.advance_time(60)
    community.bot.start_session_jobs()
    await community.env.advance_time(60)
    assert [buttons(message) for message in community.messages()] == [["A", "Tie", "B"]]
    assert sorted(reply.status for reply in community.replies()) == ["complete"] * 2 + ["failed"] * 2


@ALWAYS
async def test_a_server_s_admins_can_switch_two_answers_off_for_themselves(community: Community) -> None:
    put(community, "two_answers", "off")
    await community.ann.send(community.channel, f"{community.mention} hello")
    assert community.said() == ["Hello there, friend."]
    put(community, "two_answers", "on", channel=community.channel)
    await community.ann.send(community.channel, f"{community.mention} hello")
    assert "**B**" in community.said()[-1]


@ALWAYS
async def test_the_champion_meets_its_predecessor_and_the_vote_reveals_which_is_which(
    community: Community, model_server: FakeModelServer
) -> None:
    register(community, FIRST, promote=True)
    register(community, SECOND, promote=True)
    found = await pair(community)
    assert {each.adapter_id for each in community.replies()} == {FIRST, SECOND}
    assert FIRST not in community.said()[0]
    message = community.messages()[0]
    hidden = await community.bob.context_menu(community.channel, "Why this reply?", message)
    assert text(hidden) == reply_actions.VOTE_FIRST

    told = await community.bob.click(message, **vote("first", found.first_id))
    by_id = {each.id: each.adapter_id for each in community.replies()}
    assert f"A is adapter `{by_id[found.first_id]}`" in text(told)
    assert f"B is adapter `{by_id[found.second_id]}`" in text(told)
    assert votes(community, found.first_id) == {community.bob.id: 1}
    assert votes(community, found.second_id) == {community.bob.id: -1}
    assert "wrote this" in text(
        await community.bob.context_menu(community.channel, "Why this reply?", message)
    )


@ALWAYS
@pytest.mark.parametrize(("choice", "value"), [("first", 1), ("second", -1), ("tie", 0)])
async def test_a_vote_rates_both_and_is_taken_back_by_the_same_button(
    community: Community, choice: str, value: int
) -> None:
    found = await pair(community)
    message = community.messages()[0]
    await community.bob.click(message, **vote(choice, found.first_id))
    assert votes(community, found.first_id) == {community.bob.id: value}
    assert votes(community, found.second_id) == {community.bob.id: -value}
    told = await community.bob.click(message, **vote(choice, found.first_id))
    assert text(told) == side_by_side.TAKEN_BACK and votes(community, found.first_id) == {}


@ALWAYS
async def test_a_pair_closes_when_somebody_in_it_opts_out_and_votes_can_still_be_taken_back(
    community: Community,
) -> None:
    found, database = await pair(community), community.services.database
    message = community.messages()[0]
    await community.bob.click(message, **vote("first", found.first_id))
    database.write(lambda db: consent.decide(db, community.ann.id, "out", "test", permission_reference=""))
    told = await community.ann.click(message, **vote("first", found.first_id))
    assert text(told) == side_by_side.CLOSED and set(votes(community, found.first_id)) == {community.bob.id}
    told = await community.bob.click(message, **vote("first", found.first_id))
    assert text(told) == side_by_side.TAKEN_BACK and votes(community, found.first_id) == {}


@ALWAYS
async def test_who_was_told_which_is_which_casts_no_other_vote(community: Community) -> None:
    found = await pair(community)
    message = community.messages()[0]
    await community.bob.click(message, **vote("first", found.first_id))
    told = await community.bob.click(message, **vote("second", found.first_id))
    assert text(told) == side_by_side.TOLD_BEFORE
    assert votes(community, found.first_id) == {community.bob.id: 1}
    await community.bob.click(message, **vote("first", found.first_id))
    told = await community.bob.click(message, **vote("tie", found.first_id))
    assert text(told) == side_by_side.TOLD_BEFORE and votes(community, found.first_id) == {}


@ALWAYS
async def test_later_turns_go_on_from_the_preferred_candidate(
    community: Community, model_server: FakeModelServer
) -> None:
    found = await pair(community)
    community.services.database.write(
        lambda db: db.conn.execute(
            "UPDATE messages SET content = 'preferred' "
            "WHERE id = (SELECT message_id FROM replies WHERE id = ?)",
            (found.second_id,),
        )
    )
    for member in (community.ann, community.bob):
        await member.click(community.messages()[0], **vote("second", found.first_id))
    await community.ann.send(community.channel, "go on", reply_to=community.messages()[0])
    assert model_server.prompt()[2]["content"] == "preferred"


@ALWAYS
async def test_votes_survive_a_restart_and_are_counted_in_status(community: Community, services: Any) -> None:
    found = await pair(community)
    await community.env.restart_bot(make_client(services))
    await community.env.settle()
    await community.bob.click(community.messages()[0], **vote("first", found.first_id))
    scope = f"guild:{community.guild.id}"
    seen = services.database.read(lambda db: loop_status.read(db, scope, BASE_HASH))
    assert seen.compared == loop_status.Compared(pairs=1, votes=1)
    assert "Side by side in the chat: 1 pair, 1 vote" in text(
        await community.bob.slash(community.channel, "status")
    )


@ALWAYS
async def test_a_thumb_on_two_answers_means_neither(community: Community) -> None:
    await pair(community)
    await community.bob.react(community.messages()[0], "👍")
    stored = [
        each
        for reply in community.replies()
        for each in community.services.database.read(lambda db, i=reply.id: ratings.list_for_reply(db, i))
    ]
    assert stored == []
    assert await community.bot.feature(RatingRecorder).reconcile() == 0


@ALWAYS
async def test_a_pair_can_not_be_regenerated_or_corrected(community: Community) -> None:
    await pair(community)
    message = community.messages()[0]
    for name in ("Regenerate", "Better answer"):
        refused = await community.ann.context_menu(community.channel, name, message)
        assert text(refused) == reply_actions.COMPARED


@ALWAYS
async def test_a_candidate_that_fails_leaves_the_usual_one_alone(
    community: Community, model_server: FakeModelServer
) -> None:
    model_server.answers_before_refusing = 1
    await community.ann.send(community.channel, f"{community.mention} hello")
    assert community.said() == ["Hello there, friend."]
    assert buttons(community.messages()[0])[0] == EMOJI["regenerate"]
    assert sorted(each.status for each in community.replies()) == ["complete", "failed"]


@ALWAYS
async def test_stopping_a_pair_ends_both(community: Community, model_server: FakeModelServer) -> None:
    model_server.gate = asyncio.Event()
    model_server.answer = "one two three four"
    community.env.backend.create_message(community.channel.id, community.bob.id, f"{community.mention} count")
    await until(lambda: community.messages() and "two" in community.said()[0])
    custom_id = community.messages()[0].components[0].children[0].custom_id
    await community.bob.click(community.messages()[0], custom_id=custom_id)
    await until(lambda: model_server.cut_off == 2)
    await until(lambda: [each.status for each in community.replies()] == ["stopped", "stopped"])
    assert community.said() == ["one two\n\n-# Stopped."]


@pytest.mark.parametrize("settings", ["[replies]\ncompare = 1.0"])
async def test_a_server_can_stay_out(community: Community) -> None:
    replies = community.services.config.replies.model_copy(update={"compare_not_in": (community.guild.id,)})
    community.services.config = community.services.config.model_copy(update={"replies": replies})
    await community.ann.send(community.channel, f"{community.mention} hello")
    assert community.said() == ["Hello there, friend."] and len(community.replies()) == 1


@ALWAYS
async def test_direct_messages_get_one_answer(community: Community) -> None:
    await community.bob.send_dm("hello")
    assert len(community.replies()) == 1


async def test_by_default_nothing_is_compared(community: Community) -> None:
    await community.ann.send(community.channel, f"{community.mention} hello")
    assert len(community.replies()) == 1
