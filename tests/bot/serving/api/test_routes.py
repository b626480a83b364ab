"""The server over a real socket: wire shapes, guards, and a whole life as a process."""

import asyncio
import json
import signal
import socket
import stat
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from bot.serving.api.routes import MAX_BODY_BYTES, build_app
from bot.serving.api.service import Service
from bot.serving.client import ModelClient
from bot.serving.engine.engine import Engine
from bot.serving.engine.runtime import Runtime
from bot.serving.engine.scheduler import LIMITS
from bot.serving.errors import (
    AdapterRefusedError,
    RequestRejectedError,
    ServerLoadingError,
    ServerStartError,
    ServerUnavailableError,
    UnknownModelError,
)
from bot.serving.model.loading import LoadedBase
from bot.serving.protocol import SECRET_HEADER, ChatDelta, ChatMessage, Sampling
from bot.serving.settings import Settings, read_settings
from tests.bot.serving.builders import lora_tensors, write_adapter
from tests.bot.serving.serving_process import ServingProcess

SECRET = "the-secret"
HELLO = [ChatMessage("user", "Hello there! How are you?")]
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}


@asynccontextmanager
async def listening(service: Service) -> AsyncIterator[str]:
    runner = web.AppRunner(build_app(service, secret=SECRET), handler_cancellation=True, shutdown_timeout=0.5)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def settings(tmp_path: Path, **changes: Any) -> Settings:
    return Settings(
        models_dir=tmp_path / "models",
        adapters_dir=tmp_path / "adapters",
        run_dir=tmp_path / "run",
        **changes,
    )


@pytest.fixture
async def url(base: LoadedBase, engine: Engine, tmp_path: Path) -> AsyncIterator[str]:
    service = Service(settings(tmp_path))
    service._runtime = Runtime(base, engine, tmp_path / "adapters")
    async with listening(service) as url:
        yield url


@pytest.fixture
async def client(url: str) -> AsyncIterator[ModelClient]:
    async with ModelClient(url, secret=SECRET) as client:
        yield client


@pytest.fixture
async def http(url: str) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(url) as session:
        yield session


async def test_health_describes_the_base_and_the_queue(client: ModelClient, base: LoadedBase) -> None:
    health = await client.health()
    assert health.status == "ok"
    assert health.base is not None
    assert health.base.hash == base.info.hash
    assert health.base.folder == str(base.folder)
    assert health.base.context_tokens == 256
    assert "<|im_end|>" in health.base.special_tokens
    assert (health.running, health.waiting, health.adapters) == (0, 0, ())


async def test_a_chat_streams_pieces_and_ends_once_with_usage(client: ModelClient) -> None:
    deltas: list[ChatDelta] = []
    async for delta in client.chat_stream(model="tiny", messages=HELLO, sampling=Sampling(20, seed=5)):
        deltas.append(delta)  # noqa: PERF401
    assert [delta.finish_reason for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
    assert deltas[-1].finish_reason in ("stop", "length")
    assert deltas[-1].usage is not None
    assert deltas[-1].usage.completion_tokens > 1
    whole = await client.chat(model="tiny", messages=HELLO, sampling=Sampling(20, seed=5))
    assert whole.text == "".join(delta.text for delta in deltas)


async def test_an_answer_has_openais_shape(http: aiohttp.ClientSession) -> None:
    async with http.post("/v1/chat/completions", json=CHAT) as response:
        answer = await response.json()
    assert set(answer) == {"id", "object", "created", "model", "choices", "usage"}
    assert answer["object"] == "chat.completion"
    choice = answer["choices"][0]
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] in ("stop", "length")
    assert answer["usage"]["total_tokens"] == sum(
        answer["usage"][key] for key in ("prompt_tokens", "completion_tokens")
    )


