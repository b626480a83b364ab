"""Ids in buttons, menus and forms come from whoever sends them: another server's open and change nothing.

The cases are checked against the code: a button or a form that carries an id and has none fails here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

import discord
import pytest

from bot.feedback.my_ratings import TakeBackSelect
from bot.feedback.reply_buttons import EMOJI, ReplyButton
from bot.feedback.side_by_side import _CHOICES, CompareButton
from bot.learning.blind_votes import VoteButton
from bot.learning.run_buttons import Action, RunButton
from bot.privacy.commands import ErasureButton
from bot.ui.form_router import FormRouter
from storage.db.clock import now_ms
from storage.db.database import Connection
from storage.feedback import duels, my_ratings, side_by_side
from storage.learning import runs
from tests.bot.conftest import Community
from tests.bot.fake_server import FakeModelServer

SECRETS = ("our safe's number is 7731", "Their answer.", "Their other answer.")
# What a custom id may hold besides ids: a page, a moment, a place and a key of settings, a choice.
NO_IDS = {"page", "offset", "before", "where", "key", "action", "choice", "answer", "asked"}
FORMS_WITHOUT_IDS = {"prompts": "the one bank of prompts", "setting": "a place and a key, for admins"}


@dataclass(frozen=True)
class Foreign:
    """What another server has: a reply, a pair of replies, a duel, a run, and what Ann rated there."""

    reply_id: str
    pair_id: str
    duel_id: str
    run_id: str
    rating_key: str
    ann_id: int


def cases(foreign: Foreign) -> dict[str, list[tuple[Any, str | None]]]:
    """Return for each kind of button or menu with ids every use of another server's, with a menu's choice."""
    return {
        "ReplyButton": [(ReplyButton(action, foreign.reply_id), None) for action in EMOJI],
        "CompareButton": [(CompareButton(foreign.pair_id, choice), None) for choice in _CHOICES],
        "VoteButton": [(VoteButton(foreign.duel_id, choice), None) for choice in _CHOICES],
        "RunButton": [(RunButton(foreign.run_id, action), None) for action in get_args(Action)],
        "ErasureButton": [
            (ErasureButton(foreign.ann_id, answer, now_ms() // 1000), None) for answer in ("yes", "no")
        ],
        "TakeBackSelect": [
            (
                TakeBackSelect(0, [discord.SelectOption(label="x", value=foreign.rating_key)]),
                foreign.rating_key,
            )
        ],
    }


def ids_in(item: type[Any]) -> set[str]:
    return set(item.__discord_ui_compiled_template__.groupindex) - NO_IDS


def everything(db: Connection) -> dict[str, list[Any]]:
    """Return every row of the database."""
    names = [name for (name,) in db.conn.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    return {name: sorted(map(repr, db.conn.execute(f"SELECT * FROM {name}"))) for name in names}


@pytest.fixture
async def foreign(community: Community, model_server: FakeModelServer) -> Foreign:
    guild = community.env.create_guild()
    channel = guild.create_text_channel("theirs")
    ann = guild.add_member(community.ann.user)
    for answer in SECRETS[1:]:
        model_server.answer = answer
        await ann.send(channel, f"{community.mention} {SECRETS[0]}")
    first, second = (reply.id for reply in community.replies())
    await ann.react(community.messages(channel)[0], "👍")

    def work(db: Connection) -> Foreign:
        scope = f"guild:{guild.id}"
        side_by_side.add(db, first_id=first, second_id=second, usual_id=first)
        run = runs.enqueue(db, scope=scope, trigger="manual", requested_by="1")
        duels.add(
            db,
            duel_id="theirs",
            run_id=run.id,
            scope=scope,
            challenger_id="a1",
            champion_id=None,
            prompt=[{"role": "user", "content": SECRETS[0]}],
            first_text=SECRETS[1],
            second_text=SECRETS[2],
            first_is_challenger=True,
            reply_id=first,
        )
        (mine,) = my_ratings.page(db, community.ann.id, limit=10)
        return Foreign(second, first, "theirs", run.id, mine.key, community.ann.id)

    return community.services.database.write(work)


async def test_every_button_with_an_id_has_a_case(community: Community, foreign: Foreign) -> None:
    with_ids = {item.__name__ for item in community.bot.lasting_items if ids_in(item)}
    # Its ids are the choices.
    assert with_ids | {"TakeBackSelect"} == set(cases(foreign))
    assert {item.__name__ for item in community.bot.lasting_items} >= set(cases(foreign))


async def test_no_button_of_another_server_opens_or_changes_anything(
    community: Community, foreign: Foreign
) -> None:
    database = community.services.database
    channel = community.bot.get_partial_messageable(community.channel.id, guild_id=community.guild.id)
    for name, uses in cases(foreign).items():
        for item, value in uses:
            view = discord.ui.View(timeout=None)
            view.add_item(item)
            sent = await channel.send("?", view=view)
            message = next(each for each in community.channel.history() if each.id == sent.id)
            # Runs are the operator's, who decides on all of them, but on each in its own server.
            who = community.ann if name == "RunButton" else community.bob
            before = database.read(everything)
            if value is None:
                result = await who.click(message, custom_id=item.custom_id)
            else:
                result = await who.select(message, [value], custom_id=item.custom_id)
            assert database.read(everything) == before, item.custom_id
            assert result.modal is None, item.custom_id
            answers = [each.content for each in (result.response, *result.followups) if each is not None]
            assert answers, item.custom_id
            assert not any(secret in answer for secret in SECRETS for answer in answers), item.custom_id


async def test_no_form_about_another_servers_reply_is_taken(community: Community, foreign: Foreign) -> None:
    handlers = set(community.bot.feature(FormRouter)._handlers)
    assert handlers - set(FORMS_WITHOUT_IDS) == {"better", "report"}
    await community.bob.send(community.channel, f"{community.mention} hello")
    mine, message = community.replies()[-1], community.messages()[-1]
    for kind, entry in (("better", "Better answer"), ("report", "Report reply")):
        opened = await community.bob.context_menu(community.channel, entry, message)
        form = opened._interaction.modal
        form["custom_id"] = form["custom_id"].replace(mine.id, foreign.reply_id)
        before = community.services.database.read(everything)
        sent = await community.bob.submit_modal(opened, {"text": "I was here"})
        assert community.services.database.read(everything) == before, kind
        answers = [each.content for each in (sent.response, *sent.followups) if each is not None]
        assert answers and not any(secret in answer for secret in SECRETS for answer in answers)
