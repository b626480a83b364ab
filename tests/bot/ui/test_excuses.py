"""What people hear, and what the log keeps, when something that they used could not be done."""

from __future__ import annotations

import logging
from typing import Any

import aiohttp
import discord
import pytest
from discord import app_commands
from structlog.testing import capture_logs

from bot.errors import DeliveryError
from bot.learning.run_progress import ProgressReporter
from bot.ui.interactions import CHANGED, DISCORD_REFUSED, NO_SUCH_MESSAGE, sentence_for
from bot.ui.outdated import OUTDATED
from storage.learning import runs
from tests.bot.conftest import Community
from tests.bot.fake_server import FakeModelServer
from tests.bot.feedback.test_reply_buttons import press, told
from tests.bot.test_commands import FIRST, register, text

UNKNOWN_INTERACTION, ACKNOWLEDGED, UNKNOWN_MESSAGE = 10062, 40060, 10008
CALLBACK = "/interactions/*/*/callback"


@pytest.fixture
async def reply(community: Community) -> Any:
    await community.ann.send(community.channel, f"{community.mention} hello")
    return community.messages()[0]


def faults(lines: list[Any], caplog: pytest.LogCaptureFixture) -> list[Any]:
    """What would stand in the log with a traceback, ours and discord.py's."""
    ours = [line for line in lines if line.get("exc_info") or line["log_level"] == "error"]
    return [*ours, *(record for record in caplog.records if record.levelno >= logging.ERROR)]


@pytest.mark.parametrize(("code", "status"), [(UNKNOWN_INTERACTION, 404), (ACKNOWLEDGED, 400)])
@pytest.mark.parametrize("settings", ["[replies]\nrating_buttons = true"])
@pytest.mark.parametrize("action", ["regenerate", "why", "better", "up"])
async def test_a_button_that_is_answered_too_late_is_one_line_in_the_log(
    community: Community, reply: Any, caplog: pytest.LogCaptureFixture, action: str, code: int, status: int
) -> None:
    community.env.inject_error("POST", CALLBACK, status=status, code=code)
    with capture_logs() as lines:
        await community.ann.click(reply, **press(action, community.replies()[0].id))
    assert [line["code"] for line in lines if line["event"] == "interaction.over"] == [code]
    assert faults(lines, caplog) == [] and len(community.replies()) == 1


async def test_a_command_that_is_answered_too_late_is_one_line_in_the_log(
    community: Community, caplog: pytest.LogCaptureFixture
) -> None:
    community.env.inject_error("POST", CALLBACK, status=404, code=UNKNOWN_INTERACTION)
    with capture_logs() as lines:
        await community.ann.slash(community.channel, "status")
    assert len(community.env.errors) == 1
    assert [line["where"] for line in lines if line["event"] == "interaction.over"] == ["/status"]
    assert faults(lines, caplog) == []


async def test_what_discord_refuses_is_a_sentence_that_names_the_way_out(
    community: Community, caplog: pytest.LogCaptureFixture
) -> None:
    role = community.guild.create_role("admins", permissions=discord.Permissions(manage_guild=True))
    admin = community.guild.add_member(community.env.create_user("carl"), roles=[role])
    community.env.inject_error("GET", "/guilds/*/channels", status=403, code=50001)
    with capture_logs() as lines:
        result = await admin.slash(community.channel, "setup")
    assert text(result) == DISCORD_REFUSED and len(community.env.errors) == 1
    assert [line["code"] for line in lines if line["event"] == "command.discord_refused"] == [50001]
    assert faults(lines, caplog) == []


async def test_the_message_of_a_button_may_be_gone_before_it_answers(
    community: Community, caplog: pytest.LogCaptureFixture
) -> None:
    register(community, *(f"a{number}" for number in range(9)))
    result = await community.ann.slash(community.channel, "adapters")
    (page,) = [message for message in [result.response, *result.followups] if message and message.components]
    community.env.inject_error("PATCH", "/webhooks/*/*/messages/@original", status=404, code=UNKNOWN_MESSAGE)
    with capture_logs() as lines:
        clicked = await community.ann.click(page, custom_id="strop:adapters:1")
    assert told(clicked) == NO_SUCH_MESSAGE and faults(lines, caplog) == []


