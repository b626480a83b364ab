"""A vLLM behind a router answers with what lies in the shared folder, whatever it has loaded before."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bot.serving.client_parsing import read_health
from bot.serving.model.identity import BaseIdentity
from bot.serving.protocol import BaseDescription
from bot.serving.vllm.replica import BASE, Message, Replica
from bot.serving.vllm.resolver import ADAPTERS_DIR

DESCRIBED = BaseDescription(
    "base", hash="b" * 64, execution="vllm", identity=BaseIdentity("hub:owner/base", "1", "c" * 64)
)


class Vllm:
    """An application with vLLM's list of adapters, which tells what a call gave it to read."""

    def __init__(self, folder: Path, *listed: str, status: int = 200) -> None:
        self.folder, self.status = folder, status
        self.state = SimpleNamespace(openai_serving_models=SimpleNamespace(lora_requests={}))
        for name in listed:
            (folder / name).mkdir()
            self.listed[name] = object()
        self.read = b""

    @property
    def listed(self) -> dict[str, object]:
        found: dict[str, object] = self.state.openai_serving_models.lora_requests
        return found

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        more = scope["method"] == "POST"
        while more:
            message = await receive()
            self.read += message["body"]
            more = message.get("more_body", False)
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def call(self, path: str, *body: bytes) -> list[Message]:
        """Send one call through the middleware, its body in these pieces."""
        environment = {ADAPTERS_DIR: str(self.folder), BASE: json.dumps(asdict(DESCRIBED))}
        told = [
            {"type": "http.request", "body": piece, "more_body": number < len(body)}
            for number, piece in enumerate(body, 1)
        ]
        sent: list[Message] = []

        async def receive() -> Message:
            return told.pop(0)

        async def send(message: Message) -> None:
            sent.append(message)

        scope = {"type": "http", "path": path, "method": "POST" if body else "GET", "app": self}
        await Replica(self, environment)(scope, receive, send)
        return sent


async def test_an_adapter_whose_folder_is_gone_is_no_longer_known(tmp_path: Path) -> None:
    vllm = Vllm(tmp_path, "erased", "other")
    shutil.rmtree(tmp_path / "erased")
    await vllm.call("/v1/chat/completions", b'{"model": "other"}')
    assert set(vllm.listed) == {"erased", "other"}, "only what is asked for is looked for"
    await vllm.call("/v1/chat/completions", b'{"model": "era', b'sed"}')
    assert set(vllm.listed) == {"other"}
    assert vllm.read == b'{"model": "other"}{"model": "erased"}', "vLLM reads each call whole"


async def test_the_list_of_models_has_none_whose_folder_is_gone(tmp_path: Path) -> None:
    vllm = Vllm(tmp_path, "erased", "other")
    shutil.rmtree(tmp_path / "erased")
    await vllm.call("/v1/models")
    assert set(vllm.listed) == {"other"}


@pytest.mark.parametrize("body", [b"", b"no json", b"[]", b'{"prompt": "x"}', b'{"model": ["a"]}'])
async def test_what_names_no_model_reaches_vllm_as_it_is(tmp_path: Path, body: bytes) -> None:
    vllm = Vllm(tmp_path, "other")
    await vllm.call("/v1/completions", body)
    assert vllm.read == body and set(vllm.listed) == {"other"}


async def test_health_says_which_base_is_served(tmp_path: Path) -> None:
    start, body = await Vllm(tmp_path, "known").call("/health")
    assert start["status"] == 200
    assert dict(start["headers"])[b"content-length"] == str(len(body["body"])).encode()
    health = read_health(json.loads(body["body"]))
    assert (health.status, health.base, health.adapters) == ("ok", DESCRIBED, ("known",))


async def test_health_of_a_dead_engine_is_vllms_own(tmp_path: Path) -> None:
    start, body = await Vllm(tmp_path, status=503).call("/health")
    assert (start["status"], body["body"]) == (503, b"")


def test_it_needs_no_package_that_vllm_does_not_bring() -> None:
    script = (
        "import sys, bot.serving.vllm.replica\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)))"
    )
    root = Path(__file__).parents[4]
    found = subprocess.run(
        [sys.executable, "-S", "-c", script], capture_output=True, text=True, cwd=root, check=True
    )
    assert found.stdout.strip() == "['__main__', 'bot']"
