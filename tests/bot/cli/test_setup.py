"""`strop init` and `strop doctor`, the latter with a stand-in for Discord's REST at the outer edge."""

from __future__ import annotations

import asyncio
import http.server
import json
import os
import re
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from bot.cli.first_start.init_config import (
    Answers,
    InitialiseError,
    parse_ids,
    parse_schedule,
    render,
    write_configuration,
)
from bot.diagnostics.checks import Check
from bot.diagnostics.discord_access import PERMISSIONS
from bot.diagnostics.doctor import examine
from bot.serving.vllm.child import PYTHON_VARIABLE
from storage.config import Config, load_config
from storage.db import key_values, migrations
from storage.db.database import Database
from storage.privacy import backup
from storage.process.locks import ProcessLock
from tests.bot.cli.conftest import Strop

TOKEN = "MTIzNDU2Nzg5MDEyMzQ1Njc4.GaBcDe.abcdefghijklmnopqrstuvwxyz0123456789AB"
ENOUGH = str(sum(PERMISSIONS.values()))


# ------------------------------------------------------------ init
def test_init_asks_and_writes_a_file_that_loads_with_the_token_kept_out_of_it(
    strop: Strop, tmp_path: Path
) -> None:
    answers = (
        f"{TOKEN}\n123456789012345678, <@223456789012345678>\n<#323456789012345678>\ndeployment\n0 4 * * *\n"
    )
    said = strop("init", "--token", answers=answers).output
    text = (tmp_path / "strop.toml").read_text()
    config = load_config(tmp_path / "strop.toml", {})
    assert config.discord.operators == (123456789012345678, 223456789012345678)
    assert config.discord.channels == (323456789012345678,)
    assert (config.trainer.scope, config.trainer.cron, config.trainer.interval_hours) == (
        "deployment",
        "0 4 * * *",
        0.0,
    )
    secret = tmp_path / "discord-token"
    assert secret.read_text().strip() == TOKEN and secret.stat().st_mode & 0o777 == 0o600
    assert TOKEN not in text and TOKEN not in said
    loaded = load_config(tmp_path / "strop.toml", {"DISCORD_TOKEN_FILE": str(secret)})
    assert loaded.discord.token is not None and loaded.discord.token.get_secret_value() == TOKEN