async def test_a_stream_has_openais_shape(http: aiohttp.ClientSession) -> None:
    body = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    async with http.post("/v1/chat/completions", json=body) as response:
        assert response.content_type == "text/event-stream"
        lines = [line for line in (await response.text()).split("\n\n") if line]
    assert lines.pop() == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] > 0
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]]
    assert [reason for reason in reasons if reason] == reasons[-1:]


async def test_prompts_are_scored_in_vllms_shape(http: aiohttp.ClientSession, client: ModelClient) -> None:
    prompts = [[10, 20, 30, 40], [7], [9, 9]]
    body = {"model": "tiny", "prompt": prompts, "max_tokens": 1, "prompt_logprobs": 0, "priority": 1}
    async with http.post("/v1/completions", json=body) as response:
        choices = (await response.json())["choices"]
    assert [choice["prompt_logprobs"][0] for choice in choices] == [None, None, None]
    assert [list(entry) for entry in choices[0]["prompt_logprobs"][1:]] == [["20"], ["30"], ["40"]]
    scores = await client.score(model="tiny", prompts=prompts)
    assert [len(row) for row in scores] == [4, 1, 2]
    assert scores[0][0] == 0.0
    assert scores[0][1] == pytest.approx(choices[0]["prompt_logprobs"][1]["20"]["logprob"], abs=1e-3)


async def test_more_prompts_than_a_batch_keep_their_order(client: ModelClient) -> None:
    prompts = [[5 + i, 6 + i, 7 + i] for i in range(40)]
    together = await client.score(model="tiny", prompts=prompts)
    alone = await client.score(model="tiny", prompts=prompts[33:34])
    assert together[33] == pytest.approx(alone[0], abs=1e-3)


async def test_a_text_prompt_is_completed(http: aiohttp.ClientSession) -> None:
    async with http.post(
        "/v1/completions", json={"model": "tiny", "prompt": "The quick", "max_tokens": 4}
    ) as response:
        answer = await response.json()
    assert answer["object"] == "text_completion"
    assert answer["usage"]["completion_tokens"] <= 4


async def test_tokens_of_a_chat_are_counted_as_they_are_served(client: ModelClient, base: LoadedBase) -> None:
    tokens = await client.tokenize(model="tiny", messages=HELLO)
    expected = base.tokenizer.apply_chat_template(
        [message.as_json() for message in HELLO], add_generation_prompt=True, tokenize=False
    )
    assert base.tokenizer.decode(tokens) == expected
    assert await client.count_tokens(model="tiny", messages=HELLO) == len(tokens)
    reply = await client.chat(model="tiny", messages=HELLO, sampling=Sampling(2))
    assert reply.prompt_tokens == len(tokens)


async def test_an_adapter_is_loaded_used_and_unloaded(
    client: ModelClient, base: LoadedBase, engine: Engine, tmp_path: Path
) -> None:
    folder = write_adapter(
        tmp_path / "adapters",
        base_hash=base.info.hash,
        chat_template_hash=base.info.chat_template_hash,
        tensors=lora_tensors(engine.widths),
    )
    name = folder.name
    with pytest.raises(UnknownModelError):
        await client.chat(model=name, messages=HELLO, sampling=Sampling(4))
    await client.load_adapter(name, folder)
    await client.load_adapter(name, folder)
    assert await client.models() == ["tiny", name]
    assert (await client.health()).adapters == (name,)
    tuned = await client.chat(model=name, messages=HELLO, sampling=Sampling(20, temperature=0.0))
    plain = await client.chat(model="tiny", messages=HELLO, sampling=Sampling(20, temperature=0.0))
    assert tuned.text != plain.text
    await client.unload_adapter(name)
    assert await client.models() == ["tiny"]
    with pytest.raises(UnknownModelError):
        await client.unload_adapter(name)


