"""The whole loop behind a real vLLM: `make up` with `[server] engine = "vllm"` (`make test-vllm`)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from bot.serving.client import ModelClient
from bot.serving.errors import UnknownModelError
from bot.serving.protocol import ChatMessage, Sampling
from bot.serving.vllm.child import PYTHON_VARIABLE
from tests.e2e.deployment import Deployment, deployed, until
from tests.e2e.test_erasure import Story
from tests.e2e.test_whole_loop import ANY_PORTS, BRIEF, BY_HAND, finished_run_with_votes, rated

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(7200)]

VLLM = ANY_PORTS.replace("[server]", '[server]\nengine = "vllm"') + "[model]\ncontext_tokens = 1024\n"
SETTINGS = VLLM + BY_HAND + BRIEF + "holdback_share = 0.0\n"


def announced(strop: Deployment) -> dict[str, Any]:
    """What `server.json` says of the server."""
    value: dict[str, Any] = json.loads((strop.data / "run" / "server.json").read_text())
    return value


def vllm_process(strop: Deployment) -> int:
    """The process id of the vLLM that the model server has started; 0 while there is none."""
    server = announced(strop)["pid"]
    children = Path(f"/proc/{server}/task/{server}/children").read_text().split()
    return int(children[0]) if children else 0


async def answers_with(strop: Deployment, adapter: str | None, question: str) -> None:
    """Ask until a reply of this adapter (None: the base) comes."""

    async def said() -> bool:
        reply = await strop.ask(question)
        return reply["status"] == "complete" and reply["adapter_id"] == adapter

    await until(said, f"an answer of {adapter or 'the base'}", strop)


async def killed(strop: Deployment) -> None:
    """Kill vLLM, and wait until another one answers."""
    dead = vllm_process(strop)
    os.kill(dead, signal.SIGKILL)

    async def another() -> bool:
        loop = await strop.get("/playground/loop")
        return loop["server"]["status"] == "ok" and vllm_process(strop) not in (0, dead)

    def gone() -> bool:
        return not Path(f"/proc/{dead}").exists()

    await until(gone, "vLLM to be gone", strop)
    await until(another, "another vLLM", strop)


async def ask_vllm(strop: Deployment, model: str) -> str:
    """Ask vLLM itself, past everything that chooses an adapter."""
    async with ModelClient.from_run_dir(strop.data / "run") as client:
        messages = [ChatMessage("user", "Hello?")]
        said = await client.chat(model=model, messages=messages, sampling=Sampling(4, temperature=0.0))
        return said.text


async def test_the_whole_loop_runs_behind_a_real_vllm(tmp_path: Path, bundled_models: Path) -> None:
    env = {PYTHON_VARIABLE: os.environ.get("TEST_VLLM_PYTHON", "")}
    async with deployed(tmp_path, SETTINGS, models=bundled_models, environment=env) as strop:
        server = announced(strop)
        assert (server["engine"], server["base"]["execution"]) == ("vllm", "vllm")

        reply = await strop.ask("Tell me a story about a ship, please.")
        assert (reply["status"], reply["adapter_id"]) == ("complete", None)
        await rated(strop, "👍", "PUT", (1, 0))
        story = Story(strop)
        for number in range(3):
            await story.react(story.ada, await story.ask(story.ada, f"My boat, part {number}?"), "👍")

        await strop.call("POST", "/playground/sample")
        await strop.command("retrain")
        await until(lambda: strop.query("select id from runs"), "the run to be queued", strop)
        run = await finished_run_with_votes(strop)
        assert run["outcome"] == "promoted", run["message"]
        winner: str = run["adapter_id"]
        await answers_with(strop, winner, "What should I cook tonight?")
        assert await ask_vllm(strop, winner)

        await killed(strop)
        await answers_with(strop, winner, "And for dessert?")

        await strop.command("rollback")
        await until(lambda: strop.query("select 1 from promotions where kind = 'rollback'"), "it", strop)
        await answers_with(strop, None, "And tomorrow?")
        await strop.command("promote", {"adapter": winner})
        await answers_with(strop, winner, "And the day after?")

        await tampered(strop, winner)
        await story.erase()
        folder = strop.data / "adapters" / winner
        await until(lambda: not folder.exists(), "the adapter's folder to be gone", strop)
        assert strop.query("select id from adapters where state <> 'tainted'") == []
        await answers_with(strop, None, "Still there?")
        with pytest.raises(UnknownModelError):
            await ask_vllm(strop, winner)
    assert "Traceback" not in strop.log.read_text(errors="replace")


async def tampered(strop: Deployment, adapter: str) -> None:
    """Change one byte of the champion: once vLLM has to read it again, it never answers, and gives way.

    Mended and promoted by hand it answers again.
    """
    weights = strop.data / "adapters" / adapter / "adapter_model.safetensors"
    whole = await asyncio.to_thread(weights.read_bytes)
    mode = weights.stat().st_mode
    weights.chmod(0o600)
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    await killed(strop)
    with pytest.raises(UnknownModelError):
        await ask_vllm(strop, adapter)
    assert (await strop.ask("Who is there?"))["adapter_id"] is None
    given_up = "select 1 from promotions where kind = 'rollback' and actor = 'trainer'"
    await until(lambda: strop.query(given_up), "the trainer to replace the champion", strop)
    weights.write_bytes(whole)
    weights.chmod(mode)
    await strop.command("promote", {"adapter": adapter})
    await answers_with(strop, adapter, "And now?")
