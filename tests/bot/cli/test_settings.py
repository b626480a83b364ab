"""`strop settings`, `strop block`, `strop unblock` and `strop blocks`."""

from __future__ import annotations

import json

import pytest

from storage.admin import audit
from storage.db.database import Database
from tests.bot.cli.conftest import Strop


@pytest.mark.parametrize("command", ["show", "set", "reset", "places"])
def test_every_subcommand_has_help_with_an_example(strop: Strop, command: str) -> None:
    text = strop("settings", command, "--help").output
    assert "Examples:" in text and f"strop settings {command}" in text


def test_settings_are_shown_set_and_reset(strop: Strop, database: Database) -> None:
    assert "temperature          file     0.7" in strop("settings", "show").output
    strop("settings", "set", "temperature", "0,4")
    strop("settings", "set", "triggers", "reply mention", "--channel", "7")
    shown = json.loads(strop("settings", "show", "--channel", "7", "--json").stdout)
    assert shown["temperature"] == {"value": 0.4, "from": "server"}
    assert shown["triggers"] == {"value": ["mention", "reply"], "from": "channel"}
    assert "channel 7 of server" in strop("settings", "places").output
    assert "Reset for server" in strop("settings", "reset", "temperature").output
    assert "Nothing was set there" in strop("settings", "reset", "temperature").output
    actions = [entry.action for entry in database.read(audit.latest)]
    assert actions == ["settings.reset", "settings.change", "settings.change"]


def test_what_does_not_fit_is_one_sentence(strop: Strop, database: Database) -> None:
    assert "number from 0 to 2" in strop("settings", "set", "temperature", "9", code=2).stderr
    assert "There is no setting" in strop("settings", "set", "temprature", "1", code=2).stderr
    said = strop("settings", "set", "rating_down", "👍", code=2).stderr
    assert "can't mean both a like and a dislike" in said
    assert "No server has settings" in strop("settings", "places").output


def test_members_are_blocked_listed_and_unblocked(strop: Strop, database: Database) -> None:
    strop("block", "77", "--reason", "spam")
    strop("block", "78", "--guild", "5")
    listed = json.loads(strop("blocks", "--json").stdout)
    assert {(row["user_id"], row["guild_id"]) for row in listed} == {(77, 0), (78, 5)}
    assert "everywhere" in strop("blocks", "--guild", "5").output
    strop("unblock", "77")
    assert "not blocked" in strop("unblock", "77", code=1).stderr