async def test_a_refused_adapter_says_why(client: ModelClient, tmp_path: Path) -> None:
    with pytest.raises(AdapterRefusedError, match=r"adapters folder .* is not there"):
        await client.load_adapter("x", tmp_path / "adapters" / "x")
    (tmp_path / "adapters").mkdir()
    with pytest.raises(AdapterRefusedError, match="not a folder directly inside"):
        await client.load_adapter("x", "/etc")
    with pytest.raises(AdapterRefusedError, match="no adapter folder"):
        await client.load_adapter("x", tmp_path / "adapters" / "x")
    with pytest.raises(AdapterRefusedError, match="belongs to the base"):
        await client.load_adapter("tiny", tmp_path / "adapters" / "x")


async def test_adapters_are_changed_only_with_the_secret(url: str, tmp_path: Path) -> None:
    for secret in (None, "wrong"):
        async with ModelClient(url, secret=secret) as stranger:
            with pytest.raises(ServingRefusal, match="secret"):
                await stranger.load_adapter("x", tmp_path)
            with pytest.raises(ServingRefusal, match="secret"):
                await stranger.unload_adapter("x")
            with pytest.raises(ServingRefusal, match="secret"):
                await stranger.reset_prefix_cache()


ServingRefusal = (AdapterRefusedError, RequestRejectedError)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example:80"}, 403),
        ({"Host": "localhost:1"}, 200),
        ({"Host": "[::1]:1"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({}, 200),
    ],
)
async def test_what_a_web_page_could_send_is_refused(
    http: aiohttp.ClientSession, headers: dict[str, str], status: int
) -> None:
    body = json.dumps(CHAT).encode()
    async with http.post(
        "/v1/chat/completions", data=body, headers={"Content-Type": "application/json", **headers}
    ) as response:
        assert response.status == status
        if status != 200:
            assert set((await response.json())["error"]) == {"message", "type", "code", "param"}


async def test_the_same_origin_is_served(http: aiohttp.ClientSession, url: str) -> None:
    async with http.get("/health", headers={"Origin": url}) as response:
        assert response.status == 200


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"model": "nobody"}, 404, "model_not_found"),
        ({"temperature": -1}, 400, "invalid_request"),
        ({"temperature": float("nan")}, 400, "invalid_request"),
        ({"max_tokens": 0}, 400, "invalid_request"),
        ({"messages": []}, 400, "invalid_request"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, 400, "invalid_request"),
        ({"messages": [{"role": "user", "content": "long " * 2000}]}, 400, "invalid_request"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "invalid_request"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}, 200, None),
        ({"messages": [{"role": "user", "content": ""}]}, 200, None),
        ({"stop": [""]}, 400, "invalid_request"),
        ({"unknown_field": 1}, 200, None),
    ],
)
async def test_bad_requests_get_one_clear_sentence(
    http: aiohttp.ClientSession, change: dict[str, Any], status: int, code: str | None
) -> None:
    async with http.post("/v1/chat/completions", json={**CHAT, **change}) as response:
        answer = await response.json()
    assert response.status == status, answer
    assert answer.get("error", {}).get("code") == code


async def test_a_body_that_is_too_large_is_refused(http: aiohttp.ClientSession) -> None:
    headers = {"Content-Type": "application/json"}
    async with http.post("/tokenize", data=b" " * (MAX_BODY_BYTES + 1), headers=headers) as response:
        assert response.status == 413
        assert (await response.json())["error"]["code"] == "body_too_large"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/tokenize",
    ],
)
async def test_json_that_is_too_deep_is_a_bad_request(http: aiohttp.ClientSession, path: str) -> None:
    headers = {"Content-Type": "application/json", SECRET_HEADER: SECRET}
    async with http.post(path, data=b"[" * 100_000, headers=headers) as response:
        assert response.status == 400, await response.text()


async def test_an_unknown_path_is_not_taken_for_an_unknown_model(http: aiohttp.ClientSession) -> None:
    async with http.get("/nowhere") as response:
        assert (response.status, (await response.json())["error"]["code"]) == (404, "not_found")


