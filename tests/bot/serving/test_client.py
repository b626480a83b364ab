"""The client against servers that misbehave, and against what a vLLM server answers."""

import asyncio
import json
import shutil
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
    AdapterRefusedError,
    RequestRejectedError,
    ServerBusyError,
    ServerUnavailableError,
    UnknownModelError,
)
from bot.serving.protocol import ChatMessage, Sampling
from bot.serving.sse import events
from tests.bot import adapter_files

HELLO = [ChatMessage("user", "Hello")]
STREAM = 'data: {"choices": [{"delta": {"content": "whole"}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
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
    calls = 0

    async def half(request: web.Request) -> web.StreamResponse:
        nonlocal calls
        calls += 1
        return await answering(200, f"data: {json.dumps(chunk)}\n\n")(request)

    async with peer(half) as client:
        with pytest.raises(ServerUnavailableError, match="in the middle of a reply"):
            await client.chat(model="m", messages=HELLO, sampling=Sampling(1))
    assert calls == 1, "what has begun is not said twice"


@pytest.mark.parametrize("said", ["", ": nothing yet\n\n"])
async def test_a_reply_that_broke_off_before_its_first_word_is_asked_for_once_more(said: str) -> None:
    times = 0

    async def dies_first(request: web.Request) -> web.StreamResponse:
        nonlocal times
        times += 1
        if times > 1:
            return await answering(200, STREAM)(request)
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(said.encode())
        assert request.transport is not None
        request.transport.abort()
        return response

    async with peer(dies_first) as client:
        assert (await client.chat(model="m", messages=HELLO, sampling=Sampling(1))).text == "whole"
    assert times == 2


async def test_a_server_that_breaks_off_each_time_is_asked_twice_at_most() -> None:
    times = 0

    async def dies(request: web.Request) -> web.StreamResponse:
        nonlocal times
        times += 1
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async with peer(dies) as client:
        with pytest.raises(ServerUnavailableError, match="broke"):
            await client.chat(model="m", messages=HELLO, sampling=Sampling(1))
        assert times == 2
        with pytest.raises(ServerUnavailableError, match="broke"):
            await client.tokenize(model="m", messages=HELLO)
        assert times == 4


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


class Replicas:
    """Two vLLMs behind a router, each with a list of its own, on one folder of adapters."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lists: list[list[str]] = [[], []]
        self.calls: list[str] = []

    async def __call__(self, request: web.Request) -> web.Response:
        mine = self.lists[len(self.calls) % 2]
        self.calls.append(request.path)
        if request.path == "/health":
            base = {"id": "base", "hash": "b" * 64, "chat_template_hash": "c" * 64, "execution": "vllm"}
            return web.json_response({"base": base, "adapters": mine})
        if request.path == "/v1/models":
            return web.json_response({"data": [{"id": name} for name in ("base", *mine)]})
        assert request.path == "/tokenize", "a router lets no adapter be loaded or unloaded"
        name = (await request.json())["model"]
        if not (self.folder / name).is_dir():
            return web.json_response({"error": {"message": "no", "code": 404}}, status=404)
        mine.append(name)
        return web.json_response({"count": 1, "tokens": [1]})


async def test_replicas_behind_a_router_find_an_adapter_themselves_and_no_list_is_relied_on(
    tmp_path: Path,
) -> None:
    adapter_files.lay(tmp_path, adapter_files.FIRST)
    path = tmp_path / adapter_files.FIRST
    replicas = Replicas(tmp_path)
    async with peer(replicas) as client:
        await client.load_adapter(path.name, path)
        assert client.finds_adapters
        for _ in range(2):
            assert path.name in (await client.health()).adapters
            assert await client.has_adapter(path.name)
        shutil.rmtree(path)
        await client.unload_adapter(path.name)
        assert not await client.has_adapter(path.name)
        with pytest.raises(AdapterRefusedError):
            await client.load_adapter(path.name, path)
    assert set(replicas.calls) == {"/health", "/tokenize"}
