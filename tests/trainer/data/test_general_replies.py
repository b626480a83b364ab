"""The base's own replies to general prompts are asked for once, and stay what they are."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from bot.serving.client import ModelClient
from tests.bot.fake_server import BASE, BASE_HASH, FakeModelServer
from trainer.data import general_replies
from trainer.data.general_replies import HELD_OUT_PROMPTS, TRAIN_PROMPTS, VALIDATION_PROMPTS, BaseReply

LATER = "What it says today."


EVERY = (*TRAIN_PROMPTS, *VALIDATION_PROMPTS, *HELD_OUT_PROMPTS)
KEPT = {
    None: (),
    1: (*TRAIN_PROMPTS, *HELD_OUT_PROMPTS),
    2: (*TRAIN_PROMPTS, *VALIDATION_PROMPTS[:12], *HELD_OUT_PROMPTS),
    general_replies.VERSION: EVERY,
}


@pytest.mark.parametrize("version", KEPT)
async def test_only_prompts_that_the_base_was_never_asked_are_asked(
    tmp_path: Path, version: int | None
) -> None:
    kept = KEPT[version]
    if version is not None:
        path = general_replies.cache_path(tmp_path, BASE_HASH, version)
        path.parent.mkdir()
        said = [asdict(BaseReply(prompt, f"What it said to {prompt}", True)) for prompt in kept]
        path.write_text(json.dumps(said))
    server = FakeModelServer()
    server.answer = LATER
    await server.start()
    try:
        async with ModelClient(server.base_url) as client:
            first, second = [
                await general_replies.load(client, tmp_path, base_id=BASE, base_hash=BASE_HASH)
                for _ in range(2)
            ]
    finally:
        await server.stop()
    assert first == second
    # All are there in the order of their prompts, which decides what a training is repeated from.
    for replies, prompts in (
        (first.train, TRAIN_PROMPTS),
        (first.validation, VALIDATION_PROMPTS),
        (first.held_out, HELD_OUT_PROMPTS),
    ):
        assert [reply.text for reply in replies] == [
            f"What it said to {prompt}" if prompt in kept else LATER for prompt in prompts
        ]
    asked = [server.prompt(at)[-1]["content"] for at in range(len(server.requests))]
    assert sorted(asked) == sorted({*EVERY} - {*kept})