async def test_a_caller_that_leaves_frees_the_engine(client: ModelClient, engine: Engine) -> None:
    stream = client.chat_stream(model="tiny", messages=HELLO, sampling=Sampling(200, temperature=1.5))
    await anext(stream)
    await stream.aclose()
    ends = time.monotonic() + 60
    while engine.counts() != (0, 0):
        assert time.monotonic() < ends
        await asyncio.sleep(0.02)
    assert engine.metrics.generated_tokens < 150


async def test_many_chats_at_once_all_end(client: ModelClient) -> None:
    replies = await asyncio.gather(
        *(client.chat(model="tiny", messages=HELLO, sampling=Sampling(10, seed=i)) for i in range(20))
    )
    assert all(reply.finish_reason in ("stop", "length") for reply in replies)


async def test_whoever_waits_is_told_their_place_until_they_are_served(client: ModelClient) -> None:
    async def ask(number: int) -> list[ChatDelta]:
        stream = client.chat_stream(
            model="tiny",
            messages=HELLO,
            sampling=Sampling(200, temperature=1.8, seed=number),
            user=f"member {number}",
            queue_updates=True,
        )
        return [delta async for delta in stream]

    asking = [asyncio.create_task(ask(number)) for number in range(24)]
    ends = time.monotonic() + 60
    # At first nobody is served yet, and a fast model is soon done with all: one look has to find both.
    while (health := await client.health()).queue.people < 8 or health.running < 4:
        assert time.monotonic() < ends
        await asyncio.sleep(0.002)
    assert health.running == 4
    assert health.queue.users == health.queue.people
    assert health.queue.wait_s > 0
    replies = await asyncio.gather(*asking)
    told = [[delta.queue for delta in deltas if delta.queue] for deltas in replies]
    assert sum(map(bool, told)) >= 4
    for places in told:
        assert [place.ahead for place in places] == sorted((p.ahead for p in places), reverse=True)
    for deltas in replies:
        first_word = next(index for index, delta in enumerate(deltas) if delta.text)
        assert not any(delta.queue for delta in deltas[first_word:])


async def test_more_prompts_than_may_wait_are_a_bad_request(http: aiohttp.ClientSession) -> None:
    """As "busy" they would be tried again for ever."""
    for fields, limit in (({}, LIMITS.unnamed), ({"user": "one"}, LIMITS.per_user)):
        body = {"model": "tiny", "prompt": ["Hello"] * (limit + 1), **fields}
        async with http.post("/v1/completions", json=body) as response:
            error = (await response.json())["error"]
        assert (response.status, error["param"]) == (400, "prompt")
        assert f"1 to {limit} prompts" in error["message"]


async def test_metrics_are_prometheus_text(http: aiohttp.ClientSession) -> None:
    async with http.post("/v1/chat/completions", json=CHAT) as response:
        assert response.status == 200
    async with http.get("/metrics") as response:
        lines = (await response.text()).splitlines()
    values = {line.split()[0]: float(line.split()[1]) for line in lines if not line.startswith("#")}
    assert values["strop_generated_tokens_total"] >= 1
    waiting = {name for name in values if name.startswith("strop_requests_waiting")}
    assert waiting == {f'strop_requests_waiting{{priority="{who}"}}' for who in ("people", "background")}
    assert values["strop_users_waiting"] == values["strop_wait_estimate_seconds"] == 0
    assert values["strop_step_seconds_count"] == values['strop_step_seconds_bucket{le="+Inf"}'] > 0


async def test_while_loading_health_answers_and_the_rest_says_so(tmp_path: Path) -> None:
    service = Service(settings(tmp_path))
    async with listening(service) as url, ModelClient(url) as client:
        assert (await client.health()).status == "loading"
        with pytest.raises(ServerLoadingError):
            await client.chat(model="tiny", messages=HELLO, sampling=Sampling(4))
        with pytest.raises(ServerLoadingError):
            await client.models()


