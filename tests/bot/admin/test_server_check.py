"""/setup tells a server's admin what to change, as things are at that moment."""

from __future__ import annotations

from typing import Any

import discord
import pytest

from bot.admin.server_check import NOT_ADMIN
from tests.bot.conftest import Community


def said(result: Any) -> str:
    messages = [result.response] if result.response is not None else []
    return "\n".join(message.content for message in [*messages, *result.followups])


def closed(community: Community, name: str, **denied: bool) -> Any:
    """A channel that takes permissions away from the bot."""
    overwrite = discord.PermissionOverwrite(**denied)  # type: ignore[arg-type]
    return community.guild.create_text_channel(name, overwrites={community.bot.user: overwrite})


@pytest.fixture
def admin(community: Community) -> Any:
    role = community.guild.create_role("admins", permissions=discord.Permissions(manage_guild=True))
    return community.guild.add_member(community.env.create_user("carl"), roles=[role])


async def test_a_server_where_all_is_well_needs_nothing(community: Community, admin: Any) -> None:
    result = await admin.slash(community.channel, "setup")
    assert result.ephemeral and said(result).startswith("✅ Everything is in place. I answer mentions")


async def test_only_admins_and_operators_may_ask_whatever_the_servers_command_settings_say(
    community: Community,
) -> None:
    (command,) = [each for each in await community.bot.tree.fetch_commands() if each.name == "setup"]
    community.guild.set_command_permissions(command, {community.ann: True, community.bob: True})
    assert said(await community.bob.slash(community.channel, "setup")) == NOT_ADMIN
    assert "✅" in said(await community.ann.slash(community.channel, "setup"))


async def test_a_channel_that_mutes_the_bot_is_named_with_the_permission(
    community: Community, admin: Any
) -> None:
    muted = closed(community, "muted", send_messages=False, embed_links=False)
    closed(community, "hidden", view_channel=False)
    text = said(await admin.slash(community.channel, "setup"))
    assert f"❌ Allow **Send Messages**, **Embed Links** for me in <#{muted.id}>" in text
    assert "Edit Channel → Permissions" in text and text.count("❌") == 1


async def test_a_configured_channel_must_be_seen_too(community: Community, admin: Any) -> None:
    ops = closed(community, "ops", view_channel=False)
    services = community.services
    named = services.config.discord.model_copy(update={"operators_channel": ops.id})
    services.config = services.config.model_copy(update={"discord": named})
    text = said(await admin.slash(community.channel, "setup"))
    assert "**View Channels**" in text and f"<#{ops.id}> (`discord.operators_channel`)" in text
