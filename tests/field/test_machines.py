"""Strop's own processes on machines as they are: homes that take nothing, odd encodings, proxies."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from aiohttp import web

from bot.chat.content.attachments import AttachmentReader, from_discord
from bot.cli.launch.children import children
from bot.serving.client import ModelClient
from storage.config import load_config
from tests.bot.chat.test_attachments import File
from tests.field.listening import listening

ROOT = Path(__file__).parent.parent.parent


def strop(*arguments: str, folder: Path, **env: str) -> subprocess.CompletedProcess[bytes]:
    names = ("DISCORD_TOKEN", "DISCORD_TOKEN_FILE", "STROP_CONFIG", "HTTPS_PROXY", "https_proxy")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        env={**environment, "PYTHONPATH": str(ROOT), **env},
        cwd=folder,
        capture_output=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    "command",
    [
        ("bot.cli", "up"),
        ("bot.cli", "doctor"),
        ("bot.cli", "status"),
        ("bot",),
        ("trainer",),
        ("bot.playground",),
    ],
    ids=" ".join,
)
def test_every_process_says_in_one_sentence_that_its_home_is_a_file(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "data").write_text("not a folder")
    ended = strop(*command, folder=tmp_path, STROP_HOME=str(tmp_path / "data"))
    said = (ended.stdout + ended.stderr).decode()
    assert ended.returncode in (1, 2) and "Traceback" not in said
    assert "is a file, not a folder" in said
    assert len(ended.stderr.decode().strip().splitlines()) <= 1


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
@pytest.mark.parametrize("command", [("doctor",), ("--help",)], ids=" ".join)
def test_a_terminal_of_another_encoding_gets_what_it_can_show(
    tmp_path: Path, encoding: str, command: tuple[str, ...]
) -> None:
    (tmp_path / "strop.toml").write_text("[server]\nport = 0\n[playground]\nport = 0\n")
    ended = strop(
        "bot.cli", *command, folder=tmp_path, STROP_HOME=str(tmp_path / "dätä"), PYTHONIOENCODING=encoding
    )
    # The command line library writes UTF-8 where it is told that only ASCII goes.
    said = ended.stdout.decode(encoding, "replace")
    assert ended.returncode == 0 and b"Traceback" not in ended.stderr
    assert ("+ config" in said) if command == ("doctor",) else ("doctor" in said)


class Proxy:
    """A forward proxy, as far as a client notices: takes requests for any host and answers itself."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(f"{request.method} {request.url.host}{request.path}")
        if request.path == "/health":
            return web.json_response({"status": "ok"})
        return web.Response(text="notes from afar")


@pytest.fixture
async def proxy() -> object:
    stand_in = Proxy()
    async with listening(stand_in.answer) as stand_in.url:
        yield stand_in


async def test_files_and_a_model_server_elsewhere_are_fetched_through_the_proxy(
    proxy: Proxy, tmp_path: Path
) -> None:
    network = load_config(tmp_path / "strop.toml", {"HTTPS_PROXY": proxy.url}).network
    reader = AttachmentReader(from_discord(lambda: "http://files.invalid", network.proxy_for))
    read = await reader.read([File("notes.txt", "http://files.invalid/notes.txt", "text/plain")])
    assert "notes from afar" in read.text
    async with ModelClient("http://model.invalid", proxy=network.proxy_for("http://model.invalid")) as client:
        assert (await client.health()).status == "ok"
    assert proxy.asked == ["GET files.invalid/notes.txt", "GET model.invalid/health"]


def test_the_processes_that_ask_the_hub_find_the_proxy_of_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "strop.toml").write_text('[network]\nproxy = "http://proxy.lan:3128"\nno_proxy = "hub.lan"')
    config = load_config(tmp_path / "strop.toml", {"STROP_HOME": str(tmp_path)})
    for child in children(config, tmp_path / "strop.toml", {"PATH": "/bin"}):
        assert child.env is not None and child.env["HTTPS_PROXY"] == "http://proxy.lan:3128"
        assert child.env["NO_PROXY"].split(",") == ["localhost", "127.0.0.1", "::1", "hub.lan"]


async def test_a_health_check_asks_the_server_where_the_configuration_puts_it(
    proxy: Proxy, tmp_path: Path
) -> None:
    (tmp_path / "strop.toml").write_text(f'[server]\nbase_url = "{proxy.url}"\n')
    home = str(tmp_path / "data")
    found = await asyncio.to_thread(strop, "bot.cli", "health", folder=tmp_path, STROP_HOME=home)
    assert found.returncode == 0 and proxy.asked == ["GET 127.0.0.1/health"]
    run = tmp_path / "data" / "playground" / "run"
    run.mkdir(parents=True)
    (run / "server.json").write_text(json.dumps({"base_url": proxy.url, "secret": "ours"}))
    (tmp_path / "strop.toml").write_text("[server]\nport = 1\n")
    found = await asyncio.to_thread(strop, "bot.cli", "health", folder=tmp_path, STROP_HOME=home)
    assert found.returncode == 0 and len(proxy.asked) == 2


def test_a_health_check_that_nobody_answers_fails(tmp_path: Path) -> None:
    (tmp_path / "strop.toml").write_text("[server]\nport = 1\n")
    ended = strop("bot.cli", "health", folder=tmp_path, STROP_HOME=str(tmp_path / "data"))
    assert ended.returncode == 1 and b"doesn't answer" in ended.stderr
    recipe = (ROOT / "deploy/Dockerfile").read_text()
    assert '["strop", "health"]' in recipe and "8601" not in recipe