async def test_an_api_key_is_asked_of_everyone_once_it_is_set(
    base: LoadedBase, engine: Engine, tmp_path: Path
) -> None:
    service = Service(settings(tmp_path, api_key="k" * 20))
    service._runtime = Runtime(base, engine, tmp_path / "adapters")
    async with listening(service) as url:
        async with ModelClient(url) as stranger:
            assert (await stranger.health()).base is None
            with pytest.raises(RequestRejectedError, match="API key"):
                await stranger.models()
        async with ModelClient(url, api_key="k" * 20) as friend:
            assert await friend.models() == ["tiny"]
            assert (await friend.health()).base is not None


def test_a_public_address_without_a_key_is_refused() -> None:
    slice_ = {"models_dir": "m", "adapters_dir": "a", "run_dir": "r", "host": "0.0.0.0"}
    with pytest.raises(ServerStartError, match="STROP_API_KEY"):
        read_settings(json.dumps(slice_))
    assert read_settings(json.dumps({**slice_, "api_key": "key"})).host == "0.0.0.0"


def test_every_problem_of_the_settings_is_named() -> None:
    with pytest.raises(ServerStartError, match=r"port.*models_dir|models_dir.*port"):
        read_settings('{"port": -1, "typo": 1}')


def test_a_port_in_use_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with ServingProcess(tmp_path, port=port) as server:
            said = server.refusal()
    assert f"cannot listen on 127.0.0.1:{port}" in said
    assert "Traceback" not in said


async def test_a_whole_life(tiny_source: Path, tiny_folder: Path, models_dir: Path, tmp_path: Path) -> None:
    with ServingProcess(tmp_path, base=str(tiny_source), models_dir=str(models_dir)) as server:
        address = await asyncio.to_thread(server.address)
        assert stat.S_IMODE((server.run_dir / "server.json").stat().st_mode) == 0o600
        async with ModelClient.from_run_dir(server.run_dir) as client:
            await until_loaded(client)
            sampling = Sampling(60, temperature=1.0, seed=3)
            stream = client.chat_stream(model="tiny", messages=HELLO, sampling=sampling)
            first = await anext(stream)
            server.process.send_signal(signal.SIGTERM)
            rest = [delta async for delta in stream]
            assert first.text
            assert rest[-1].finish_reason in ("stop", "length")
            assert await asyncio.to_thread(server.process.wait, 20) == 0
            assert not (server.run_dir / "server.json").exists()
            with pytest.raises(ServerUnavailableError):
                await client.models()
            # A restart has another port and another secret; the same client goes on.
            with ServingProcess(tmp_path, base=str(tiny_source), models_dir=str(models_dir)) as again:
                fresh = await asyncio.to_thread(again.address)
                assert fresh["secret"] != address["secret"]
                await until_loaded(client)
                assert await client.models() == ["tiny"]
                (tmp_path / "adapters").mkdir()
                with pytest.raises(AdapterRefusedError, match="no adapter folder"):
                    await client.load_adapter("x", tmp_path / "adapters" / "x")


@pytest.mark.parametrize("delay_s", [0.0, 0.5, 1.5])
def test_ctrl_c_while_the_model_loads_ends_the_server_quietly(tmp_path: Path, delay_s: float) -> None:
    with ServingProcess(tmp_path) as server:
        server.address()
        time.sleep(delay_s)
        server.process.send_signal(signal.SIGINT)
        _, said = server.process.communicate(timeout=30)
    assert server.process.returncode == 0
    # Only the log, in lines of JSON: no trace, and nothing of a C++ library's.
    assert all(line.startswith("{") for line in said.splitlines()), said
    assert not (server.run_dir / "server.json").exists()


async def until_loaded(client: ModelClient, timeout_s: float = 120) -> None:
    ends = time.monotonic() + timeout_s
    while True:
        try:
            if (await client.health()).status == "ok":
                return
        except ServerUnavailableError:
            pass
        assert time.monotonic() < ends
        await asyncio.sleep(0.1)
