"""/stats shows counts, shares and intervals, and no names."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from bot.commands.stats import DAYS, stats_text
from storage.rating_stats import AdapterShare, Day
from tests.bot.conftest import Community


def said(result: Any) -> str:
    messages = [result.response] if result.response is not None else []
    return "\n".join(message.content for message in [*messages, *result.followups])


async def test_ratings_are_counted_by_day_and_by_adapter(community: Community) -> None:
    assert "Nobody has rated" in said(await community.bob.slash(community.channel, "stats"))
    await community.bob.send(community.channel, f"{community.mention} hello")
    reply = community.messages()[-1]
    await community.ann.react(reply, "👍")
    await community.bob.react(reply, "👎")
    result = await community.bob.slash(community.channel, "stats")
    text = said(result)
    assert result.ephemeral and f"`{'·' * (DAYS - 1)}█` 1 liked" in text and "1 disliked" in text
    assert "50% (9% to 91%) of 2 · base model" in text
    assert "ann" not in text and "bob" not in text
    await community.ann.unreact(reply, "👍")
    assert "0 liked" in said(await community.bob.slash(community.channel, "stats"))


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 10**6)), min_size=1, max_size=8))
def test_the_share_lies_in_its_interval_and_the_text_fits(rated: list[tuple[int, int]]) -> None:
    shares = [AdapterShare("a" + "1" * 15, liked, disliked) for liked, disliked in rated]
    for each in shares:
        low, high = each.interval
        assert 0 <= low <= each.share <= high <= 1
    days = [Day(number, liked, disliked) for number, (liked, disliked) in enumerate(rated)]
    text = stats_text(days, shares)
    assert len(text) < 2000 and text.count("●") == len(shares)
