"""A real vLLM behind `strop serve`: its CPU build with the bundled model in bfloat16 (`make test-vllm`)."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from bot.serving.client import ModelClient
from bot.serving.errors import (
    AdapterDamagedError,
    PicturesRefusedError,
    ServerUnavailableError,
    UnknownModelError,
)
from bot.serving.protocol import ChatMessage, Health, Sampling
from bot.serving.vllm.child import PYTHON_VARIABLE, find_python
from bot.serving.vllm.serving import LOG_FILE
from tests.bot.serving.builders import lora_tensors, write_adapter
from tests.bot.serving.serving_process import ServingProcess

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(3600)]

BUNDLED = "SmolLM2-135M-Instruct"
CAPITAL = [ChatMessage("user", "What is the capital of France? Answer in one word.")]
GREEDY = Sampling(8, temperature=0.0)
# vLLM loads in a minute on two idle cores, and in many where others work.
PATIENCE_S = 1800
LAYERS, HIDDEN, KEY_VALUE = 30, 576, 192


def widths() -> dict[str, tuple[int, int]]:
    """The attention projections of the bundled model."""
    found = {}
    for layer in range(LAYERS):
        place = f"model.layers.{layer}.self_attn"
        found |= {f"{place}.q_proj": (HIDDEN, HIDDEN), f"{place}.k_proj": (HIDDEN, KEY_VALUE)}
        found |= {f"{place}.v_proj": (HIDDEN, KEY_VALUE), f"{place}.o_proj": (HIDDEN, HIDDEN)}
    return found


def adapter(adapters_dir: Path, health: Health, seed: int) -> Path:
    """Write a random adapter of the served base."""
    assert health.base is not None
    tensors = {name: tensor.to(torch.float32) for name, tensor in lora_tensors(widths(), seed=seed).items()}
    return write_adapter(
        adapters_dir,
        base_hash=health.base.hash,
        chat_template_hash=health.base.chat_template_hash,
        tensors=tensors,
    )


async def loaded(client: ModelClient) -> Health:
    """Wait until vLLM answers."""
    ends = time.monotonic() + PATIENCE_S
    while True:
        try:
            health = await client.health()
            if health.status == "ok":
                return health
        except ServerUnavailableError:
            pass
        assert time.monotonic() < ends
        await asyncio.sleep(1)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("vllm")
    (home / "adapters").mkdir()
    return home


async def test_what_the_loop_asks_of_a_server_works_on_a_real_vllm(home: Path, bundled_models: Path) -> None:
    env = {**os.environ, PYTHON_VARIABLE: os.environ.get("TEST_VLLM_PYTHON", "")}
    assert find_python(env) is not None, "set TEST_VLLM_PYTHON to the interpreter that has vLLM"
    with ServingProcess(
        home, engine="vllm", models_dir=str(bundled_models), context_tokens=512, env=env
    ) as server:
        await asyncio.to_thread(server.address)
        async with ModelClient.from_run_dir(server.run_dir) as client:
            health = await loaded(client)
            assert health.base is not None
            # The same base as under our own engine: its champions answer here.
            assert health.base.hash.startswith("eaee85507710c583")
            assert (health.base.execution, health.base.precision) == ("vllm", "bfloat16")
            assert await client.models() == [BUNDLED]
            assert (await client.capabilities()).can_train

            said = await client.chat(model=BUNDLED, messages=CAPITAL, sampling=GREEDY, deadline_s=600)
            assert "Paris" in said.text
            with pytest.raises(PicturesRefusedError, match="multimodal"):
                async for _ in client.chat_stream(
                    model=BUNDLED, messages=CAPITAL, sampling=GREEDY, pictures=["data:image/png;base64,AA=="]
                ):
                    pass
            count = await client.count_tokens(model=BUNDLED, messages=CAPITAL)
            assert count == said.prompt_tokens
            ids = await client.tokenize(model=BUNDLED, messages=CAPITAL)
            (scores,) = await client.score(model=BUNDLED, prompts=[ids])
            assert len(scores) == len(ids) and all(score <= 0.0 for score in scores)

            await _adapters(client, server, health, said.text)
            await _strangers(server)
            await _killed(client, server, health)
            await _stopped(client, server)
        _, log = await asyncio.to_thread(server.process.communicate, None, 60)
    assert server.process.returncode == 0
    assert "draining in-flight requests" in await asyncio.to_thread((server.run_dir / LOG_FILE).read_text)
    assert "Traceback" not in log
    assert not (server.run_dir / "server.json").exists()


async def _adapters(client: ModelClient, server: ServingProcess, health: Health, base_said: str) -> None:
    """One answers by its id, one whose files were changed never does, one that was erased no longer."""
    path = adapter(server.home / "adapters", health, seed=1)
    # No load call: whoever asks by the id gets it.
    said = await client.chat(model=path.name, messages=CAPITAL, sampling=GREEDY, deadline_s=600)
    assert said.text != base_said
    assert path.name in (await client.health()).adapters
    # Several at once, of several lengths, beside the base's: what an evaluation asks.
    ids = await client.tokenize(model=BUNDLED, messages=CAPITAL)
    prompts = [ids, ids[:-3], ids * 2, ids[:5]]
    adapted, plain = await asyncio.gather(
        client.score(model=path.name, prompts=prompts), client.score(model=BUNDLED, prompts=prompts)
    )
    assert [len(scores) for scores in adapted] == [len(prompt) for prompt in prompts]
    assert adapted[0][1:] != plain[0][1:]
    assert adapted[0][1] == pytest.approx(adapted[2][1], abs=0.1)

    changed = adapter(server.home / "adapters", health, seed=2)
    weights = changed / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(UnknownModelError):
        await client.chat(model=changed.name, messages=CAPITAL, sampling=GREEDY, deadline_s=600)
    with pytest.raises(AdapterDamagedError):
        await client.load_adapter(changed.name, changed)

    erased = adapter(server.home / "adapters", health, seed=3)
    await client.load_adapter(erased.name, erased)
    await client.unload_adapter(erased.name)
    shutil.rmtree(erased)
    with pytest.raises(UnknownModelError):
        await client.chat(model=erased.name, messages=CAPITAL, sampling=GREEDY, deadline_s=600)


async def _strangers(server: ServingProcess) -> None:
    async with ModelClient(server.address()["base_url"], api_key="wrong") as stranger:
        with pytest.raises(Exception, match=r"(?i)unauthorized|401"):
            await stranger.models()


async def _killed(client: ModelClient, server: ServingProcess, health: Health) -> None:
    """A vLLM that was killed comes back, and the adapter answers again by its id alone."""
    name = (await client.health()).adapters[0]
    (child,) = await asyncio.to_thread(_children, server.process.pid)
    os.kill(child, signal.SIGKILL)
    ends = time.monotonic() + 60
    while (await client.health()).status == "ok":
        assert time.monotonic() < ends
        await asyncio.sleep(0.2)
    await loaded(client)
    said = await client.chat(model=name, messages=CAPITAL, sampling=GREEDY, deadline_s=600)
    assert said.completion_tokens


async def _stopped(client: ModelClient, server: ServingProcess) -> None:
    """A reply that has begun ends before the server does."""
    words, reason = "", None
    long = Sampling(24, temperature=0.0)
    story = [ChatMessage("user", "Tell me a story about a ship.")]
    async for delta in client.chat_stream(model=BUNDLED, messages=story, sampling=long, deadline_s=600):
        if not words:
            server.process.send_signal(signal.SIGTERM)
        words += delta.text
        reason = delta.finish_reason or reason
    assert words and reason == "length"


def _children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
