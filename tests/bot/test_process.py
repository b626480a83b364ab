"""The bot as a process: over real sockets to the playground, and what it says when it can't run."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from storage.chat import replies
from storage.db.database import Database
from tests.bot.fake_server import FakeModelServer
from tests.bot.refusing_discord import RefusingDiscord


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


METRICS_PORT = _free_port()


class Processes:
    """Children in a home of their own; all are gone when the test ends."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.data = home / "playground"
        self.config = home / "strop.toml"
        self.children: list[subprocess.Popen[bytes]] = []

    def start(self, module: str, **environment: str) -> subprocess.Popen[bytes]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("DISCORD_", "STROP_"))}
        log = (self.home / f"{module}.log").open("ab")
        child = subprocess.Popen(
            [sys.executable, "-m", module, "--config", str(self.config)],
            env={**kept, "STROP_HOME": str(self.home), **environment},
            stdout=log,
            stderr=log,
        )
        log.close()
        self.children.append(child)
        return child

    def log(self, module: str) -> str:
        return (self.home / f"{module}.log").read_text()

    async def ended(self, child: subprocess.Popen[bytes], within_s: float = 30.0) -> int:
        return await asyncio.to_thread(child.wait, within_s)

    def stop(self) -> None:
        for child in self.children:
            if child.poll() is None:
                child.kill()
            child.wait()


@pytest.fixture
def processes(tmp_path: Path) -> Any:
    made = Processes(tmp_path)
    made.config.write_text("")
    yield made
    made.stop()


class Page:
    """A visitor of the playground's page."""

    def __init__(self, link: dict[str, Any], session: aiohttp.ClientSession) -> None:
        self.link = link
        self.session = session

    async def snapshot(self) -> dict[str, Any]:
        async with self.session.ws_connect("/playground/events", max_msg_size=0) as socket:
            await socket.send_json({"secret": self.link["secret"]})
            found: dict[str, Any] = await socket.receive_json(timeout=60)
            return found

    async def post(self, path: str, **body: Any) -> Any:
        async with self.session.post(f"/playground/{path}", json=body) as response:
            assert response.status < 300, await response.text()
            return await response.json()


async def until(condition: Callable[[], Any], within_s: float = 120.0) -> Any:
    ends_at = time.monotonic() + within_s
    while time.monotonic() < ends_at:
        found = condition()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return found
        await asyncio.sleep(0.1)
    raise AssertionError("it did not happen in time")


@pytest.fixture
async def page(processes: Processes, model_server: FakeModelServer) -> AsyncIterator[Page]:
    processes.config.write_text(
        f'[server]\nbase_url = "{model_server.base_url}"\n[playground]\nport = 0\n'
        f"[metrics]\nport = {METRICS_PORT}\n"
    )
    processes.start("bot.playground")
    pointer = processes.data / "run" / "playground.json"
    await until(pointer.exists)
    link = json.loads(pointer.read_text())
    headers = {"X-Playground-Secret": link["secret"]}
    async with aiohttp.ClientSession(base_url=link["url"], headers=headers) as session:
        yield Page(link, session)


async def said(page: Page, channel_id: str) -> list[str]:
    messages = (await page.snapshot())["messages"].get(channel_id, [])
    return [message["content"] for message in messages if message["author"].get("bot")]


