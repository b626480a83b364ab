"""/stats shows counts, shares and intervals, and no names; the picture comes with the text, never instead."""

from __future__ import annotations

import io
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bot.charts.rating_chart import RatingFigures
from bot.charts.renderer import Studio
from bot.charts.week_text import WeekFigures
from bot.learning.stats import DAYS, stats_text, weeks_text
from storage.feedback.like_rate import LikeRate, Week
from storage.feedback.rating_statistics import AdapterShare, Day
from tests.bot.adapter_files import FIRST
from tests.bot.admin.test_settings import put
from tests.bot.conftest import Community
from tests.bot.test_commands import register


def said(result: Any) -> str:
    messages = [result.response] if result.response is not None else []
    return "\n".join(message.content for message in [*messages, *result.followups])


def pictures(result: Any) -> list[Any]:
    messages = [result.response] if result.response is not None else []
    return [file for message in [*messages, *result.followups] for file in message.attachments]


async def rated(community: Community) -> None:
    await community.bob.send(community.channel, f"{community.mention} hello")
    reply = community.messages()[-1]
    await community.ann.react(reply, "👍")
    await community.bob.react(reply, "👎")


async def test_ratings_are_counted_by_day_and_by_adapter(community: Community) -> None:
    assert "Nobody has rated" in said(await community.bob.slash(community.channel, "stats"))
    await rated(community)
    result = await community.bob.slash(community.channel, "stats")
    text = said(result)
    assert result.ephemeral and f"`{'·' * (DAYS - 1)}█` 1 liked" in text and "1 disliked" in text
    assert "` 50% (  9% to  91%)` of 2 · base model" in text
    assert "ann" not in text and "bob" not in text
    await community.ann.unreact(community.messages()[-1], "👍")
    assert "0 liked" in said(await community.bob.slash(community.channel, "stats"))


async def test_the_picture_says_in_words_what_it_shows_and_names_nobody(community: Community) -> None:
    await rated(community)
    (file,) = pictures(await community.bob.slash(community.channel, "stats"))
    assert file.filename == "strop-stats.png"
    assert file.description.startswith("Ratings of the last 14 days: 1 liked, 1 disliked.")
    assert "base model 50% (9% to 91%, 2 ratings)" in file.description
    assert "ann" not in file.description and "bob" not in file.description
    picture = Image.open(io.BytesIO(await file.read()))
    assert picture.format == "PNG" and picture.width == 1100


async def test_the_picture_speaks_the_servers_language(community: Community) -> None:
    put(community, "language", "ja", channel=community.channel)
    await rated(community)
    result = await community.bob.slash(community.channel, "stats")
    (file,) = pictures(result)
    assert file.description.startswith("過去14日間の評価:高評価1件、低評価1件。")
    assert "ベースモデル" in said(result)


async def test_without_its_picture_the_text_still_comes(community: Community) -> None:
    await rated(community)
    await community.bot.feature(Studio).stop()
    result = await community.bob.slash(community.channel, "stats")
    assert "1 liked" in said(result) and pictures(result) == []
    community.bot.add_feature(Studio(deadline_s=0))
    result = await community.bob.slash(community.channel, "stats")
    assert "1 liked" in said(result) and pictures(result) == []
    assert community.env.errors == []


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 10**6)), min_size=1, max_size=8))
def test_the_share_lies_in_its_interval_and_the_text_fits(rated: list[tuple[int, int]]) -> None:
    shares = [AdapterShare("a" + "1" * 15, liked, disliked) for liked, disliked in rated]
    for each in shares:
        low, high = each.interval
        assert 0 <= low <= each.share <= high <= 1
    days = [Day(number, liked, disliked) for number, (liked, disliked) in enumerate(rated)]
    text = stats_text(RatingFigures(days, shares, share_days=90))
    assert len(text) < 2000 and text.count("a11111") == len(shares)


async def test_weeks_are_shown_with_channels_promotions_and_a_test(community: Community) -> None:
    result = await community.bob.slash(community.channel, "stats", weeks=6)
    assert "Nobody has rated" in said(result)
    await rated(community)
    register(community, FIRST, promote=True)
    result = await community.bob.slash(community.channel, "stats", weeks=6)
    text = said(result)
    assert result.ephemeral and text.startswith("Too few members have rated to compare")
    assert text.count("nothing rated") == 5
    assert f"` 50% (  9% to  91%)` of 2 · ▲ {FIRST}" in text
    assert f"` 50% (  9% to  91%)` of 2 · <#{community.channel.id}>" in text
    (file,) = pictures(result)
    assert file.filename == "strop-weeks.png" and "50%." in file.description
    assert "ann" not in file.description and "bob" not in text


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 10**6)), min_size=2, max_size=104))
def test_the_text_of_weeks_fits(rates: list[tuple[int, int]]) -> None:
    weeks = [Week(4 + 7 * number, LikeRate(*rate)) for number, rate in enumerate(rates)]
    channels = [(10**18 + number, LikeRate(*rate)) for number, rate in enumerate(rates[:8])]
    text = weeks_text(WeekFigures(weeks, channels, None, {5 + 7 * len(rates): "a" * 16}))
    assert len(text) < 2000 and text.count("<#") == len(channels)
