"""A training has the GPU to itself: vLLM (a stand-in with its /health) ends, and starts again afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import aiohttp
import pytest

from bot.serving import gpu_claim
from bot.serving.client import ModelClient
from bot.serving.gpu_claim import card_to_itself, is_claimed
from bot.serving.protocol import ASLEEP, SERVER_FILE
from bot.serving.vllm.child import VllmChild
from bot.serving.vllm.flags import Launch
from bot.serving.vllm.serving import lend_the_card

STAND_IN = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_):
        pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
HOLDER = """
import sys
from pathlib import Path
from bot.serving.gpu_claim import card_to_itself
with card_to_itself(Path(sys.argv[1]), lambda: None) as alone:
    print(alone, flush=True)
    sys.stdin.read()
"""


def announce(run_dir: Path, asleep: Mapping[str, bool], base_url: str) -> None:
    value = {"base_url": base_url, "secret": "s", "pid": 1, "engine": "vllm", "base": None, **asleep}
    (run_dir / SERVER_FILE).write_text(json.dumps(value))


class Server:
    """A stand-in for vLLM and what keeps it."""

    def __init__(self, run_dir: Path) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        self.run_dir, self.base_url = run_dir, f"http://127.0.0.1:{port}"
        argv = (sys.executable, "-c", STAND_IN, str(port))
        self.child = VllmChild(
            Launch(argv, dict(os.environ)), base_url=self.base_url, log_file=run_dir / "vllm.log"
        )

    async def answers(self) -> bool:
        async with aiohttp.ClientSession() as session:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"{self.base_url}/health") as response:
                    return response.status == 200
        return False

    async def until_it_answers(self) -> None:
        while not await self.answers():  # noqa: ASYNC110 (another process has no event to wait for)
            await asyncio.sleep(0.05)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    made = Server(tmp_path)
    announce(tmp_path, {}, made.base_url)
    running = asyncio.create_task(made.child.run())
    lending = asyncio.create_task(
        lend_the_card(made.child, tmp_path, lambda asleep: announce(tmp_path, asleep, made.base_url))
    )
    await made.until_it_answers()
    yield made
    lending.cancel()
    made.child.stop()
    await running
    assert not made.child.is_running


async def test_vllm_is_gone_while_a_training_has_its_card_and_comes_back_after_it(server: Server) -> None:
    def train() -> tuple[bool, bool]:
        with card_to_itself(server.run_dir, lambda: None) as alone:
            return alone, server.child.is_running

    assert await asyncio.to_thread(train) == (True, False)
    await server.until_it_answers()
    assert not json.loads((server.run_dir / SERVER_FILE).read_text()).get(ASLEEP)


async def test_people_are_told_why_nobody_answers(server: Server) -> None:
    entered, leave = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def train() -> None:
        with card_to_itself(server.run_dir, lambda: None):
            loop.call_soon_threadsafe(entered.set)
            asyncio.run_coroutine_threadsafe(leave.wait(), loop).result()

    training = asyncio.create_task(asyncio.to_thread(train))
    await entered.wait()
    assert not await server.answers()
    async with ModelClient.from_run_dir(server.run_dir) as client:
        health = await client.health()
    assert (health.status, str(health.detail)) == (
        "loading",
        "A training has the GPU to itself; answers come after it.",
    )
    leave.set()
    await training


async def test_a_training_that_is_killed_gives_the_card_back(server: Server) -> None:
    pipe = asyncio.subprocess.PIPE
    argv = (sys.executable, "-c", HOLDER, str(server.run_dir))
    holder = await asyncio.create_subprocess_exec(*argv, stdin=pipe, stdout=pipe)
    assert holder.stdout is not None
    assert await holder.stdout.readline() == b"True\n"
    assert is_claimed(server.run_dir)
    holder.kill()
    await holder.wait()
    await server.until_it_answers()


def test_a_server_that_is_not_vllm_keeps_its_card(tmp_path: Path) -> None:
    with card_to_itself(tmp_path, lambda: None) as alone:
        assert not alone
    (tmp_path / SERVER_FILE).write_text(
        json.dumps({"base_url": "http://127.0.0.1:1", "secret": "s", "pid": 1})
    )
    with card_to_itself(tmp_path, lambda: None) as alone:
        assert not alone
        assert not is_claimed(tmp_path)


def test_a_server_that_never_ends_is_trained_beside(tmp_path: Path) -> None:
    announce(tmp_path, {}, "http://127.0.0.1:1")
    with card_to_itself(tmp_path, lambda: None, patience_s=0.0) as alone:
        assert not alone
        assert not is_claimed(tmp_path)


def test_a_run_that_is_cancelled_stops_waiting(tmp_path: Path) -> None:
    class Cancelled(Exception):
        pass

    def cancel() -> None:
        raise Cancelled

    announce(tmp_path, {}, "http://127.0.0.1:1")
    with pytest.raises(Cancelled), card_to_itself(tmp_path, cancel, gpu_claim.PATIENCE_S):
        pass
    assert not is_claimed(tmp_path)
