"""Thumbs as buttons: the same rating as the reaction's, one for each member and reply."""

from __future__ import annotations

from typing import Any

import pytest

from bot.replies_ui.buttons import EMOJI
from storage import ratings
from tests.bot.conftest import Community
from tests.bot.fake_server import FakeModelServer
from tests.bot.test_commands import text
from tests.bot.test_reply_buttons import buttons, press, standing

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
    assert await community.bot.rating_recorder.reconcile() == 0
    await community.bob.unreact(reply, "👍")
    assert thumbs(community) == {community.bob.id: ("button", -1)}
    await community.bob.react(reply, "👍")
    assert thumbs(community) == {community.bob.id: ("reaction", 1)}
    stored = community.services.database.read(lambda db: ratings.for_reply(db, first.id))
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


async def test_the_members_own_better_answers_are_listed_and_taken_back(
    community: Community, reply: Any
) -> None:
    (first,) = community.replies()
    none = await community.bob.slash(community.channel, "privacy corrections")
    assert "no better answers" in text(none)
    opened = await community.bob.click(reply, **press("better", first.id))
    await community.bob.submit_modal(opened, {"text": "Ahoy!"})
    listed = await community.bob.slash(community.channel, "privacy corrections")
    assert listed.ephemeral and "(1)" in text(listed)
    taken = await community.bob.select(listed.response, [first.id])
    assert "Better answers taken back: 1" in text(taken)
    assert standing(community, first.id) == []
