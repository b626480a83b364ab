"""/forget, /block, /unblock and /blocked."""

from __future__ import annotations

import discord
import pytest

from bot.admin.moderation import AFRESH
from bot.chat.listener import BLOCKED
from storage.admin import audit
from tests.bot.admin.test_settings import liked
from tests.bot.chat.test_triggers import turns
from tests.bot.conftest import Community
from tests.bot.fake_server import FakeModelServer
from tests.bot.test_commands import text


@pytest.fixture(autouse=True)
async def moderator(community: Community) -> None:
    role = community.guild.create_role("mod", permissions=discord.Permissions(moderate_members=True))
    community.env.backend.guilds[community.guild.id].members[community.ann.id].role_ids.append(role.id)


async def test_after_forget_nothing_from_before_is_context_not_even_by_replying_to_it(
    community: Community, model_server: FakeModelServer
) -> None:
    await community.ann.send(community.channel, f"{community.mention} my name is Ann")
    (first,) = community.messages()
    result = await community.bob.slash(community.channel, "forget")
    assert result.ephemeral and result.response.content == AFRESH
    (told,) = result.followups
    assert not told.ephemeral and "start afresh" in told.content

    await community.ann.send(community.channel, f"{community.mention} who am I?", reply_to=first)
    assert turns(model_server) == ["who am I?"]
    second = community.messages()[-1]
    await community.ann.send(community.channel, f"{community.mention} and now?", reply_to=second)
    assert turns(model_server) == ["who am I?", "Hello there, friend.", "and now?"]


async def test_forget_works_in_direct_messages_and_leaves_other_places_alone(
    community: Community, model_server: FakeModelServer
) -> None:
    await community.ann.send(community.channel, f"{community.mention} one")
    (first,) = community.messages()
    await community.bob.send_dm("my name is Bob")
    await community.bob.send_dm("who am I?")
    assert turns(model_server) == ["my name is Bob", "Hello there, friend.", "who am I?"]
    await community.bob.user.slash("forget")
    await community.bob.send_dm("who am I?")
    assert turns(model_server) == ["who am I?"]
    await community.ann.send(community.channel, f"{community.mention} two", reply_to=first)
    assert turns(model_server) == ["one", "Hello there, friend.", "two"]


async def test_a_blocked_member_gets_no_answer_and_rates_nothing(community: Community) -> None:
    await community.ann.send(community.channel, f"{community.mention} hello")
    (message,) = community.messages()
    await community.bob.react(message, "👍")
    result = await community.ann.slash(community.channel, "block", member=community.bob, reason="spam")
    assert result.ephemeral and "is blocked now" in text(result)
    assert liked(community) == [1]  # what was rated before stands

    await community.bob.send(community.channel, f"{community.mention} hello")
    assert len(community.said()) == 1
    await community.bob.unreact(message, "👍")
    await community.bob.react(message, "👎")
    assert liked(community) == []
    asked = await community.bob.slash(community.channel, "ask", prompt="hello")
    assert asked.ephemeral and "moderator" in text(asked)

    listed = await community.ann.slash(community.channel, "blocked")
    assert listed.ephemeral and community.bob.mention in text(listed) and "spam" in text(listed)
    await community.ann.slash(community.channel, "unblock", member=community.bob)
    await community.bob.send(community.channel, f"{community.mention} hello")
    assert len(community.said()) == 2
    actions = [entry.action for entry in community.services.database.read(audit.latest)]
    assert {"member.block", "member.unblock"} <= set(actions)


async def test_blocking_is_for_moderators_and_has_its_limits(community: Community) -> None:
    with pytest.raises(Exception, match="not visible"):
        await community.bob.slash(community.channel, "block", member=community.ann)
    own = await community.ann.slash(community.channel, "block", member=community.ann)
    assert "can't be blocked" in text(own)
    none = await community.ann.slash(community.channel, "unblock", member=community.bob)
    assert "is not blocked" in text(none)
    assert "Nobody is blocked" in text(await community.ann.slash(community.channel, "blocked"))
    assert len(community.env.errors) == 2


async def test_forget_waits_a_minute_for_members_and_is_closed_to_the_blocked(community: Community) -> None:
    def resets() -> int:
        entries = community.services.database.read(audit.latest)
        return [entry.action for entry in entries].count("conversation.forget")

    await community.bob.slash(community.channel, "forget")
    again = await community.bob.slash(community.channel, "forget")
    assert again.ephemeral and "less than a minute ago" in text(again) and resets() == 1
    elsewhere = community.guild.create_text_channel("other")
    await community.bob.slash(elsewhere, "forget")
    await community.ann.slash(community.channel, "forget")
    assert resets() == 3, "another channel, and a moderator, need not wait"
    await community.ann.slash(community.channel, "block", member=community.bob)
    refused = await community.bob.slash(elsewhere, "forget")
    assert refused.ephemeral and text(refused) == BLOCKED and resets() == 3
