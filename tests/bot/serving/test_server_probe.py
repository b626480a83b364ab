"""Other servers that speak OpenAI's protocol are tried once; what they lack is named, or estimated."""

from __future__ import annotations

import base64
import io
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from PIL import Image

from bot.serving.client import ModelClient
from bot.serving.errors import ServerUnavailableError
from bot.serving.model.capabilities import ServerCapabilities
from bot.serving.model.token_estimate import prompt_length
from bot.serving.protocol import MAX_PICTURE_SIDE, ChatMessage

HELLO = [ChatMessage("user", "Hello there! How are you?")]
Answer = Callable[[Mapping[str, Any]], tuple[int, Any]]
NOTHING = ServerCapabilities(False, False, False, False, False)


def completion(_: Mapping[str, Any]) -> tuple[int, Any]:
    return 200, {"choices": [{"index": 0, "text": "a", "finish_reason": "length"}]}


def models(name: str) -> Answer:
    return lambda _: (200, {"object": "list", "data": [{"id": name, "object": "model"}]})


def vllm_completion(body: Mapping[str, Any]) -> tuple[int, Any]:
    """vLLM scores prompts, and refuses priorities unless it was started with priority scheduling."""
    if body.get("priority"):
        message = "Got priority 1 but Priority scheduling is not enabled."
        return 400, {"error": {"message": message, "type": "BadRequestError", "code": 400}}
    choice = {"index": 0, "text": "a", "finish_reason": "length"}
    if body.get("prompt_logprobs") is not None:
        choice["prompt_logprobs"] = [None, {"2": {"logprob": -1.5}}]
    return 200, {"choices": [choice]}


# What each answers, by method and path; anything else gets its own kind of "unknown".
LLAMA_CPP: dict[str, Answer] = {
    "GET /health": lambda _: (200, {"status": "ok"}),
    "GET /v1/models": models("model.gguf"),
    "POST /tokenize": lambda body: (200, {"tokens": [1] if body.get("content") else []}),
    "POST /v1/completions": completion,
}
OLLAMA: dict[str, Answer] = {"GET /v1/models": models("llama3.2:1b"), "POST /v1/completions": completion}
LM_STUDIO: dict[str, Answer] = {"GET /v1/models": models("qwen3-4b"), "POST /v1/completions": completion}
VLLM: dict[str, Answer] = {
    "GET /health": lambda _: (200, None),
    "GET /v1/models": models("base"),
    "POST /tokenize": lambda _: (200, {"count": 7, "max_model_len": 512, "tokens": [0] * 7}),
    "POST /v1/completions": vllm_completion,
    "POST /v1/load_lora_adapter": lambda _: (400, {"error": {"message": "Both are needed.", "code": 400}}),
}


def seeing(tokens: int) -> Answer:
    """Chat completions of a model for which a picture takes so many tokens; 0: it is dropped."""

    def chat(body: Mapping[str, Any]) -> tuple[int, Any]:
        parts = body["messages"][0]["content"]
        pictures = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
        for url in pictures:
            data = base64.b64decode(url.removeprefix("data:image/png;base64,"))
            with Image.open(io.BytesIO(data)) as picture:
                assert picture.convert("RGB").getextrema() == ((255, 255),) * 3
                assert picture.size == (MAX_PICTURE_SIDE, MAX_PICTURE_SIDE)
        usage = {"prompt_tokens": 10 + tokens * len(pictures), "completion_tokens": 1}
        return 200, {"choices": [{"index": 0, "message": {"content": "I"}}], "usage": usage}

    return chat


def text_alone(body: Mapping[str, Any]) -> tuple[int, Any]:
    if any(part["type"] != "text" for part in body["messages"][0]["content"]):
        return 400, {"error": {"message": "base is not a multimodal model", "code": 400}}
    return seeing(0)(body)


def no_counts(body: Mapping[str, Any]) -> tuple[int, Any]:
    return 200, {"choices": [{"index": 0, "message": {"content": "I"}}]}


VLLM_STATIC = {path: answer for path, answer in VLLM.items() if "lora" not in path}
OURS: dict[str, Answer] = {
    "GET /health": lambda _: (200, {"status": "ok", "base": {"id": "tiny", "hash": "a" * 64}}),
    "GET /v1/models": models("tiny"),
}


@asynccontextmanager
async def serving(
    answers: Mapping[str, Answer], unknown: tuple[int, Any] = (404, {"detail": "Not Found"})
) -> AsyncIterator[tuple[ModelClient, list[str]]]:
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(f"{request.method} {request.path}")
        body = await request.json() if request.can_read_body else {}
        found = answers.get(asked[-1])
        status, value = found(body) if found else unknown
        return web.Response(status=status) if value is None else web.json_response(value, status=status)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with ModelClient(f"http://127.0.0.1:{runner.addresses[0][1]}/v1") as client:
            yield client, asked
    finally:
        await runner.cleanup()


