"""/help: each member reads what they may do where they ask, in the language that is spoken there."""

from __future__ import annotations

import re

import discord
import pytest

from bot.language import texts
from bot.ui import help
from storage.admin import blocks
from storage.chat import members
from tests.bot.conftest import Community, in_force
from tests.bot.test_commands import text


def commands_in(answer: str) -> set[str]:
    return set(re.findall(r"^`/([a-z_-]+)`", answer, re.MULTILINE))


async def test_a_member_reads_what_everybody_may_do_and_only_that(community: Community) -> None:
    result = await community.bob.slash(community.channel, "help")
    named = commands_in(text(result))
    assert result.ephemeral and {"ask", "status", "privacy", "help"} <= named
    assert not named & {"retrain", "promote", "audit", "setup", "block", "tasting"}
    assert "Mention me or reply to me" in text(result) and "👍" in text(result)


async def test_an_operator_also_reads_what_operators_and_moderators_may_do(community: Community) -> None:
    told = text(await community.ann.slash(community.channel, "help"))
    assert {"retrain", "promote", "rollback", "audit", "setup", "block", "tasting"} <= commands_in(told)
    registered = community.bot.tree.get_commands(type=discord.AppCommandType.chat_input)
    assert commands_in(told) == {command.name for command in registered}, "nothing is left out for them"


async def test_what_needs_a_server_is_not_offered_in_direct_messages(community: Community) -> None:
    told = text(await community.ann.user.slash("help"))
    assert not commands_in(told) & {"setup", "settings", "block", "retrain", "promote", "rollback", "tasting"}
    assert {"ask", "audit"} <= commands_in(told) and "In direct messages the base model answers" in told


async def test_a_blocked_member_reads_that_they_are(community: Community) -> None:
    def work(db: object) -> None:
        blocks.block(db, guild_id=community.guild.id, user_id=community.bob.id, actor="test")

    community.services.database.write(work)
    assert "You are blocked here" in text(await community.bob.slash(community.channel, "help"))


@pytest.mark.parametrize(
    ("consent", "line"), [("unset", "only if you agree"), ("in", "opt-out` ends"), ("out", "you opted out")]
)
async def test_a_member_reads_whether_they_are_learned_from(
    community: Community, consent: str, line: str
) -> None:
    community.services.playground = False

    def work(db: object) -> None:
        members.ensure(db, community.bob.id, "bob", "discord")
        members.set_consent(db, community.bob.id, consent, "test")

    community.services.database.write(work)
    assert line in text(await community.bob.slash(community.channel, "help"))


@pytest.mark.parametrize("language", texts.LANGUAGES)
async def test_every_line_is_shown_within_two_messages_in_every_language(
    community: Community, language: str
) -> None:
    held = in_force(community.services).settings
    with texts.speaking(language):
        standing = help.Standing(False, held, "unset", False, True, True)
        lines = help.introduction(standing)
        for command in community.bot.tree.get_commands(type=discord.AppCommandType.chat_input):
            lines.append(f"`/{command.name}` {texts.tr(command.description)}")
        lines += [texts.tr(each.name) for each in community.bot.tree.get_commands(type=help._MESSAGE_MENU)]
    shown = help.pages(lines)
    assert all(len(page) < 2000 for page in shown) and len(shown) <= 2
    assert "\n".join(shown) == "\n".join(lines)
