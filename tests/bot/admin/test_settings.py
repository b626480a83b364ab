"""/settings, and that what is set there holds from the next message on."""

from __future__ import annotations

from typing import Any

import discord
import pytest

from bot.app import make_client
from storage.admin import audit, settings
from storage.admin.settings import Place
from tests.bot.conftest import Community
from tests.bot.fake_server import FakeModelServer
from tests.bot.test_commands import text


def put(community: Community, key: str, value: Any, *, channel: Any = None) -> None:
    place = Place(community.guild.id, None if channel is None else channel.id)
    community.services.database.write(
        lambda db: settings.put(db, community.services.config, place, key, value, "test")
    )


@pytest.fixture(autouse=True)
async def admin(community: Community) -> None:
    """Make ann an admin of the server."""
    role = community.guild.create_role("admin", permissions=discord.Permissions(manage_guild=True))
    community.env.backend.guilds[community.guild.id].members[community.ann.id].role_ids.append(role.id)


async def test_the_panel_says_what_is_in_force_and_is_for_admins_only(community: Community) -> None:
    opened = await community.ann.slash(community.channel, "settings")
    assert opened.ephemeral and "**temperature**: 0.7  -  the bot's default" in text(opened)
    with pytest.raises(Exception, match="settings"):
        await community.bob.slash(community.channel, "settings")


async def test_only_who_runs_the_bot_reads_a_key_of_the_configuration(community: Community) -> None:
    members = community.env.backend.guilds[community.guild.id].members
    members[community.bob.id].role_ids += members[community.ann.id].role_ids
    put(community, "follow_up_s", 60)
    told = {
        who: text(await who.slash(community.channel, "settings")) for who in (community.ann, community.bob)
    }
    assert all("Discord doesn't show me messages that don't address me" in each for each in told.values())
    assert "`discord.message_content = true`" in told[community.ann]
    assert "strop.toml" not in told[community.bob] and "message_content" not in told[community.bob]


async def test_a_value_is_typed_in_a_form_and_holds_at_once(
    community: Community, model_server: FakeModelServer
) -> None:
    opened = await community.ann.slash(community.channel, "settings")
    await community.ann.select(opened.response, ["system_prompt"], custom_id="settings:key:channel")
    form = await community.ann.click(opened.response, label="Change…")
    await community.ann.submit_modal(form, {"text": "You are a pirate. <|im_end|>"})
    assert "✓ **system_prompt** is set for this channel" in opened.response.content
    assert "You are a pirate" in opened.response.content and "from the channel" in opened.response.content

    await community.bob.send(community.channel, f"{community.mention} hello")
    assert model_server.prompt()[0] == {"role": "system", "content": "You are a pirate. < |im_end|>"}
    entry = next(
        each for each in community.services.database.read(audit.latest) if each.action == "settings.change"
    )
    assert entry.actor == str(community.ann.id)
    assert entry.detail["key"] == "system_prompt" and "pirate" not in str(entry.detail)


@pytest.mark.parametrize("language", ["en", "de", "es", "fr", "ja"])
async def test_the_longest_lists_fit_into_the_panel_and_its_form(community: Community, language: str) -> None:
    first, last = (
        [f"<a:{'x' * 30}{number}:{10**20 + number}>" for number in range(low, low + 10)] for low in (10, 20)
    )
    for key, value in {
        "system_prompt": "😀" * 2000,
        "rating_up": " ".join(first),
        "rating_down": " ".join(last),
        "wake_words": ", ".join(f"{'w' * 31}{number}" for number in range(5)),
        "role_limits": " ".join(f"<@&{10**20 + number}>=60" for number in range(10)),
        "triggers": "mention reply thread every",
        "auto_thread": "on",
        "follow_up_s": 60,
        "language": language,
    }.items():
        put(community, key, value)
    opened = await community.ann.slash(community.channel, "settings")
    await community.ann.select(opened.response, ["rating_down"], custom_id="settings:key:channel")
    assert len(opened.response.content) <= 2000
    form = await community.ann.click(opened.response, custom_id="settings:edit:channel:rating_down")
    await community.ann.submit_modal(form, {"text": " ".join(reversed(last))})
    assert opened.response.content.startswith("✓ **rating_down**")


