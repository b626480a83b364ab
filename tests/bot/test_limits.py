"""How many questions a member may ask in a minute."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bot.limits import MemberLimits
from tests.bot.conftest import Community
from tests.bot.test_commands import text
from tests.bot.test_settings import put


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
