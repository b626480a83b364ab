"""Thumbs as buttons: the same rating as the reaction's, one for each member and reply."""

from __future__ import annotations

from typing import Any

import pytest

from bot.feedback.reactions import RatingRecorder
from bot.feedback.reply_buttons import EMOJI
from storage.feedback import my_ratings, ratings
from tests.bot.conftest import Community
from tests.bot.fake_server import FakeModelServer
from tests.bot.feedback.test_reply_buttons import buttons, press, standing
from tests.bot.test_commands import text

pytestmark = pytest.mark.parametrize("settings", ["[replies]\nrating_buttons = true"])


@pytest.fixture
async def reply(community: Community) -> Any:
    await community.ann.send(community.channel, f"{community.mention} hello")
    return community.messages()[0]


def thumbs(community: Community) -> dict[int, tuple[str, int]]:
    return {each.user_id: (each.means, each.value) for each in standing(community, community.replies()[0].id)}


async def test_the_thumbs_stand_before_the_other_buttons(community: Community, reply: Any) -> None:
    assert buttons(reply) == [EMOJI[each] for each in ("up", "down", "regenerate", "better", "why")]


async def test_a_press_rates_changes_and_takes_back_and_the_count_is_shown(
    community: Community, reply: Any
) -> None:
    (first,) = community.replies()
    await community.bob.click(reply, **press("up", first.id))
    assert thumbs(community) == {community.bob.id: ("button", 1)}
    assert buttons(community.messages()[0])[0] == "👍1"
    await community.ann.click(community.messages()[0], **press("up", first.id))
    assert buttons(community.messages()[0])[0] == "👍2"
    await community.bob.click(community.messages()[0], **press("down", first.id))
    assert buttons(community.messages()[0])[:2] == ["👍1", "👎1"]
    await community.bob.click(community.messages()[0], **press("down", first.id))
    assert thumbs(community) == {community.ann.id: ("button", 1)}
    assert buttons(community.messages()[0])[:2] == ["👍1", "👎"]


async def test_a_button_and_a_reaction_are_one_rating_and_the_last_one_counts(
    community: Community, reply: Any
) -> None:
    (first,) = community.replies()
    await community.bob.react(reply, "👍")
    await community.bob.click(reply, **press("down", first.id))
    assert thumbs(community) == {community.bob.id: ("button", -1)}
    assert await community.bot.feature(RatingRecorder).reconcile() == 0
    await community.bob.unreact(reply, "👍")
    assert thumbs(community) == {community.bob.id: ("button", -1)}
    await community.bob.react(reply, "👍")
    assert thumbs(community) == {community.bob.id: ("reaction", 1)}
    stored = community.services.database.read(lambda db: ratings.list_for_reply(db, first.id))
    assert len(stored) == 1


async def test_liking_by_button_what_one_liked_by_reaction_keeps_one_like(
    community: Community, reply: Any
) -> None:
    (first,) = community.replies()
    await community.bob.react(reply, "👍")
    await community.bob.click(reply, **press("up", first.id))
    await community.bob.unreact(reply, "👍")
    assert thumbs(community) == {community.bob.id: ("button", 1)}


async def test_a_button_rates_the_version_that_the_member_saw(
    community: Community, model_server: FakeModelServer, reply: Any
) -> None:
    (first,) = community.replies()
    model_server.answer = "Another."
    await community.ann.click(reply, **press("regenerate", first.id))
    second = community.replies()[1]
    message = community.messages()[0]
    assert buttons(message) == ["◀️", "▶️2/2", "👍", "👎", "🔄", "✏️", "ℹ️"]
    assert [len(row.children) for row in message.components] == [2, 5]
    await community.bob.click(message, **press("up", second.id))
    assert thumbs(community) == {}
    assert [each.value for each in standing(community, second.id)] == [1]
    assert buttons(community.messages()[0])[1] == "▶️2/2"


async def test_a_member_pages_through_their_own_ratings_and_takes_some_back(
    community: Community, model_server: FakeModelServer, reply: Any
) -> None:
    (first,) = community.replies()
    none = await community.bob.slash(community.channel, "privacy ratings")
    assert none.ephemeral and "no ratings" in text(none)

    for number in range(11):
        model_server.answer = f"Answer number {number}."
        await community.ann.send(community.channel, f"{community.mention} again")
        asked = community.replies()[-1]
        await community.bob.click(community.messages()[-1], **press("up", asked.id))
    opened = await community.bob.click(reply, **press("better", first.id))
    await community.bob.submit_modal(opened, {"text": "Ahoy!"})
    await community.ann.click(reply, **press("down", first.id))

    listed = (await community.bob.slash(community.channel, "privacy ratings")).response
    assert "Your ratings (12)" in listed.content and "✏️ “Ahoy!”" in listed.content
    assert "👎" not in listed.content, "what Ann rated is Ann's"
    assert "Answer number 0." not in listed.content
    await community.bob.click(listed, custom_id="strop:mine:page:10")
    assert "Answer number 0." in listed.content and "Ahoy!" not in listed.content
    (correction,) = standing(community, first.id)[:1]
    await community.bob.click(listed, custom_id="strop:mine:page:0")
    await community.bob.select(listed, [str(correction.id)])
    assert listed.content.startswith("Taken back: 1.") and "Your ratings (11)" in listed.content
    assert [rating.user_id for rating in standing(community, first.id)] == [community.ann.id]


async def test_a_button_s_thumb_that_is_taken_back_in_the_list_leaves_the_message_s_count(
    community: Community, reply: Any
) -> None:
    (first,) = community.replies()
    await community.bob.click(reply, **press("up", first.id))
    assert "👍1" in buttons(community.messages()[0])
    listed = (await community.bob.slash(community.channel, "privacy ratings")).response
    (mine,) = standing(community, first.id)
    await community.bob.select(listed, [str(mine.id)])
    assert "👍" in buttons(community.messages()[0])
    # Somebody else's list can't be used to take it back.
    await community.bob.click(reply, **press("up", first.id))
    (mine,) = standing(community, first.id)
    taken = community.services.database.write(
        lambda db: my_ratings.take_back(db, community.ann.id, str(mine.id))
    )
    assert not taken and standing(community, first.id)


async def test_a_reaction_in_the_list_is_linked_and_taken_back_on_its_message(
    community: Community, reply: Any
) -> None:
    await community.bob.react(reply, "👍")
    listed = (await community.bob.slash(community.channel, "privacy ratings")).response
    assert f"/{community.channel.id}/{reply.id}" in listed.content
    assert "removing it from its message" in listed.content
    assert listed.components == []