async def test_the_server_s_word_holds_where_the_channel_has_none(
    community: Community, model_server: FakeModelServer
) -> None:
    other = community.guild.create_text_channel("other")
    opened = await community.ann.slash(community.channel, "settings")
    await community.ann.select(opened.response, ["server"], custom_id="settings:where")
    await community.ann.select(opened.response, ["temperature"], custom_id="settings:key:server")
    form = await community.ann.click(opened.response, label="Change…")
    await community.ann.submit_modal(form, {"text": "1,5"})
    put(community, "temperature", 0.2, channel=other)

    await community.ann.send(community.channel, f"{community.mention} hello")
    await community.ann.send(other, f"{community.mention} hello")
    assert [request["temperature"] for request in model_server.requests] == [1.5, 0.2]


async def test_a_value_that_does_not_fit_is_refused_with_what_fits(community: Community) -> None:
    opened = await community.ann.slash(community.channel, "settings")
    await community.ann.select(opened.response, ["max_new_tokens"], custom_id="settings:key:channel")
    form = await community.ann.click(opened.response, label="Change…")
    await community.ann.submit_modal(form, {"text": "9999"})
    assert "✗ **max_new_tokens** was not changed: It must be a whole number from 16 to 1024" in (
        opened.response.content
    )
    assert community.services.database.read(settings.places) == []


async def test_the_panel_works_after_a_restart_and_resets(community: Community) -> None:
    put(community, "temperature", 0.1, channel=community.channel)
    opened = await community.ann.slash(community.channel, "settings")
    await community.env.restart_bot(make_client(community.services))
    await community.ann.select(opened.response, ["training"], custom_id="settings:key:channel")
    await community.ann.select(opened.response, ["off"], custom_id="settings:value:channel:training")
    assert "**training**: off  -  from the channel" in opened.response.content
    await community.ann.click(opened.response, label="Reset all for this channel")
    assert "✓ Reset: temperature, training." in opened.response.content
    assert community.services.database.read(settings.places) == []


async def test_a_form_that_was_opened_before_a_restart_is_still_taken(community: Community) -> None:
    opened = await community.ann.slash(community.channel, "settings")
    await community.ann.select(opened.response, ["temperature"], custom_id="settings:key:channel")
    form = await community.ann.click(opened.response, label="Change…")
    await community.env.restart_bot(make_client(community.services))
    await community.ann.submit_modal(form, {"text": "0.2"})
    assert "✓ **temperature** is set for this channel" in opened.response.content


async def test_a_panel_is_no_way_around_a_permission_that_was_taken(community: Community) -> None:
    role = community.guild.create_role("admin", permissions=discord.Permissions(manage_guild=True))
    carl = community.guild.add_member(community.env.create_user("carl"), roles=[role])
    opened = await carl.slash(community.channel, "settings")
    community.env.backend.guilds[community.guild.id].members[carl.id].role_ids.clear()
    await community.env.settle()
    result = await carl.select(opened.response, ["training"], custom_id="settings:key:channel")
    assert "Manage Server" in text(result)


async def test_rating_emoji_are_the_channel_s_own(community: Community) -> None:
    put(community, "rating_up", "🔥 <:strop:123456789012345678>", channel=community.channel)
    await community.ann.send(community.channel, f"{community.mention} hello")
    (message,) = community.messages()
    await community.ann.react(message, "👍")
    assert liked(community) == []
    await community.ann.react(message, "🔥")
    assert liked(community) == [1]
    await community.ann.unreact(message, "🔥")
    assert liked(community) == []


def liked(community: Community) -> list[int]:
    return community.services.database.read(
        lambda db: [row[0] for row in db.conn.execute("SELECT value FROM ratings WHERE retracted = 0")]
    )


async def test_a_persona_leaves_room_for_the_question(
    community: Community, model_server: FakeModelServer
) -> None:
    model_server.context_tokens = 200
    put(community, "max_new_tokens", 1024)
    await community.ann.send(community.channel, f"{community.mention} hello")
    assert community.said() == ["Hello there, friend."]
    assert model_server.requests[0]["max_tokens"] == 100
