"""A real vLLM with a tiny random model that sees, as the bot speaks with it (`make test-vllm`)."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import Idefics3Config, Idefics3ForConditionalGeneration

from bot.chat.content.pictures import draw
from bot.serving.client import ModelClient
from bot.serving.errors import PicturesRefusedError, ServerUnavailableError
from bot.serving.protocol import ChatMessage, Sampling
from tests.deploy.nginx import free_port
from tests.tiny_model import build_tiny_tokenizer

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]

SIDE, PATCH = 64, 16
PATCHES = (SIDE // PATCH) ** 2
ASKED = [ChatMessage("user", "What do you think?")]
GREEDY = Sampling(8, temperature=0.0)
PATIENCE_S = 900
RED, BLUE = (230, 20, 20), (10, 30, 220)


def build_tiny_idefics(folder: Path) -> Path:
    """Write a random Idefics 3, one of those for which vLLM needs no torchvision: its CPU build has none."""
    tokenizer = build_tiny_tokenizer()
    added = ["<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>"]
    tokenizer.add_special_tokens({"additional_special_tokens": added})
    tokenizer.save_pretrained(folder)
    sight = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    words = {
        "model_type": "llama",
        "vocab_size": 448,
        "hidden_size": 128,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = Idefics3Config(
        vision_config={**sight, "image_size": SIDE, "patch_size": PATCH},
        text_config=words,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    model = Idefics3ForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.08)
    model.to(torch.bfloat16).save_pretrained(folder)
    how = {
        "image_processor_type": "Idefics3ImageProcessor",
        "processor_class": "Idefics3Processor",
        "do_image_splitting": False,
        "size": {"longest_edge": SIDE},
        "max_image_size": {"longest_edge": SIDE},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(how))
    shown = {"processor_class": "Idefics3Processor", "image_seq_len": PATCHES // 4}
    (folder / "processor_config.json").write_text(json.dumps(shown))
    return folder


@contextlib.asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[ModelClient]:
    """Serve a model by a vLLM of somebody else's, which Strop has not started."""
    python, port = os.environ.get("TEST_VLLM_PYTHON", ""), free_port()
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--served-model-name", "tiny", "--port", str(port), "--host", "127.0.0.1", "--enforce-eager"]
    command += ["--dtype", "bfloat16", "--max-model-len", "256", "--limit-mm-per-prompt", '{"image": 1}']
    env = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    env |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_PLUGINS": ""}
    env.pop("PYTHONPATH", None)
    with (folder.parent / "vllm.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *command, env=env, stdout=log, stderr=log, start_new_session=True
        )
        try:
            async with ModelClient(f"http://127.0.0.1:{port}") as client:
                await _answering(client, process)
                yield client
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            await process.wait()


async def _answering(client: ModelClient, process: asyncio.subprocess.Process) -> None:
    ends = time.monotonic() + PATIENCE_S
    while True:
        with contextlib.suppress(ServerUnavailableError):
            await client.models()
            return
        assert process.returncode is None, "vLLM ended: see vllm.log"
        assert time.monotonic() < ends
        await asyncio.sleep(1)


def picture(color: tuple[int, int, int]) -> str:
    written = io.BytesIO()
    Image.new("RGB", (300, 200), color).save(written, "PNG")
    return draw(written.getvalue())


async def said(client: ModelClient, *pictures: str) -> tuple[str, int]:
    """What the model says of pictures, and how long its prompt was."""
    text, length = "", 0
    async for delta in client.chat_stream(model="tiny", messages=ASKED, sampling=GREEDY, pictures=pictures):
        text += delta.text
        length = delta.usage.prompt_tokens if delta.usage else length
    return text, length


async def test_a_model_that_sees_is_found_by_trying_and_tells_pictures_apart(tmp_path: Path) -> None:
    async with serving(build_tiny_idefics(tmp_path / "tiny")) as client:
        tokens = await client.picture_tokens()
        # Four patches are one token; others stand around them.
        assert PATCHES // 4 < tokens <= PATCHES // 4 + 8
        assert "It sees pictures" in (await client.capabilities()).sentence()
        words, length = await said(client)
        red, longer = await said(client, picture(RED))
        blue, _ = await said(client, picture(BLUE))
        assert len({words, red, blue}) == 3
        assert longer - length == tokens
        with pytest.raises(PicturesRefusedError):
            await said(client, picture(RED), picture(BLUE))