async def test_who_closes_the_question_before_a_deletion_ends_hears_that_it_is_done(
    community: Community, reply: Any
) -> None:
    asked = (await community.ann.slash(community.channel, "privacy delete")).response
    yes = asked.components[0]
    buttons = yes["components"] if isinstance(yes, dict) else [each.to_dict() for each in yes.children]
    community.env.inject_error("PATCH", "/webhooks/*/*/messages/@original", status=404, code=UNKNOWN_MESSAGE)
    clicked = await community.ann.click(asked, custom_id=buttons[0]["custom_id"])
    assert "is deleted" in told(clicked)


async def test_suggestions_are_none_while_storage_or_model_are_away_and_no_fault_when_late(
    community: Community, model_server: FakeModelServer, caplog: pytest.LogCaptureFixture
) -> None:
    await model_server.stop()
    with capture_logs() as lines:
        assert await community.ann.autocomplete(community.channel, "promote", "adapter", "") == []
    assert faults(lines, caplog) == []

    await model_server.start()
    register(community, FIRST)
    community.env.inject_error("POST", CALLBACK, status=404, code=UNKNOWN_INTERACTION)
    with capture_logs() as lines:
        await community.ann.autocomplete(community.channel, "promote", "adapter", "a")
    assert faults(lines, caplog) == []


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (app_commands.CommandNotFound("old", []), CHANGED),
        (DeliveryError("Discord does not take my message right now."), DISCORD_REFUSED),
        (aiohttp.ClientConnectionError(), DISCORD_REFUSED),
    ],
)
def test_what_is_nobody_s_fault_here_has_a_sentence_and_no_traceback(
    error: Exception, sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    with capture_logs() as lines:
        assert sentence_for(error, "/old") == sentence
    assert faults(lines, caplog) == []


@pytest.mark.parametrize("error", [discord.InvalidData("bad"), TimeoutError(), ZeroDivisionError()])
def test_a_fault_of_ours_is_told_by_an_id_and_kept_whole_in_the_log(error: Exception) -> None:
    with capture_logs() as lines:
        said = sentence_for(error, "/status")
    (line,) = lines
    assert line["error_id"] in said and line["exc_info"] is error


async def test_a_run_that_is_over_or_unknown_is_a_sentence_for_whoever_presses_its_buttons(
    community: Community, caplog: pytest.LogCaptureFixture
) -> None:
    await community.ann.slash(community.channel, "retrain")
    await community.bot.feature(ProgressReporter)._look([f"guild:{community.guild.id}"])
    message = community.messages()[-1]
    (run,) = community.services.database.read(lambda db: runs.latest(db, f"guild:{community.guild.id}"))
    cancel = f"strop:run:{run.id}:cancel"
    with capture_logs() as lines:
        assert text(await community.ann.click(message, custom_id=cancel)) == f"Run `{run.id}` is cancelled."
        assert (
            text(await community.ann.click(message, custom_id=cancel)) == f"Run `{run.id}` is over already."
        )
        community.services.database.write(lambda db: db.conn.execute("DELETE FROM runs"))
        unknown = await community.ann.click(message, custom_id=cancel)
    assert text(unknown) == f"There is no run {run.id}."
    assert faults(lines, caplog) == []


@pytest.mark.parametrize("custom_id", ["strop:gone:1", "settings:edit:server:no_such_key"])
async def test_a_button_of_another_version_is_not_silent(
    community: Community, caplog: pytest.LogCaptureFixture, custom_id: str
) -> None:
    view = discord.ui.View(timeout=None)
    view.add_item(discord.ui.Button(label="Old", custom_id=custom_id))
    channel = community.bot.get_partial_messageable(community.channel.id)
    await channel.send("An old message.", view=view)
    view.stop()
    with capture_logs() as lines:
        clicked = await community.ann.click(community.messages()[-1], custom_id=custom_id)
    assert clicked.ephemeral and text(clicked) == OUTDATED and faults(lines, caplog) == []
