"""What other clients send, as their public formats have it, is understood or refused by name."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
import structlog
from openai.types.chat import ChatCompletion, ChatCompletionChunk, completion_create_params

from bot.serving.api.service import Service
from bot.serving.engine.engine import Engine
from bot.serving.engine.runtime import Runtime
from bot.serving.model.loading import LoadedBase
from bot.serving.protocol import ChatRequest
from tests.bot.serving.api.test_routes import listening, settings

USER = {"role": "user", "content": "Hello"}
# langchain-openai's ChatOpenAI: what its `_default_params` and message conversion make of a conversation.
LANGCHAIN: dict[str, Any] = {
    "messages": [
        {"content": "Be brief.", "role": "system"},
        {"content": "What is the weather?", "role": "user"},
        {
            "content": None,
            "role": "assistant",
            "tool_calls": [
                {"type": "function", "id": "call_1", "function": {"name": "weather", "arguments": "{}"}}
            ],
        },
        {"content": [{"type": "text", "text": "Never mind."}], "role": "user", "name": "member"},
    ],
    "model": "tiny",
    "stream": False,
    "n": 1,
    "temperature": None,
    "top_p": None,
    "max_completion_tokens": 8,
    "presence_penalty": None,
    "frequency_penalty": None,
    "seed": None,
    "logprobs": None,
    "logit_bias": None,
    "stop": None,
    "parallel_tool_calls": None,
}
# litellm's proxy: every OpenAI field by name, null where the caller left it out.
LITELLM: dict[str, Any] = {
    "model": "tiny",
    "messages": [USER],
    "functions": None,
    "function_call": None,
    "temperature": None,
    "top_p": None,
    "n": None,
    "stream": None,
    "stream_options": None,
    "stop": None,
    "max_tokens": 8,
    "max_completion_tokens": None,
    "modalities": None,
    "prediction": None,
    "audio": None,
    "presence_penalty": None,
    "frequency_penalty": None,
    "logit_bias": None,
    "user": None,
    "response_format": None,
    "seed": None,
    "tools": None,
    "tool_choice": None,
    "logprobs": None,
    "top_logprobs": None,
    "reasoning_effort": None,
    "extra_headers": None,
    "metadata": {"trace": "1"},
}


@pytest.fixture
async def url(base: LoadedBase, engine: Engine, tmp_path: Path) -> AsyncIterator[str]:
    service = Service(settings(tmp_path))
    service._runtime = Runtime(base, engine, tmp_path / "adapters")
    async with listening(service) as url:
        yield url


@pytest.fixture
async def http(url: str) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(url) as session:
        yield session


async def post(http: aiohttp.ClientSession, body: Any) -> tuple[int, Any]:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    async with http.post("/v1/chat/completions", data=text, headers=headers) as response:
        return response.status, await response.json()


@pytest.mark.parametrize("body", [LANGCHAIN, LITELLM])
async def test_recorded_requests_of_other_clients_are_answered(
    http: aiohttp.ClientSession, body: dict[str, Any]
) -> None:
    status, answer = await post(http, body)
    assert status == 200, answer
    # The official package's own types read the answer, strictly.
    assert ChatCompletion.model_validate(answer, strict=True).choices[0].message.role == "assistant"
    async with http.post("/v1/chat/completions", json={**body, "stream": True}) as response:
        lines = (await response.text()).splitlines()
    chunks = [line.removeprefix("data: ") for line in lines if line.startswith("data: {")]
    assert [ChatCompletionChunk.model_validate_json(chunk) for chunk in chunks][-1].choices[0].finish_reason


async def test_null_is_the_default_for_every_field_of_the_official_client(
    http: aiohttp.ClientSession,
) -> None:
    known = set(completion_create_params.CompletionCreateParamsBase.__annotations__)
    assert {"temperature", "top_p", "max_tokens", "n", "tools", "stop", "user"} <= known
    body = {**dict.fromkeys(known | {"stream"}), "model": "tiny", "messages": [USER]}
    assert ChatRequest.model_validate(body) == ChatRequest.model_validate(
        {"model": "tiny", "messages": [USER]}
    )
    status, answer = await post(http, {**body, "max_tokens": 4})
    assert status == 200, answer


@pytest.mark.parametrize(
    "wish",
    [
        {"continue_final_message": True},
        {"add_generation_prompt": False},
        {"min_tokens": 5},
        {"ignore_eos": True},
        {"stop_token_ids": [5]},
        {"chat_template": "{{ messages }}"},
        {"chat_template_kwargs": {"enable_thinking": True}},
        {"reasoning_effort": "high"},
        {"guided_json": {"type": "object"}},
        {"grammar": "root ::= x"},
        {"prediction": {"type": "content", "content": "x"}},
        {"n": True},
    ],
)
async def test_what_would_change_the_answer_is_refused_by_name(
    http: aiohttp.ClientSession, wish: dict[str, Any]
) -> None:
    status, answer = await post(http, {"model": "tiny", "messages": [USER], "max_tokens": 4, **wish})
    assert (status, answer["error"]["param"]) == (400, next(iter(wish)))
    assert next(iter(wish)) in answer["error"]["message"]


@pytest.mark.parametrize(
    "wish",
    [
        {"continue_final_message": False},
        {"min_tokens": 0},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"parallel_tool_calls": True},
        {"service_tier": "auto"},
    ],
)
async def test_what_changes_nothing_is_accepted(http: aiohttp.ClientSession, wish: dict[str, Any]) -> None:
    status, answer = await post(http, {"model": "tiny", "messages": [USER], "max_tokens": 4, **wish})
    assert status == 200, answer


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": None},
        {"role": "system", "content": None},
        {"role": "tool", "content": "sunny", "tool_call_id": "call_1"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]},
    ],
)
async def test_a_message_that_cannot_be_read_is_a_bad_request(
    http: aiohttp.ClientSession, message: dict[str, Any]
) -> None:
    status, answer = await post(http, {"model": "tiny", "messages": [USER, message]})
    assert (status, answer["error"]["param"].split(".")[:2]) == (400, ["messages", "1"])


DEEP = 100_000
CHAT = json.dumps({"model": "tiny", "messages": [USER]}).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"[" * DEEP + b"]" * DEEP,
        b'{"model": "tiny", "x": ' * DEEP,
        b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "x": '
        + b"[" * DEEP
        + b"]" * DEEP
        + b"}",
        b'{"model": "tiny", "messages": [{"role": "user", "content": ' + b"[" * 180 + b"]" * 180 + b"}]}",
        b"5",
        b"\xff\xfe",
        b"",
        CHAT.replace(b"Hello", b"\\ud800"),
    ],
    ids=range(8),
)
async def test_json_that_is_deep_or_broken_is_a_bad_request(http: aiohttp.ClientSession, body: bytes) -> None:
    status, answer = await post(http, body)
    assert status == 400
    assert answer["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("sent", [0.5, 1.0])
async def test_a_client_that_leaves_makes_no_trace(
    url: str, engine: Engine, stream: bool, sent: float, caplog: pytest.LogCaptureFixture
) -> None:
    body = json.dumps({"model": "tiny", "messages": [USER], "max_tokens": 200, "stream": stream}).encode()
    port = urlsplit(url).port
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with caplog.at_level(logging.DEBUG), structlog.testing.capture_logs() as logged:
        for _ in range(5):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head.encode() + body[: int(len(body) * sent)])
            await writer.drain()
            await asyncio.sleep(0.02)
            writer.transport.abort()  # the connection is reset, as when a client is killed
        ends = time.monotonic() + 30
        while engine.counts() != (0, 0):
            assert time.monotonic() < ends
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.1)
    assert not [entry for entry in logged if entry["log_level"] in ("warning", "error", "critical")]
    assert not [record for record in caplog.records if record.exc_info or record.levelno >= logging.WARNING]
