"""`strop tasting` and `strop rehearse` against a real database."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bot.cli.errors import UsageError
from bot.cli.playground import isolated_rehearsal
from bot.cli.playground.isolated_rehearsal import Request
from bot.playground.simulation.prompts import REHEARSAL_PROMPTS
from storage.admin import audit
from storage.config import Config, load_config
from storage.db.database import Database
from storage.errors import ConfigError
from tests.bot.cli.conftest import Strop


@pytest.mark.parametrize("command", ["add", "list", "remove", "start", "stop", "status"])
def test_every_command_has_help_with_an_example(strop: Strop, command: str) -> None:
    text = strop("tasting", command, "--help").output
    assert "Examples:" in text and f"strop tasting {command}" in text


def test_prompts_come_from_a_file_and_go_by_their_numbers(
    strop: Strop, database: Database, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("# ours\nWhat is good bread?\nName three trees.\nwhat is GOOD bread\n")
    assert strop("tasting", "add", str(file)).stdout == (
        "2 new prompts are in the bank. 1 were there already.\n"
    )
    rows = json.loads(strop("tasting", "list", "--json").stdout)
    assert [(row["text"], row["asked"]) for row in rows] == [
        ("What is good bread?", 0),
        ("Name three trees.", 0),
    ]
    assert "1 prompts removed" in strop("tasting", "remove", str(rows[0]["id"])).stdout
    assert "There is no prompt" in strop("tasting", "remove", str(rows[0]["id"]), code=1).stderr
    assert "1 prompts removed" in strop("tasting", "remove", "--all").stdout
    assert "no prompts yet" in strop("tasting", "list").stdout
    assert "by their numbers, or --all" in strop("tasting", "remove", code=2).stderr
    assert "can't be read" in strop("tasting", "add", str(tmp_path / "none"), code=2).stderr


def test_a_tasting_is_begun_and_stopped_and_the_audit_log_names_who_did(
    strop: Strop, database: Database
) -> None:
    assert "no prompts yet" in strop("tasting", "start", "--channel", "6", code=1).stderr
    strop("tasting", "add", "-", answers="one\ntwo\n")
    begun = strop("tasting", "start", "--channel", "6", "--minutes", "2").stdout
    assert begun.startswith("The tasting in channel 6 begins: 2 prompts, one every 2 min. No bot is running")
    assert "on in this channel already" in strop("tasting", "start", "--channel", "6", code=1).stderr
    (row,) = json.loads(strop("tasting", "status", "--json").stdout)
    assert (row["wanted"], row["asked"], row["state"]) == (2, 0, "running")
    assert strop("tasting", "stop").stdout == "The tasting is stopped.\n"
    assert "No tasting is on" in strop("tasting", "stop", code=1).stderr
    assert "0 of 2 asked" in strop("tasting", "status").stdout
    actions = [entry.action for entry in database.read(lambda db: audit.latest(db))]
    assert actions[:3] == ["tasting.stop", "tasting.start", "tasting.add"]


def test_the_tastes_and_the_features_of_ones_own_are_listed_without_a_playground(strop: Strop) -> None:
    assert "not:concrete" in strop("rehearse", "--list").stdout
    found = json.loads(strop("rehearse", "--list", "--json").stdout)
    assert {"question", "words", "avoid"} <= set(found["features"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "--taste or --want"),
        (("--taste", "warm", "--want", "question"), "--taste or --want"),
        (("--taste", "sour"), "There is no taste 'sour'"),
        (("--want", "rude"), "There is no feature 'rude'"),
        (("--taste", "warm", "--set", "trainer.epochs=2"), "need --apart"),
        (("--apart", "--taste", "warm", "--trolls", "30"), "fewer trolls"),
        (("--apart", "--taste", "warm", "--set", "discord.operators=1"), "SECTION.KEY=VALUE"),
        (("--apart", "--taste", "warm", "--prompts", "none.txt"), "can't be read"),
    ],
)
def test_what_can_not_be_rehearsed_is_one_sentence(
    strop: Strop, arguments: tuple[str, ...], sentence: str
) -> None:
    assert sentence in strop("rehearse", *arguments, code=2).stderr


def test_a_rehearsal_apart_has_a_home_without_the_deployments_secrets_and_channels(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISCORD_TOKEN", "secret-token")
    file = tmp_path / "strop.toml"
    file.write_text(
        '[discord]\noperators = [7]\n[chat]\nsystem_prompt = "Be \\"kind\\" 🙂"\n'
        '[trainer]\ncron = "0 4 * * *"\nepochs = 3\n[gate]\npolicy = "ask"\n[server]\nbase_url = "http://127.0.0.1:1"\n'
    )
    base = load_config(file, {"STROP_HOME": str(config.home), "DISCORD_TOKEN": "secret-token"})
    request = Request("warm", REHEARSAL_PROMPTS, settings=("trainer.epochs=2", 'model.base = "auto"'))
    own, path = isolated_rehearsal.prepare(base, request, tmp_path / "apart")
    assert own.playground and own.data == tmp_path / "apart" / "playground"
    assert (own.trainer.epochs, own.trainer.cron, own.trainer.interval_hours) == (2, "", 0.0)
    assert own.chat.system_prompt == 'Be "kind" 🙂' and own.gate.policy == "auto"
    assert own.discord.operators == () and own.server.base_url == ""
    assert "secret-token" not in path.read_text()
    assert "DISCORD_TOKEN" not in isolated_rehearsal.environment(own.home)
    assert (own.home / "models").resolve() == base.models.resolve()


def test_a_rehearsal_apart_never_uses_a_folder_that_holds_something_else(
    config: Config, tmp_path: Path
) -> None:
    request = Request("warm", REHEARSAL_PROMPTS)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds something else"):
        isolated_rehearsal.prepare(config, request, tmp_path / "full")
    config.home.mkdir(exist_ok=True)
    with pytest.raises(UsageError, match="a home of its own"):
        isolated_rehearsal.prepare(config, request, config.home)
    wrong = Request("warm", REHEARSAL_PROMPTS, settings=("trainer.epochs=many",))
    with pytest.raises(ConfigError, match=r"trainer\.epochs"):
        isolated_rehearsal.prepare(config, wrong, tmp_path / "wrong")
