"""The official `openai` package drives the real server process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from bot.serving.engine.scheduler import LIMITS
from tests.bot.serving.serving_process import ServingProcess

KEY = "k" * 24
HELLO: Any = [{"role": "user", "content": "Hello there! How are you?"}]


@pytest.fixture(scope="module")
def server(
    tiny_source: Path, tiny_folder: Path, models_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The address of a server process with a tiny model, two rows and an API key."""
    home = tmp_path_factory.mktemp("openai")
    slice_ = {"base": str(tiny_source), "models_dir": str(models_dir), "api_key": KEY, "slots": 2}
    with ServingProcess(home, **slice_) as process:
        url = process.address()["base_url"]
        with OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
            ends = time.monotonic() + 120
            while True:
                try:
                    client.models.list()
                    break
                except (openai.InternalServerError, openai.APIConnectionError):
                    assert time.monotonic() < ends
                    time.sleep(0.2)
        yield url


@pytest.fixture
def client(server: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def test_models_are_listed(client: OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("tiny", "model", "strop")
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


def test_a_chat_is_answered(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=12, user="u1", seed=1)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_has_pieces_one_end_and_usage(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model="tiny",
        messages=HELLO,
        max_tokens=24,
        seed=3,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert [reason for reason in reasons if reason] == reasons[-1:]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert 1 <= chunks[-1].usage.completion_tokens <= 24
    whole = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=24, seed=3)
    assert whole.choices[0].message.content == text
    plain = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=4, seed=3, stream=True)
    assert all(chunk.choices and chunk.usage is None for chunk in plain)


def test_the_packages_own_stream_helper_accumulates(client: OpenAI) -> None:
    with client.chat.completions.stream(model="tiny", messages=HELLO, max_tokens=10, seed=3) as stream:
        pieces = [event.delta for event in stream if event.type == "content.delta"]
        snapshot = stream.current_completion_snapshot
    assert snapshot.choices[0].message.content == "".join(pieces)
    assert snapshot.choices[0].finish_reason in ("stop", "length")


def test_seeds_repeat_and_differ(client: OpenAI) -> None:
    def say(seed: int) -> str | None:
        answer = client.chat.completions.create(
            model="tiny", messages=HELLO, max_tokens=24, seed=seed, temperature=1.2
        )
        return answer.choices[0].message.content

    assert say(5) == say(5)
    assert len({say(seed) for seed in (5, 6, 7)}) > 1


def test_a_stop_string_ends_the_text_before_it(client: OpenAI) -> None:
    whole = client.chat.completions.create(
        model="tiny", messages=HELLO, max_completion_tokens=30, temperature=0
    )
    text = whole.choices[0].message.content or ""
    stop = text[len(text) // 2 :][:3]
    for form in (stop, [stop, "unheard of"]):
        cut = client.chat.completions.create(
            model="tiny", messages=HELLO, max_completion_tokens=30, temperature=0, stop=form
        )
        assert cut.choices[0].message.content == text[: text.index(stop)]
        assert cut.choices[0].finish_reason == "stop"


def test_max_tokens_are_exact(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=1, temperature=0, extra_body={"top_k": 3, "min_p": 0.1}
    )
    assert (answer.choices[0].finish_reason, answer.usage and answer.usage.completion_tokens) == ("length", 1)


def test_plain_completions_of_texts_and_tokens(client: OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt=["The quick", "Answer"], max_tokens=5, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1]
    ids = client.completions.create(model="tiny", prompt=[20, 30, 40], max_tokens=5, temperature=0)
    assert ids.choices[0].finish_reason in ("stop", "length")
    chunks = list(
        client.completions.create(model="tiny", prompt=[20, 30, 40], max_tokens=5, temperature=0, stream=True)
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == ids.choices[0].text
    assert chunks[-1].choices[0].finish_reason == ids.choices[0].finish_reason


def test_prompts_are_scored_through_an_extra_field(client: OpenAI) -> None:
    answer = client.completions.create(
        model="tiny", prompt=[20, 30, 40], max_tokens=1, temperature=0, extra_body={"prompt_logprobs": 0}
    )
    entries = answer.choices[0].model_extra["prompt_logprobs"]  # type: ignore[index]
    assert entries[0] is None
    assert [list(entry) for entry in entries[1:]] == [["30"], ["40"]]


@pytest.mark.parametrize(
    "wish",
    [
        {"n": 2},
        {"logprobs": True},
        {"logprobs": True, "top_logprobs": 3},
        {"logit_bias": {"5": 10}},
        {"presence_penalty": 0.5},
        {"frequency_penalty": -1.0},
        {"response_format": {"type": "json_object"}},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
    ],
)
def test_what_is_not_offered_is_refused_by_name(client: OpenAI, wish: Any) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=4, **wish)
    assert next(iter(wish)) in refused.value.message
    assert refused.value.code == "invalid_request"
    assert refused.value.type == "invalid_request_error"
    assert refused.value.param == next(iter(wish))


@pytest.mark.parametrize(
    "wish", [{"logprobs": 0}, {"logprobs": 2}, {"best_of": 3}, {"echo": True}, {"suffix": "x"}]
)
def test_completions_refuse_by_name_too(client: OpenAI, wish: Any) -> None:
    with pytest.raises(openai.BadRequestError, match=next(iter(wish))):
        client.completions.create(model="tiny", prompt="Hello", max_tokens=4, **wish)


def test_fields_that_ask_for_nothing_are_accepted(client: OpenAI) -> None:
    client.chat.completions.create(
        model="tiny",
        messages=[{"role": "developer", "content": "Be brief."}, *HELLO],
        max_tokens=2,
        n=1,
        logprobs=False,
        presence_penalty=0,
        frequency_penalty=0.0,
        response_format={"type": "text"},
        logit_bias={},
        stop=None,
        tools=[],
        tool_choice="auto",
        metadata={"a": "b"},
        store=False,
    )


@pytest.mark.parametrize(
    ("change", "error", "code", "param"),
    [
        ({"model": "nobody"}, openai.NotFoundError, "model_not_found", "model"),
        ({"temperature": -1}, openai.BadRequestError, "invalid_request", "temperature"),
        ({"messages": []}, openai.BadRequestError, "invalid_request", "messages"),
        ({"max_tokens": 0}, openai.BadRequestError, "invalid_request", "max_tokens"),
        (
            {"messages": [{"role": "user", "content": "long " * 2000}]},
            openai.BadRequestError,
            "invalid_request",
            None,
        ),
        ({"messages": [{"role": "tool", "content": "x"}]}, openai.BadRequestError, "invalid_request", None),
    ],
)
def test_errors_are_the_packages_own(
    client: OpenAI, change: Any, error: type[openai.APIStatusError], code: str, param: str | None
) -> None:
    for stream in (False, True):
        with pytest.raises(error) as raised:
            client.chat.completions.create(
                **{"model": "tiny", "messages": HELLO, "max_tokens": 4, "stream": stream, **change}
            )
        assert raised.value.code == code
        if param is not None:
            assert raised.value.param == param


def test_a_wrong_key_is_an_authentication_error(server: str) -> None:
    with OpenAI(base_url=f"{server}/v1", api_key="wrong", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError, match="API key"):
            stranger.models.list()
        with pytest.raises(openai.AuthenticationError):
            stranger.chat.completions.create(model="tiny", messages=HELLO, max_tokens=4)


async def test_leaving_a_stream_frees_the_row(server: str) -> None:
    async with AsyncOpenAI(base_url=f"{server}/v1", api_key=KEY, max_retries=0) as client:
        # Two rows: were they not freed at once, the later ones would wait for whole replies.
        for seed in range(8):
            stream = await client.chat.completions.create(
                model="tiny", messages=HELLO, max_tokens=200, temperature=1.8, seed=seed, stream=True
            )
            await anext(aiter(stream))
            await stream.close()
        ends = time.monotonic() + 60
        while (await queue_of(server))["running"]:
            assert time.monotonic() < ends
            await asyncio.sleep(0.02)


async def test_a_full_queue_is_a_rate_limit_error_and_retries_come_through(server: str) -> None:
    count = 2 + LIMITS.per_user + 6

    async def ask(client: AsyncOpenAI, number: int) -> Any:
        return await client.chat.completions.create(
            model="tiny", messages=HELLO, max_tokens=120, temperature=1.8, seed=number, user="one"
        )

    async with AsyncOpenAI(base_url=f"{server}/v1", api_key=KEY, max_retries=0) as hasty:
        for _ in range(5):  # Where this process stands still in between, the first may be done already.
            outcomes = await asyncio.gather(*(ask(hasty, n) for n in range(count)), return_exceptions=True)
            refused = [outcome for outcome in outcomes if isinstance(outcome, openai.RateLimitError)]
            if refused:
                break
    assert refused
    assert len(refused) + sum(not isinstance(outcome, Exception) for outcome in outcomes) == count
    assert refused[0].code == "busy"
    assert int(refused[0].response.headers["Retry-After"]) >= 1
    async with AsyncOpenAI(base_url=f"{server}/v1", api_key=KEY, max_retries=8) as patient:
        answers = await asyncio.gather(*(ask(patient, n) for n in range(count)))
    assert len(answers) == count


async def test_only_those_who_ask_are_told_their_place(server: str) -> None:
    async with AsyncOpenAI(base_url=f"{server}/v1", api_key=KEY, max_retries=0) as client:

        async def follow(number: int, told: bool) -> list[Any]:
            stream = await client.chat.completions.create(
                model="tiny",
                messages=HELLO,
                max_tokens=200,
                temperature=1.8,
                seed=number,
                stream=True,
                user=f"user {number}",
                extra_body={"queue_updates": True} if told else {},
            )
            return [chunk async for chunk in stream]

        streams = await asyncio.gather(*(follow(number, number % 2 == 0) for number in range(32)))
    places = [[c.model_extra["queue"] for c in chunks if c.model_extra.get("queue")] for chunks in streams]
    assert not any(places[1::2])
    told = [place for stream in places for place in stream]
    assert told
    assert all(place["ahead"] >= 0 and place["wait_s"] > 0 for place in told)
    for stream in places:
        assert [place["ahead"] for place in stream] == sorted((p["ahead"] for p in stream), reverse=True)


async def test_a_deadline_is_an_error_of_its_own(server: str) -> None:
    async with AsyncOpenAI(base_url=f"{server}/v1", api_key=KEY, max_retries=0) as client:
        ask = client.chat.completions.create
        wish: Any = {"model": "tiny", "messages": HELLO, "max_tokens": 200, "temperature": 1.8}
        with pytest.raises(openai.InternalServerError) as late:
            await ask(**wish, extra_body={"deadline_s": 0.001})
        assert (late.value.status_code, late.value.code) == (504, "deadline")
        with pytest.raises(openai.APIError, match="deadline"):
            stream = await ask(**wish, stream=True, extra_body={"deadline_s": 0.001})
            async for _ in stream:
                pass


async def queue_of(server: str) -> dict[str, Any]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{server}/health", headers={"Authorization": f"Bearer {KEY}"}) as response,
    ):
        queue: dict[str, Any] = (await response.json())["queue"]
        return queue
