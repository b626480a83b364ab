"""Servers that train one model together: the settings of one count nowhere else, and its texts stay in it."""

from __future__ import annotations

from typing import Any

import discord
import pytest

from bot.learning.blind_votes import VoteButton
from bot.learning.run_progress import ProgressReporter
from storage.admin import settings as settings_of
from storage.admin.settings import Place
from storage.errors import SettingError
from storage.feedback import duels, ratings
from storage.learning import runs
from tests.bot.conftest import Community

pytestmark = pytest.mark.parametrize("settings", ['[trainer]\nscope = "deployment"\n'], indirect=True)
SECRET = "our bread is baked on Tuesdays"


async def asked_next_door(community: Community) -> tuple[Any, Any]:
    """Ann asks in another server; returns its channel and her."""
    guild = community.env.create_guild()
    channel = guild.create_text_channel("next-door")
    ann = guild.add_member(community.ann.user)
    await ann.send(channel, f"{community.mention} {SECRET}")
    return channel, ann


def open_pair(community: Community, reply_id: str | None, prompt: str) -> str:
    database = community.services.database

    def work(db: Any) -> str:
        run = runs.enqueue(db, scope="deployment", trigger="manual", requested_by="1")
        duels.add(
            db,
            duel_id=f"d-{reply_id}",
            run_id=run.id,
            scope="deployment",
            challenger_id="a1",
            champion_id=None,
            prompt=[{"role": "user", "content": prompt}],
            first_text="one",
            second_text="two",
            first_is_challenger=True,
            reply_id=reply_id,
        )
        return f"d-{reply_id}"

    return database.write(work)


async def test_a_pair_is_shown_and_voted_on_only_in_the_server_of_its_prompt(community: Community) -> None:
    channel, ann = await asked_next_door(community)
    (reply,) = community.replies()
    duel_id = open_pair(community, reply.id, SECRET)
    open_pair(community, None, "a prompt of nobody's")
    reporter = community.bot.feature(ProgressReporter)
    await reporter.report_in("deployment", community.channel.id)
    await community.env.advance_time(20)
    here, there = "\n".join(community.said()), "\n".join(community.said(channel))
    assert SECRET not in here and "a prompt of nobody's" in here
    assert there.count(SECRET) == 1 and "a prompt of nobody's" not in there

    view = discord.ui.View(timeout=None)
    view.add_item(VoteButton(duel_id, "first"))
    place = community.bot.get_partial_messageable(community.channel.id, guild_id=community.guild.id)
    sent = await place.send("?", view=view)
    forged = next(each for each in community.channel.history() if each.id == sent.id)
    pressed = await community.bob.click(forged, custom_id=f"strop:duel:{duel_id}:first")
    assert "don't know this pair" in pressed.response.content

    def votes() -> int:
        return community.services.database.read(
            lambda db: int(db.conn.execute("SELECT count(*) FROM duel_votes").fetchone()[0])
        )

    assert votes() == 0
    shown = next(each for each in community.messages(channel) if SECRET in each.content)
    await ann.click(shown, custom_id=f"strop:duel:{duel_id}:first")
    assert votes() == 1


async def test_no_server_decides_which_way_a_rating_counts(community: Community) -> None:
    services, place = community.services, Place(community.guild.id)
    for key, emoji in (("rating_up", "👎"), ("rating_down", "👍")):
        with pytest.raises(SettingError, match="All servers train one model"):
            services.database.write(
                lambda db, key=key, emoji=emoji: settings_of.put(db, services.config, place, key, emoji, "1")
            )
        # Set before the servers trained one model, or written by hand.
        services.database.write(
            lambda db, key=key, emoji=emoji: db.conn.execute(
                "INSERT INTO settings VALUES (?, 0, ?, json_array(?), '1', 0)", (place.guild_id, key, emoji)
            )
        )
    await community.bob.send(community.channel, f"{community.mention} hello")
    (message,) = community.messages()
    await community.bob.react(message, "👍")
    (reply,) = community.replies()
    (rating,) = services.database.read(lambda db: ratings.list_for_reply(db, reply.id))
    assert rating.value == 1
