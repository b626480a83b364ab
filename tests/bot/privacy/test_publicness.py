"""A channel that turns staff-only stops training at once: its new words, and its old ones."""

from __future__ import annotations

from typing import Any

import discord
import pytest
from simcord.backend.models.channel import Overwrite
from simcord.enums import OverwriteType

from bot.app import make_client
from storage.chat import conversations
from storage.learning import eligibility
from tests.bot.conftest import Community


def close(community: Community, place: Any = None) -> None:
    """Let only the staff see a channel."""
    deny = discord.Permissions(view_channel=True).value
    hidden = Overwrite(community.guild.id, OverwriteType.ROLE, deny=deny)
    backend = community.env.backend
    channel = backend.get_channel((place or community.channel).id)
    channel.overwrites = [each for each in channel.overwrites if each.target_id != community.guild.id]
    channel.overwrites.append(hidden)
    for staff in (community.ann.id, community.bob.id, community.bot.user.id if community.bot.user else 0):
        channel.overwrites.append(Overwrite(staff, OverwriteType.MEMBER, allow=deny))


def excluded(community: Community) -> dict[str, int]:
    scope = f"guild:{community.guild.id}"
    return community.services.database.read(
        lambda db: eligibility.eligible_rows(db, scope, permission_reference="")
    ).excluded


@pytest.mark.parametrize("told", [True, False], ids=["told by Discord", "while away"])
async def test_a_channel_that_is_closed_to_everybody_trains_no_more(
    community: Community, services: Any, told: bool
) -> None:
    await community.ann.send(community.channel, f"{community.mention} hello")
    await community.bob.react(community.messages()[0], "👍")
    assert excluded(community) == {}
    close(community)
    if told:
        community.env.backend.announce_channel_update(community.channel.id)
    else:
        await community.env.restart_bot(make_client(services))
    await community.env.settle()
    assert excluded(community) == {"not_public": 1}


async def test_a_question_keeps_whether_its_channel_was_public_when_it_was_asked(
    community: Community,
) -> None:
    await community.ann.send(community.channel, f"{community.mention} hello")
    close(community)
    community.env.backend.announce_channel_update(community.channel.id)
    await community.env.settle()
    asked = await community.ann.send(community.channel, "and between us?", reply_to=community.messages()[0])
    stored = community.services.database.read(lambda db: conversations.by_discord_id(db, asked.id))
    assert stored is not None
    assert (stored.public, stored.channel_id) == (False, community.channel.id)
