"""How many questions a member may ask in a minute."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from bot.chat.rate_limits import MemberLimits, limit_for
from storage.admin import settings
from storage.config import load_config
from tests.bot.admin.test_settings import put
from tests.bot.conftest import Community
from tests.bot.test_commands import text


def test_the_first_refusal_is_said_and_the_next_are_silent_until_one_may_ask_again() -> None:
    limits = MemberLimits()
    said = [limits.may_ask(1, 2, 2, now) for now in (0.0, 1.0, 2.0, 3.0, 61.0, 61.5, 62.0)]
    assert said == ["yes", "yes", "no", "silence", "yes", "yes", "no"]
    assert limits.may_ask(1, 3, 2, 3.0) == "yes" and limits.may_ask(9, 2, 2, 3.0) == "yes"


@given(st.lists(st.floats(0, 30), max_size=60), st.integers(1, 5))
def test_no_minute_ever_holds_more_than_the_limit(gaps: list[float], limit: int) -> None:
    limits, now, answered = MemberLimits(), 0.0, []
    for gap in gaps:
        now += gap
        if limits.may_ask(1, 2, limit, now) == "yes":
            answered.append(now)
    assert all(sum(at <= each < at + 60.0 for each in answered) <= limit for at in answered)


async def test_a_member_hears_of_the_limit_once_and_others_are_answered(community: Community) -> None:
    put(community, "messages_per_minute", 1)
    for _ in range(4):
        await community.ann.send(community.channel, f"{community.mention} hello")
    await community.bob.send(community.channel, f"{community.mention} hello")
    said = community.said()
    assert said.count("Hello there, friend.") == 2 and len(said) == 3
    assert "1 a minute" in said[1]
    await community.env.settle()
    asked = await community.bob.slash(community.channel, "ask", prompt="hello")
    assert asked.ephemeral and "a minute" in text(asked)


async def test_the_highest_limit_of_a_member_s_roles_holds(community: Community) -> None:
    trusted = community.guild.create_role("trusted")
    members = community.env.backend.guilds[community.guild.id].members
    members[community.bob.id].role_ids.append(trusted.id)
    put(community, "messages_per_minute", 1)
    put(community, "role_limits", f"<@&{trusted.id}>=2 123456789012345678=1")
    for member in (community.ann, community.bob):
        for _ in range(4):
            await member.send(community.channel, f"{community.mention} hello")
    said = community.said()
    assert said.count("Hello there, friend.") == 3
    assert "(1 a minute)" in said[1] and "(2 a minute)" in said[-1]


def test_no_limit_for_one_role_is_no_limit() -> None:
    held = settings.defaults(load_config(None, {}))
    limited = dataclasses.replace(held, messages_per_minute=3, role_limits=("1=5", "2=0"))
    assert [limit_for(limited, roles) for roles in ([], [9], [1], [1, 2])] == [3, 3, 5, 0]
