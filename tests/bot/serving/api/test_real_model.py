"""The real 135M model, once: from its package to a streamed reply."""

import asyncio
from pathlib import Path

from bot.serving.client import ModelClient
from bot.serving.protocol import ChatMessage, Sampling
from tests.bot.serving.api.test_routes import until_loaded
from tests.bot.serving.serving_process import ServingProcess


async def test_the_packaged_model_is_quantized_once_and_answers(tmp_path: Path, bundled_models: Path) -> None:
    with ServingProcess(tmp_path, models_dir=str(bundled_models)) as server:
        await asyncio.to_thread(server.address)
        async with ModelClient.from_run_dir(server.run_dir) as client:
            await until_loaded(client, timeout_s=240)
            health = await client.health()
            assert health.base is not None
            assert health.base.id == "SmolLM2-135M-Instruct"
            # The identity is the file's and the format's, not this machine's.
            assert health.base.hash.startswith("eaee85507710c583")
            question = [ChatMessage("user", "What is the capital of France? Answer in one word.")]
            reply = await client.chat(
                model=health.base.id, messages=question, sampling=Sampling(12, temperature=0.0), deadline_s=60
            )
            assert "Paris" in reply.text
            assert reply.finish_reason == "stop"
