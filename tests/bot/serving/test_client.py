"""The client against servers that misbehave, and against what a vLLM server answers."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.serving.client import ModelClient
from bot.serving.errors import (
    RequestRejectedError,
    ServerBusyError,
    ServerUnavailableError,
    UnknownModelError,
)
from bot.serving.protocol import ChatMessage, Sampling
from bot.serving.sse import events

HELLO = [ChatMessage("user", "Hello")]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def peer(handler: Handler) -> AsyncIterator[ModelClient]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with ModelClient(f"http://127.0.0.1:{runner.addresses[0][1]}/v1/") as client:
            yield client
    finally:
        await runner.cleanup()


def answering(status: int, body: str, **headers: str) -> Handler:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(status=status, text=body, headers=headers)

    return handler


async def test_nothing_listening_is_one_sentence() -> None:
    async with ModelClient("http://127.0.0.1:1") as client:
        with pytest.raises(ServerUnavailableError, match=r"No model server answers at http://127.0.0.1:1\."):
            await client.models()


async def test_a_server_that_was_never_started_is_one_sentence(tmp_path: Path) -> None:
    async with ModelClient.from_run_dir(tmp_path) as client:
        with pytest.raises(ServerUnavailableError, match="not running"):
            await client.health()
        (tmp_path / "server.json").write_text("{broken")
        with pytest.raises(ServerUnavailableError, match="not running"):
            await client.health()


async def test_a_silent_server_meets_the_deadline() -> None:
    async def silent(_: web.Request) -> web.Response:
        await asyncio.sleep(30)
        return web.Response()

    async with peer(silent) as client:
        with pytest.raises(ServerUnavailableError, match=r"did not finish within 0\.2 s"):
            await client.chat(model="m", messages=HELLO, sampling=Sampling(1), deadline_s=0.2)


async def test_a_stream_that_breaks_off_is_an_error_not_a_short_reply() -> None:
    chunk = {"choices": [{"index": 0, "delta": {"content": "half"}, "finish_reason": None}]}
    async with peer(answering(200, f"data: {json.dumps(chunk)}\n\n")) as client:
        with pytest.raises(ServerUnavailableError, match="in the middle of a reply"):
            await client.chat(model="m", messages=HELLO, sampling=Sampling(1))


async def test_an_error_inside_a_stream_is_raised() -> None:
    error = {
        "error": {"message": "The model server is shutting down.", "code": "shutting_down", "status": 503}
    }
    async with peer(answering(200, f"data: {json.dumps(error)}\n\ndata: [DONE]\n\n")) as client:
        with pytest.raises(ServerUnavailableError, match="shutting down"):
            await client.chat(model="m", messages=HELLO, sampling=Sampling(1))


@pytest.mark.parametrize("body", ["not json", "[]", '{"choices": 3}', "", '{"choices": [{}]}'])
async def test_answers_that_cannot_be_read_are_one_sentence(body: str) -> None:
    async with peer(answering(200, body)) as client:
        with pytest.raises(ServerUnavailableError):
            await client.score(model="m", prompts=[[1, 2]])


async def test_a_busy_server_says_when_to_come_back() -> None:
    body = json.dumps({"error": {"message": "Full.", "code": "busy"}})
    async with peer(answering(429, body, **{"Retry-After": "7"})) as client:
        with pytest.raises(ServerBusyError) as busy:
            await client.chat(model="m", messages=HELLO, sampling=Sampling(1))
    assert busy.value.retry_after_s == 7


async def test_vllms_errors_are_understood() -> None:
    body = json.dumps(
        {"error": {"message": "The model `x` does not exist.", "type": "NotFoundError", "code": 404}}
    )
    async with peer(answering(404, body)) as client:
        with pytest.raises(UnknownModelError):
            await client.chat(model="x", messages=HELLO, sampling=Sampling(1))
    async with peer(answering(400, json.dumps({"error": {"message": "too long", "code": 400}}))) as client:
        with pytest.raises(RequestRejectedError, match="too long"):
            await client.chat(model="x", messages=HELLO, sampling=Sampling(1))


async def test_vllms_empty_health_means_ok() -> None:
    async with peer(answering(200, "")) as client:
        assert (await client.health()).status == "ok"


async def test_an_adapter_that_vllm_has_loaded_already_is_no_error(tmp_path: Path) -> None:
    message = "The lora adapter 'a' has already been loaded."
    async with peer(answering(400, json.dumps({"error": {"message": message}}))) as client:
        await client.load_adapter("a", tmp_path)


async def test_redirects_are_not_followed() -> None:
    async with peer(answering(302, "", Location="http://127.0.0.1:1/")) as client:
        with pytest.raises(ServerUnavailableError):
            await client.models()


async def test_optional_fields_are_sent_only_when_they_are_set() -> None:
    seen: list[dict[str, object]] = []

    async def record(request: web.Request) -> web.Response:
        seen.append(await request.json())
        chunk = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        return web.Response(text=f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n")

    async with peer(record) as client:
        await client.chat(model="m", messages=HELLO, sampling=Sampling(1))
        everything = Sampling(1, seed=0, top_k=5, stop=("x",))
        await client.chat(model="m", messages=HELLO, sampling=everything, priority=1, user="u")
    ours = {"priority", "seed", "top_k", "min_p", "repetition_penalty", "stop", "user", "queue_updates"}
    assert not ours & set(seen[0])
    assert {key: seen[1][key] for key in ("seed", "priority", "top_k", "stop", "user")} == {
        "user": "u",
        "seed": 0,
        "priority": 1,
        "top_k": 5,
        "stop": ["x"],
    }


@settings(max_examples=100, deadline=None)
@given(
    payloads=st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1), max_size=6),
    cuts=st.lists(st.integers(0, 400), max_size=12),
    ending=st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_events_survive_any_cut_of_the_bytes(payloads: list[str], cuts: list[int], ending: str) -> None:
    raw = "".join(f": hi{ending}data: {payload}{ending}{ending}" for payload in payloads).encode()
    places = sorted({min(cut, len(raw)) for cut in cuts} | {0, len(raw)})

    async def chunks() -> AsyncIterator[bytes]:
        for start, end in pairwise(places):
            yield raw[start:end]

    async def collect() -> list[str]:
        return [event async for event in events(chunks())]

    assert asyncio.run(collect()) == payloads