ODD = (200, {"error": "Unexpected endpoint or method."})


@pytest.mark.parametrize(
    ("answers", "unknown", "expected"),
    [
        (LLAMA_CPP, (404, {"error": {"code": 404, "message": "File Not Found"}}), NOTHING),
        (OLLAMA, (404, None), NOTHING),
        (LM_STUDIO, ODD, NOTHING),
        (VLLM, (404, {"detail": "Not Found"}), ServerCapabilities(describes_base=False, priority=False)),
        (
            VLLM_STATIC,
            (404, {"detail": "Not Found"}),
            ServerCapabilities(describes_base=False, adapters=False, priority=False),
        ),
        (OURS, (404, None), ServerCapabilities()),
    ],
    ids=["llama.cpp", "Ollama", "LM Studio", "vLLM", "vLLM without runtime adapters", "ours"],
)
async def test_each_server_is_known_by_what_it_answers(
    answers: Mapping[str, Answer], unknown: tuple[int, Any], expected: ServerCapabilities
) -> None:
    async with serving(answers, unknown) as (client, asked):
        found = await client.capabilities()
        # Servers that ignore what they don't know ignore a priority too: it does no harm there.
        if answers in (LLAMA_CPP, OLLAMA, LM_STUDIO):
            assert found.priority
            found = ServerCapabilities(*(getattr(found, name) for name in FIELDS), priority=False)
        assert found == expected
        count = len(asked)
        await client.capabilities()
        assert len(asked) == count, "tried once"
        assert (await client.health()).status == "ok"


@pytest.mark.parametrize(
    ("chat", "tokens"),
    [(seeing(576), 576), (seeing(0), 0), (text_alone, 0), (no_counts, 0), (None, 0)],
    ids=["sees", "drops pictures", "refuses them", "counts nothing", "no chat"],
)
async def test_a_server_sees_if_a_picture_lengthens_the_prompt(chat: Answer | None, tokens: int) -> None:
    answers = {**VLLM, "POST /v1/chat/completions": chat} if chat else VLLM
    async with serving(answers) as (client, _):
        assert await client.picture_tokens() == tokens
        said = (await client.capabilities()).sentence()
    assert ("It sees pictures, of up to 576 tokens each." in said) is bool(tokens)


async def test_of_a_server_that_does_not_answer_no_sight_is_assumed() -> None:
    async with ModelClient("http://127.0.0.1:9") as client:
        assert await client.picture_tokens() == 0


FIELDS = ("describes_base", "tokenize", "prompt_logprobs", "adapters")


@pytest.mark.parametrize(
    ("answers", "unknown"),
    [(LLAMA_CPP, (404, None)), (OLLAMA, (404, None)), (LM_STUDIO, ODD)],
    ids=["llama.cpp", "Ollama", "LM Studio"],
)
async def test_the_length_of_a_prompt_is_estimated_where_nobody_counts_it(
    answers: Mapping[str, Answer], unknown: tuple[int, Any]
) -> None:
    async with serving(answers, unknown) as (client, asked):
        assert await client.count_tokens(model="m", messages=HELLO) == prompt_length(HELLO)
        asked.clear()
        assert await client.count_tokens(model="m", messages=HELLO * 2) == prompt_length(HELLO * 2)
        assert asked == [], "not asked again"


async def test_a_server_that_counts_is_believed_and_its_failures_are_told() -> None:
    async with serving(VLLM) as (client, _):
        assert await client.count_tokens(model="base", messages=HELLO) == 7
    flaky = {
        **VLLM,
        "POST /tokenize": lambda body: (
            (500, None) if len(body["messages"][0]["content"]) > 2 else (200, {"count": 1})
        ),
    }
    async with serving(flaky) as (client, _):
        with pytest.raises(ServerUnavailableError):
            await client.count_tokens(model="base", messages=HELLO)


async def test_a_server_that_loads_its_model_is_waited_for() -> None:
    loading = {"GET /health": lambda _: (503, {"error": {"code": 503, "message": "Loading model"}})}
    async with serving(loading) as (client, _):
        health = await client.health()
        assert (health.status, health.detail) == ("loading", "Loading model")


def test_what_is_missing_is_said_with_what_follows() -> None:
    assert ServerCapabilities().sentence() == "Chat, ratings and training work."
    said = NOTHING.sentence()
    assert said.startswith("Chat and ratings work, training doesn't. It can't load adapters")
    assert "the length of prompts is estimated" in said
    assert (
        ServerCapabilities(tokenize=False)
        .sentence()
        .startswith("Chat, ratings and training work. It has no /tok")
    )
