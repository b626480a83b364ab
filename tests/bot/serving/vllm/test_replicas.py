"""Two real vLLMs behind a real nginx: a swap under load, an erasure, a replica killed (`make test-vllm`)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import pytest

from bot.serving.client import ModelClient
from bot.serving.errors import ServerUnavailableError, UnknownModelError
from bot.serving.protocol import ChatMessage, Sampling
from bot.serving.vllm.child import PYTHON_VARIABLE
from tests.bot.serving.serving_process import ServingProcess
from tests.bot.serving.vllm.test_real_vllm import BUNDLED, adapter, loaded
from tests.deploy.nginx import KEY, NGINX, free_port, nginx
from tests.deploy.test_vllm_router import routed

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed"),
]

ASKED = [ChatMessage("user", "What is the capital of France? Answer in one word.")]
SHORT = Sampling(6, temperature=0.0)
WORKERS = 4
# Answers before the swap, between it and the kill, and after the kill.
ANSWERS = 12


@dataclass
class Load:
    """Members who ask without a break for the champion's answer, and what came of it."""

    client: ModelClient
    champion: str
    answers: list[tuple[str, str]] = field(default_factory=list)
    broke_off: int = 0
    lost: list[str] = field(default_factory=list)

    async def ask_for_ever(self) -> None:
        while True:
            asked, said = self.champion, ""
            try:
                async for delta in self.client.chat_stream(model=asked, messages=ASKED, sampling=SHORT):
                    said += delta.text
            except ServerUnavailableError as error:
                if said:
                    self.broke_off += 1
                else:
                    self.lost.append(str(error))
            else:
                self.answers.append((asked, said))

    async def until(self, more: int) -> None:
        """Wait for so many more answers."""
        wanted = len(self.answers) + more
        while len(self.answers) < wanted:
            assert not self.lost, self.lost
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def under_load(client: ModelClient, champion: str) -> AsyncIterator[Load]:
    load = Load(client, champion)
    asking = [asyncio.create_task(load.ask_for_ever()) for _ in range(WORKERS)]
    yield load
    for each in asking:
        each.cancel()
    await asyncio.gather(*asking, return_exceptions=True)


async def said_by(client: ModelClient, model: str) -> str:
    """Return what a model says at every time, also beside others."""
    answers = await asyncio.gather(
        *(client.chat(model=model, messages=ASKED, sampling=SHORT, deadline_s=900) for _ in range(WORKERS))
    )
    texts = {each.text for each in answers}
    return texts.pop() if len(texts) == 1 else ""


def kill(server: ServingProcess) -> None:
    """End a replica with all that it started, at once."""
    pid = server.process.pid
    (child,) = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    server.process.kill()
    os.killpg(child, signal.SIGKILL)


async def test_a_swap_an_erasure_and_a_dead_replica_under_load(tmp_path: Path, bundled_models: Path) -> None:
    env = {**os.environ, PYTHON_VARIABLE: os.environ.get("TEST_VLLM_PYTHON", "")}
    shared = tmp_path / "adapters"
    shared.mkdir()
    options = {"engine": "vllm", "models_dir": str(bundled_models), "context_tokens": 256, "api_key": KEY}
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(ServingProcess(tmp_path / name, env=env, adapters_dir=str(shared), **options))
            for name in ("one", "two")
        ]
        ports = []
        for server in servers:
            address = await asyncio.to_thread(server.address)
            ports.append(int(address["base_url"].rpartition(":")[2]))
        router = stack.enter_context(nginx(tmp_path, routed(port := free_port(), *ports), port))
        async with contextlib.AsyncExitStack() as clients:
            connect = clients.enter_async_context
            # As a bot on another machine sees each of them.
            direct = [await connect(ModelClient(f"http://127.0.0.1:{each}", api_key=KEY)) for each in ports]
            client = await connect(ModelClient(router, api_key=KEY))
            for each in direct:
                await loaded(each)
            await _swapped_under_load(client, direct, servers, shared)


async def _swapped_under_load(
    client: ModelClient, direct: list[ModelClient], servers: list[ServingProcess], shared: Path
) -> None:
    health = await client.health()
    assert health.base is not None and health.base.id == BUNDLED
    assert health.base.hash.startswith("eaee85507710c583")
    assert (await client.capabilities()).can_train
    texts: dict[str, str] = {}
    for seed in count(1):
        found = adapter(shared, health, seed=seed)
        # No replica was told of it.
        both = {await said_by(each, found.name) for each in direct}
        if len(both) == 1 and (text := both.pop()) and text not in texts.values():
            texts[found.name] = text
        if len(texts) == 2:
            break
    first, second = texts
    async with under_load(client, first) as load:
        await load.until(ANSWERS)
        await client.load_adapter(second, shared / second)
        load.champion = second
        await load.until(ANSWERS)

        shutil.rmtree(shared / first)
        for each in direct:
            with pytest.raises(UnknownModelError):
                await each.chat(model=first, messages=ASKED, sampling=SHORT)
            assert first not in await each.models()
        assert not await client.has_adapter(first)

        kill(servers[1])
        await load.until(2 * ANSWERS)
    assert load.lost == []
    assert load.broke_off <= WORKERS, "what was being written when the replica died"
    assert {asked for asked, _ in load.answers} == {first, second}
    assert [said for asked, said in load.answers if said != texts[asked]] == []