def test_init_takes_defaults_without_asking_and_never_replaces_a_file_by_accident(
    strop: Strop, tmp_path: Path
) -> None:
    strop("init", "--yes", "--operators", "123456789012345678")
    before = (tmp_path / "strop.toml").read_text()
    assert "--force" in strop("init", "--yes", code=1).stderr
    assert (tmp_path / "strop.toml").read_text() == before
    strop("init", "--yes", "--force", "--schedule", "off")
    assert load_config(tmp_path / "strop.toml", {}).trainer.interval_hours == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--operators", "ada"), "'ada' is no Discord id"),
        (("--schedule", "sometimes"), "is no schedule"),
        (("--schedule", "-3"), "is no interval"),
        (("--schedule", "0 25 * * *"), "'25' is no hour"),
        (("--schedule", "0 4 31 2 *"), "never due"),
        (("--time-zone", "Berlin/Europe"), "no time zone"),
        (("--scope", "planet"), "guild or deployment"),
    ],
)
def test_an_answer_that_makes_no_sense_is_named_and_nothing_is_written(
    strop: Strop, tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    assert (
        strop(
            "init", "--yes", *arguments, code=2 if {"--scope", "--time-zone"} & {*arguments} else 1
        ).stderr.count(sentence)
        == 1
    )
    assert not (tmp_path / "strop.toml").exists()


def test_a_pasted_client_secret_is_no_token_and_is_not_echoed(strop: Strop, tmp_path: Path) -> None:
    result = strop("init", "--token", "--yes", answers="not-a-token\n", code=1)
    assert "no bot token" in result.stderr and "not-a-token" not in result.output
    assert not (tmp_path / "strop.toml").exists()


@given(
    operators=st.lists(st.integers(10**15, 10**19), max_size=4, unique=True).map(tuple),
    scope=st.sampled_from(["guild", "deployment"]),
    schedule=st.sampled_from(["24", "0.5", "off", "0 4 * * *", "*/5 1,2 * * 1-5"]),
    minimum=st.integers(0, 10_000),
)
def test_whatever_is_answered_the_file_loads(
    tmp_path_factory: pytest.TempPathFactory, operators: Any, scope: Any, schedule: str, minimum: int
) -> None:
    path = tmp_path_factory.mktemp("init") / "strop.toml"
    write_configuration(path, Answers(operators, (), scope, schedule, minimum))
    config = load_config(path, {})
    assert (config.discord.operators, config.trainer.scope) == (operators, scope)
    assert (config.trainer.cron, config.trainer.interval_hours) == parse_schedule(schedule)


def test_the_rendered_file_explains_every_key_it_sets() -> None:
    lines = render(Answers()).splitlines()
    assert sum(line.startswith("#") for line in lines) >= 10
    assert not any("token =" in line for line in lines)


def test_ids_are_read_from_mentions_and_said_once() -> None:
    assert parse_ids(" 123456789012345678 <@!123456789012345678>,<#223456789012345678> ") == (
        123456789012345678,
        223456789012345678,
    )
    with pytest.raises(InitialiseError):
        parse_ids("12")


# ------------------------------------------------------------ doctor
class Discord:
    """The few REST answers that the doctor asks for."""

    def __init__(self) -> None:
        self.authorised = True
        self.blocked = False
        self.flags = 0
        self.permissions = ENOUGH
        self.guilds = 1
        self.asked: list[str] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        if self.blocked:
            return web.Response(text="<html>Forbidden</html>", status=403, content_type="text/html")
        assert request.headers["Authorization"] == f"Bot {TOKEN}"
        if not self.authorised:
            return web.json_response({"message": "401: Unauthorized", "code": 0}, status=401)
        path = request.path.removeprefix("/api")
        if path == "/users/@me":
            return web.json_response({"id": "1", "username": "Strop"})
        if path == "/applications/@me":
            return web.json_response({"id": "1", "flags": self.flags})
        if path == "/users/@me/guilds":
            guild = {"id": "2", "name": "Tea house", "permissions": self.permissions}
            return web.json_response([guild] * self.guilds)
        return web.json_response({"message": "Missing Access", "code": 50001}, status=403)


@pytest.fixture
def discord() -> Iterator[Discord]:
    """A server in a thread: the doctor runs an event loop of its own."""
    stand_in, loop, ready = Discord(), asyncio.new_event_loop(), threading.Event()

    async def serve() -> None:
        app = web.Application()
        app.router.add_get("/{path:.*}", stand_in.answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        stand_in.url = f"http://127.0.0.1:{runner.addresses[0][1]}"

    def run() -> None:
        loop.run_until_complete(serve())
        loop.call_soon(ready.set)
        loop.run_forever()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(10)
    yield stand_in
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)


def configured(home: Path, text: str = "", token: str | None = TOKEN) -> Config:
    path = home.parent / "strop.toml"
    path.write_text(text)
    return load_config(path, {"STROP_HOME": str(home), **({"DISCORD_TOKEN": token} if token else {})})


def named(config: Config, name: str, api: str = "http://127.0.0.1:9") -> Check:
    return next(check for check in examine(config, discord_api=api) if check.name == name)


def test_doctor_prints_one_line_each_and_passes_on_this_machine(strop: Strop, tmp_path: Path) -> None:
    (tmp_path / "strop.toml").write_text("[server]\nport = 0\n[playground]\nport = 0\n")
    lines = strop("doctor").stdout.splitlines()
    assert all(line[0] in "✓·" for line in lines)
    names = " ".join(line[2:].split(":")[0] for line in lines)
    assert names == (
        "config token model schedule home sqlite database backup disk memory gpu compiler torch kernels"
        " encryption"
        " server port playground port"
    )


def test_doctor_lists_every_configuration_problem_and_exits_1(strop: Strop, tmp_path: Path) -> None:
    (tmp_path / "strop.toml").write_text("[trainer]\nnice = 40\nminliked = 1\n")
    found = json.loads(strop("doctor", "--json", code=1).stdout)
    assert [check["state"] for check in found] == ["problem", "problem"]
    assert all(check["fix"] for check in found)


@pytest.mark.parametrize(
    ("text", "installed", "advised"),
    [
        ("", False, True),
        ("", True, False),
        ('[server]\nengine = "strop"\n', False, False),
        ('[server]\nbase_url = "http://127.0.0.1:9"\n', False, False),
    ],
    ids=["missing", "installed", "not wanted", "served elsewhere"],
)
def test_on_a_gpu_the_doctor_advises_vllm_where_it_would_serve(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, installed: bool, advised: bool
) -> None:
    driver = tmp_path / "bin" / "nvidia-smi"
    driver.parent.mkdir()
    driver.write_text("#!/bin/sh\necho 'Some GPU, 24576'\n")
    driver.chmod(0o700)
    monkeypatch.setenv("PATH", f"{driver.parent}:{os.environ['PATH']}")
    monkeypatch.setenv(PYTHON_VARIABLE, sys.executable if installed else str(tmp_path / "none"))
    check = named(configured(home, text, token=None), "gpu")
    assert check.detail.startswith("Some GPU, 24.0 GiB")
    assert ("make install-gpu" in check.detail) is advised
    assert check.state == ("note" if advised else "ok")


def test_without_a_token_discord_is_never_called(home: Path, discord: Discord) -> None:
    assert named(configured(home, token=None), "token", discord.url).state == "note"
    assert discord.asked == []


def test_a_working_token_with_everything_it_needs_passes(home: Path, discord: Discord) -> None:
    config = configured(home)
    states = {check.name: check.state for check in examine(config, discord_api=discord.url)}
    assert (states["token"], states["intents"], states["permissions"]) == ("ok", "ok", "ok")


def test_a_refused_token_is_a_problem_that_never_shows_the_token(home: Path, discord: Discord) -> None:
    discord.authorised = False
    check = named(configured(home), "token", discord.url)
    assert check.state == "problem" and "reset it" in check.fix
    assert TOKEN not in str(check)


def test_a_page_in_discords_place_says_nothing_about_a_token(home: Path, discord: Discord) -> None:
    discord.blocked = True
    check = named(configured(home), "token", discord.url)
    assert check.state == "note" and "status 403 that is not Discord's" in check.detail


def test_discord_is_asked_through_the_proxy(home: Path, discord: Discord) -> None:
    config = configured(home, f'[network]\nproxy = "{discord.url}"')
    assert named(config, "token", "http://discord.invalid/api").state == "ok"
    assert discord.asked[0] == "/api/users/@me"


def test_a_home_that_is_a_file_or_on_another_machine_is_a_problem(home: Path) -> None:
    assert named(configured(home), "home").state == "ok"
    home.parent.mkdir(exist_ok=True)
    home.write_text("")
    check = named(configured(home), "home")
    assert (
        check.state == "problem" and "is a file, not a folder" in check.detail and "STROP_HOME" in check.fix
    )


def test_channels_need_the_message_content_intent_and_access(home: Path, discord: Discord) -> None:
    config = configured(home, "[discord]\nchannels = [123456789012345678]\n")
    assert "Message Content" in named(config, "intents", discord.url).fix
    assert "123456789012345678" in named(config, "channels", discord.url).detail
    discord.flags = 1 << 19
    assert named(config, "intents", discord.url).state == "ok"


def test_missing_permissions_are_named_and_a_bot_in_no_server_gets_its_invitation(
    home: Path, discord: Discord
) -> None:
    config = configured(home)
    discord.permissions = str(PERMISSIONS["View Channels"])
    assert "Send Messages" in named(config, "permissions", discord.url).detail
    discord.permissions = str(1 << 3)
    assert named(config, "permissions", discord.url).state == "ok"
    discord.guilds = 0
    assert "invite it" in named(config, "permissions", discord.url).fix


def test_without_a_way_to_discord_the_token_is_said_to_be_unchecked(home: Path) -> None:
    check = named(configured(home), "token", "http://127.0.0.1:9")
    assert (check.state, check.detail.split(":")[0]) == ("note", "not checked")


def test_a_port_in_use_is_a_problem_unless_strop_itself_has_it(home: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        config = configured(home, f"[server]\nport = {port}\n[playground]\nport = 0\n", token=None)
        check = named(config, f"port {port}")
        assert check.state == "problem" and "server.port" in check.fix
        config.run.mkdir(parents=True)
        (config.run / "server.json").write_text("{}")
        with ProcessLock(config.run / "strop.lock").acquire("busy"):
            assert named(config, f"port {port}").state == "ok"


def test_the_port_of_the_metrics_is_looked_at_where_there_is_one(home: Path) -> None:
    assert not any(check.detail.startswith("metrics:") for check in examine(configured(home, token=None)))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        config = configured(home, f"[metrics]\nport = {port}\n", token=None)
        check = named(config, f"port {port}")
        assert check.state == "problem" and "metrics.port" in check.fix
        with ProcessLock(config.run / "bot.lock").acquire("busy"):
            assert named(config, f"port {port}").state == "ok"


def test_a_base_that_is_missing_or_empty_is_named(home: Path, tmp_path: Path) -> None:
    missing = configured(home, f'[model]\nbase = "{tmp_path}/none"\n', token=None)
    assert "fix model.base" in named(missing, "model").fix
    (tmp_path / "base").mkdir()
    empty = configured(home, f'[model]\nbase = "{tmp_path}/base"\n', token=None)
    assert "holds no model" in named(empty, "model").detail
    hub = configured(home, '[model]\nbase = "someone/model"\n', token=None)
    assert named(hub, "model").state == "note"


def test_a_base_too_large_by_its_name_is_refused_without_asking_the_hub(home: Path) -> None:
    large = configured(home, '[model]\nbase = "someone/Large-7000B-Instruct"\ndevice = "cpu"\n', token=None)
    check = named(large, "model")
    assert check.state == "problem"
    assert "in 4 bits (by its name)" in check.detail
    assert "strop models" in check.fix


def test_the_base_that_auto_takes_is_named_with_the_reason(home: Path) -> None:
    playground = named(configured(home, "", token=None), "model")
    assert "auto: the bundled SmolLM2-135M-Instruct" in playground.detail
    real = named(configured(home, '[model]\ndevice = "cpu"\n'), "model")
    assert real.detail.startswith("auto: ") and "tokens a second" in real.detail


class Bare(http.server.BaseHTTPRequestHandler):
    """A model server that knows chat and nothing else."""

    def do_GET(self) -> None:
        body = b'{"data": [{"id": "somebody"}, {"id": "else"}]}' if self.path == "/v1/models" else b""
        self.send_response(200 if body else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        return


def test_somebody_elses_server_is_asked_what_it_offers(home: Path) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Bare)
    url = f"http://127.0.0.1:{server.server_port}"
    config = configured(home, f'[server]\nbase_url = "{url}/v1"\n', token=None)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    check = named(config, "model")
    assert check.state == "note"
    assert "Chat and ratings work, training doesn't. It can't load adapters" in check.detail
    assert "It has no /tokenize: the length of prompts is estimated." in check.detail
    other = configured(home, f'[server]\nbase_url = "{url}"\nmodel = "nobody"\n', token=None)
    unknown = named(other, "model")
    assert unknown.state == "problem" and "has no model nobody; it has somebody, else." in unknown.detail
    assert "somebody of its 2 models answers (server.model)" in check.detail
    server.shutdown()
    server.server_close()
    gone = named(config, "model")
    assert gone.state == "problem" and f"start the server at {url}" in gone.fix


def test_a_base_that_does_not_fit_into_memory_is_named_before_it_is_loaded(
    home: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    with (base / "model.safetensors").open("wb") as file:
        file.truncate(2**43)  # sparse: takes no room
    check = named(configured(home, f'[model]\nbase = "{base}"\n', token=None), "model")
    assert check.state == "problem" and "smaller model.base" in check.fix


def test_a_damaged_database_is_a_problem_and_a_sound_one_is_not(home: Path) -> None:
    config = configured(home, token=None)
    Database.open(config.database).close()
    assert named(config, "database").state == "ok"
    config.database.write_bytes(b"this is no database at all" * 100)
    assert named(config, "database").state == "problem"


@pytest.mark.parametrize(
    ("trainer", "said"),
    [
        (
            'cron = "0 4 * * 0"\ntime_zone = "Asia/Tokyo"',
            r"ok cron '0 4 \* \* 0': (Sun \S+ 04:00 JST(, )?){3} .the default",
        ),
        ('cron = "@daily"\ninterval_hours = 24.0', "note two clocks start runs.*set one to 0 or empty"),
        (
            'cron = "@daily"\ninterval_hours = 0.0',
            r"ok cron '@daily': \w{3} \S+ 00:00 UTC, .*UTC, or after 50 new",
        ),
        ("interval_hours = 6.0", "ok every 6 h: .*UTC, or after 50 new ratings"),
        (
            "interval_hours = 0.0\nmin_new_ratings = 0",
            "note no clock: a run starts only when it is asked for",
        ),
    ],
)
def test_the_next_three_runs_are_shown_in_the_operators_time(home: Path, trainer: str, said: str) -> None:
    check = named(configured(home, f"[trainer]\n{trainer}"), "schedule")
    assert re.match(said, f"{check.state} {check.detail}"), check


def test_encryption_is_reported_and_never_promised(home: Path) -> None:
    assert named(configured(home, token=None), "encryption").state == "note"


def test_doctor_names_the_newest_whole_backup_and_finds_damage_in_any_page(home: Path) -> None:
    config = configured(home, token=None)
    with Database.open(config.database) as database:
        database.write(lambda db: [key_values.put(db, str(n), "x" * 500) for n in range(200)])
        backup.backup(database, config.backups / "monday")
    checks = {check.name: check for check in examine(config)}
    assert checks["backup"].state == "ok" and "monday is whole and 0 hours old" in checks["backup"].detail

    content = bytearray(config.database.read_bytes())
    for start in range(len(content) - 4096 * 3, len(content), 4096):
        content[start : start + 100] = b"\xff" * 100
    config.database.write_bytes(content)
    (config.backups / "monday" / "strop.db").write_bytes(b"cut off")
    states = {check.name: check.state for check in examine(config)}
    assert (states["database"], states["backup"]) == ("problem", "problem")


def test_doctor_only_looks_at_a_database_of_an_earlier_version(home: Path) -> None:
    config = load_config(None, {"STROP_HOME": str(home)})
    with Database.open(config.database) as opened:
        newest = opened.read(lambda db: migrations.steps.applied(db)[-1].name)
        opened.write(lambda db: db["_sqlite_migrations"].delete_where("name = ?", [newest]))
    assert Database.is_outdated(config.database)
    (found,) = [check for check in examine(config) if check.name == "database"]
    assert "of an earlier version: the next start updates it" in found.detail
    assert Database.is_outdated(config.database)


def test_doctor_says_how_many_runs_fit_at_the_same_time(home: Path) -> None:
    config = configured(home, token=None)

    def said(count: int) -> Check | None:
        trainer = config.trainer.model_copy(update={"parallel_runs": count})
        checks = examine(config.model_copy(update={"trainer": trainer}))
        return next((check for check in checks if check.name == "parallel runs"), None)

    assert said(1) is None
    assert (two := said(2)) is not None and two.state == "ok", two
    assert (many := said(10_000)) is not None and many.state == "problem"
    assert "don't fit" in many.detail and "set trainer.parallel_runs to " in many.fix