async def test_it_chats_and_counts_ratings_over_real_sockets_and_drains_on_sigterm(
    processes: Processes, page: Page, model_server: FakeModelServer
) -> None:
    bot = processes.start("bot", STROP_PLAYGROUND="1")
    start = await page.snapshot()
    channel = next(each for each in start["channels"] if each["kind"] == "text")["id"]
    member = next(each for each in start["members"] if not each["bot"])["id"]

    async def online() -> bool:
        snapshot = await page.snapshot()
        return bool(snapshot["bot_online"] and snapshot["commands"])

    await until(online)
    bot_id = next(each for each in start["members"] if each["bot"])["id"]
    await page.post("messages", channel_id=channel, author_id=member, content=f"<@{bot_id}> hello")

    async def answered() -> bool:
        return (await said(page, channel))[-1:] == ["Hello there, friend."]

    await until(answered)
    messages = (await page.snapshot())["messages"][channel]
    answer = next(message for message in messages if message["author"].get("bot"))
    body = {"channel_id": channel, "message_id": answer["id"], "user_id": member, "emoji": "👍"}
    async with page.session.put("/playground/reactions", json=body) as response:
        assert response.status < 300

    async def counted() -> bool:
        return bool((await page.snapshot())["loop"].get("ratings", {}).get("liked") == 1)

    await until(counted)

    async def figured() -> bool:
        async with page.session.get(f"http://127.0.0.1:{METRICS_PORT}/metrics") as response:
            figures = (await response.text()).splitlines()
        wanted = {'strop_replies_total{status="complete"} 1.0', 'strop_gateway_connected{shard="0"} 1.0'}
        return wanted <= set(figures)

    await until(figured)
    for command in ("stats", "status"):
        await page.post("commands", channel_id=channel, user_id=member, name=command, options={})
    await until(lambda: processes.log("bot").count("picture.drawn") == 2)

    model_server.answer = "one two three four"
    model_server.gate = asyncio.Event()
    await page.post("messages", channel_id=channel, author_id=member, content=f"<@{bot_id}> again")
    await until(lambda: len(model_server.requests) == 2)
    await asyncio.sleep(1.0)
    bot.send_signal(signal.SIGTERM)
    await asyncio.sleep(0.5)
    model_server.gate.set()
    assert await processes.ended(bot) == 0
    assert (await said(page, channel))[-1] == "one two three four"
    database = Database.open(processes.data / "strop.db")
    stored = database.read(lambda db: replies.recent(db, 0, 10))
    database.close()
    assert [reply.status for reply in stored] == ["complete", "complete"]
    assert all(reply.source == "playground" for reply in stored)
    log = processes.log("bot")
    assert "Hello there" not in log and page.link["token"] not in log


async def test_a_refused_token_is_one_sentence_and_exit_code_3(processes: Processes) -> None:
    refusing = RefusingDiscord(token_works=False)
    await refusing.start(processes.data / "run")
    bot = processes.start("bot", STROP_PLAYGROUND="1")
    assert await processes.ended(bot) == 3
    assert processes.log("bot").splitlines()[-1].startswith("Discord refuses the token:")
    await refusing.stop()


@pytest.mark.parametrize(
    ("code", "exit_code", "sentence"),
    [(4014, 3, "Message Content Intent"), (4004, 3, "token is no longer valid"), (4012, 1, "code 4012")],
)
async def test_a_refused_connection_names_the_way_out(
    processes: Processes, code: int, exit_code: int, sentence: str
) -> None:
    processes.config.write_text("[discord]\nchannels = [1]\n")
    refusing = RefusingDiscord(token_works=True, close_code=code)
    await refusing.start(processes.data / "run")
    bot = processes.start("bot", STROP_PLAYGROUND="1")
    assert await processes.ended(bot) == exit_code
    assert sentence in processes.log("bot").splitlines()[-1]
    assert refusing.identifies == 1
    await refusing.stop()


async def test_without_a_token_the_playground_is_pointed_out(processes: Processes) -> None:
    bot = processes.start("bot")
    assert await processes.ended(bot) == 3
    assert "strop up" in processes.log("bot")


async def test_a_real_token_is_never_sent_to_a_playground(processes: Processes) -> None:
    refusing = RefusingDiscord(token_works=False)
    await refusing.start(processes.home / "run")
    bot = processes.start("bot", STROP_PLAYGROUND="1", DISCORD_TOKEN="a-real-token")
    assert await processes.ended(bot) == 3
    assert "so that a real one can't leak" in processes.log("bot")
    assert "a-real-token" not in processes.log("bot")
    await refusing.stop()


async def test_a_broken_configuration_lists_every_problem(processes: Processes) -> None:
    processes.config.write_text('[discord]\noperatrs = [1]\n[chat]\ntemperature = "hot"\n')
    bot = processes.start("bot", DISCORD_TOKEN="x")
    assert await processes.ended(bot) == 2
    log = processes.log("bot")
    assert "discord.operatrs" in log and "chat.temperature" in log


async def test_an_unreachable_discord_is_tried_again_and_again(processes: Processes) -> None:
    run_dir = processes.data / "run"
    run_dir.mkdir(parents=True)
    nobody = {"api": "http://127.0.0.1:9", "gateway": "ws://127.0.0.1:9", "token": "playground.nobody"}
    (run_dir / "playground.json").write_text(json.dumps(nobody))
    child = processes.start("bot", STROP_PLAYGROUND="1")
    await until(lambda: processes.log("bot").count("Discord can't be reached") >= 2)
    assert child.poll() is None
    child.send_signal(signal.SIGTERM)
    assert await processes.ended(child) == 0
    assert "Traceback" not in processes.log("bot")
