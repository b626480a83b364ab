"""A real vLLM reads our 4-bit base by its plugin (`make test-vllm`).

It is the CPU build, with bitsandbytes' kernels for a CPU: what those for a GPU do is not shown.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from bot.serving.client import ModelClient
from bot.serving.errors import ServerUnavailableError
from bot.serving.model.identity import NF4
from bot.serving.model.loading import unfold
from bot.serving.protocol import ChatMessage, Health
from bot.serving.settings import Settings
from bot.serving.vllm.child import PYTHON_VARIABLE, find_python, has_4_bit_plugin
from bot.serving.vllm.serving import serve
from tests.bot.serving.builders import lora_tensors, write_adapter
from tests.bot.serving.vllm.test_real_vllm import BUNDLED, CAPITAL, GREEDY, PATIENCE_S, widths

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(3600)]

ANSWERED = [*CAPITAL, ChatMessage("assistant", "Paris is the capital of France, on the river Seine.")]
# Nats a token between vLLM's bfloat16 and float32 with the same 4-bit weights: 0.07 as measured.
NOISE = 0.15


@contextlib.asynccontextmanager
async def serving_in_4_bits(home: Path, models_dir: Path) -> AsyncIterator[ModelClient]:
    """Have vLLM serve as `strop serve` does on a GPU, where the plugin is there."""
    python = find_python({PYTHON_VARIABLE: os.environ.get("TEST_VLLM_PYTHON", "")})
    assert python is not None and has_4_bit_plugin(python)
    settings = Settings(
        device="cpu",
        port=0,
        context_tokens=512,
        models_dir=models_dir,
        adapters_dir=home / "adapters",
        run_dir=home / "run",
    )
    listening: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    tried: list[str] = []

    def announce(port: int, more: dict[str, Any]) -> None:
        if more["base"]:
            tried.append(more["base"]["precision"])
            if not listening.done():
                listening.set_result(port)

    stopping = asyncio.Event()
    serving = asyncio.create_task(
        serve(
            settings,
            python=python,
            secret="s",
            stopping=stopping,
            environment=os.environ,
            announce=announce,
            in_4_bits=True,
        )
    )
    try:
        async with ModelClient(f"http://127.0.0.1:{await listening}", api_key="s") as client:
            await _loaded(client, serving)
            assert tried == [NF4], "it fell back"
            yield client
    finally:
        stopping.set()
        await serving


async def _loaded(client: ModelClient, serving: asyncio.Task[None]) -> None:
    ends = time.monotonic() + PATIENCE_S
    while True:
        with contextlib.suppress(ServerUnavailableError):
            if (await client.health()).is_ready:
                return
        assert not serving.done() and time.monotonic() < ends, "see run/vllm.log"
        await asyncio.sleep(1)


def reference(
    folder: Path, ids: list[int], tensors: dict[str, torch.Tensor]
) -> tuple[list[float], list[float]]:
    """Score tokens in float32 with the 4-bit weights unfolded, without and with an adapter's product."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    unfold(model)
    model = model.float().eval()

    def scores() -> list[float]:
        with torch.inference_mode():
            logs = model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        return [0.0, *logs.gather(-1, torch.tensor(ids[1:])[:, None]).squeeze(-1).tolist()]

    plain = scores()
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization_config"]["bnb_4bit_use_double_quant"]
    with torch.no_grad():
        for name in widths():
            down, up = (tensors[f"base_model.model.{name}.lora_{half}.weight"] for half in "AB")
            model.get_submodule(name).weight += 2.0 * up @ down
    return plain, scores()


def distance(one: list[float], other: list[float]) -> float:
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)


async def test_the_base_that_trains_is_the_base_that_vllm_serves(
    tmp_path: Path, bundled_models: Path
) -> None:
    (tmp_path / "adapters").mkdir()
    async with serving_in_4_bits(tmp_path, bundled_models) as client:
        health: Health = await client.health()
        base = health.base
        assert base is not None and base.precision == NF4 and base.hash.startswith("eaee85507710c583")
        said = await client.chat(model=BUNDLED, messages=CAPITAL, sampling=GREEDY, deadline_s=600)
        assert "Paris" in said.text

        tensors = lora_tensors(widths(), seed=1, size=0.06)
        path = write_adapter(
            tmp_path / "adapters",
            base_hash=base.hash,
            chat_template_hash=base.chat_template_hash,
            tensors=tensors,
        )
        await client.load_adapter(path.name, path)
        ids = await client.tokenize(model=BUNDLED, messages=ANSWERED, add_generation_prompt=False)
        (plain,) = await client.score(model=BUNDLED, prompts=[ids])
        (adapted,) = await client.score(model=path.name, prompts=[ids])
    expected, changed = await asyncio.to_thread(reference, Path(base.folder), ids, tensors)
    figures = {
        "base": distance(plain, expected),
        "adapter": distance(adapted, changed),
        "apart": distance(expected, changed),
    }
    assert figures["apart"] > 2 * NOISE, figures
    assert max(figures["base"], figures["adapter"]) < NOISE, figures
