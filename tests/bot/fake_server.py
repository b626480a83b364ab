"""A model server without a model: the same protocol over a real socket, with answers that a test chooses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from aiohttp import web

BASE = "base-model"
BASE_HASH = "b" * 64
# vLLM's words for it.
NO_EYES = "base-model is not a multimodal model"


class FakeModelServer:
    """Speaks OpenAI chat completions, vLLM's adapter endpoints, /tokenize and /health.

    A token is a word. What the next answers are and what goes wrong are plain attributes.
    """

    def __init__(self) -> None:
        self.base_url = ""
        self.status = "ok"
        self.describes_base = True
        # "vllm": one of several that find an adapter by its name.
        self.execution = ""
        self.found: set[str] = set()
        self.tokenizes = True
        # What a picture takes of the context; without it a picture is refused.
        self.picture_tokens = 0
        # Drops pictures without a word, as servers of models without eyes may.
        self.drops_pictures = False
        self.refuses_pictures = ""
        self.base_hash = BASE_HASH
        self.identity: dict[str, str] | None = None
        self.answer = "Hello there, friend."
        self.answers: dict[str, str] = {}
        self.finish_reason = "stop"
        self.context_tokens = 2048
        self.adapters: list[str] = []
        self.exposition = ""
        self.refused_adapters: set[str] = set()
        self.busy_times = 0
        self.break_after: int | None = None
        self.pause_s = 0.0
        self.places: list[tuple[int, float]] = []
        self.retry_after = "0.05"
        self.on_load: Callable[[web.Request], Awaitable[web.Response]] = self._load
        self.gate: asyncio.Event | None = None
        self.requests: list[dict[str, Any]] = []
        self.token_requests = 0
        self.resets = 0
        self.cut_off = 0
        self.answers_before_refusing: int | None = None
        self.middlewares: list[Any] = []
        self._runner: web.AppRunner | None = None
        self._port = 0

    async def start(self) -> None:
        """Listen on a free port; after a stop, on the same one again."""
        app = web.Application(client_max_size=2**24, middlewares=self.middlewares)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/load_lora_adapter", self._dispatch_load)
        app.router.add_post("/v1/unload_lora_adapter", self._unload)
        app.router.add_post("/tokenize", self._tokenize)
        app.router.add_post("/reset_prefix_cache", self._reset)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        self._port = self._runner.addresses[0][1]
        self.base_url = f"http://127.0.0.1:{self._port}"

    async def stop(self) -> None:
        """Stop answering; connections in use are cut."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def prompt(self, index: int = -1) -> list[dict[str, str]]:
        """The messages of a chat request that was received."""
        messages: list[dict[str, str]] = self.requests[index]["messages"]
        return messages

    async def _health(self, _: web.Request) -> web.Response:
        if not self.describes_base:
            return web.Response()
        base = {
            "id": BASE,
            "hash": self.base_hash,
            "identity": self.identity,
            "context_tokens": self.context_tokens,
            "chat_template_hash": "c" * 64,
            "execution": self.execution,
        }
        body = {
            "status": self.status,
            "detail": "" if self.status == "ok" else "reading weights",
            "base": base if self.status == "ok" else None,
            "adapters": self.adapters,
            "queue": {"running": 0, "waiting": 0},
        }
        return web.json_response(body, status=200 if self.status == "ok" else 503)

    async def _metrics(self, _: web.Request) -> web.Response:
        if not self.exposition:
            raise web.HTTPNotFound
        return web.Response(text=self.exposition)

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": name} for name in (BASE, *self.adapters)]})

    async def _tokenize(self, request: web.Request) -> web.Response:
        if not self.tokenizes:
            raise web.HTTPNotFound
        asked = await request.json()
        if "prompt" in asked:
            self.found.add(asked["model"])
            return web.json_response({"tokens": [1], "count": 1})
        self.token_requests += 1
        count = count_tokens(asked["messages"])
        return web.json_response({"tokens": list(range(count)), "count": count, "max_model_len": 2048})

    async def _reset(self, _: web.Request) -> web.Response:
        self.resets += 1
        return web.Response()

    async def _dispatch_load(self, request: web.Request) -> web.Response:
        return await self.on_load(request)

    async def _load(self, request: web.Request) -> web.Response:
        name = (await request.json()).get("lora_name")
        if name is None:
            return _error(400, "bad_request", "A name is needed.")
        if name in self.refused_adapters:
            return _error(400, "adapter_refused", f"{name} was made for another base.")
        if name not in self.adapters:
            self.adapters.append(name)
        return web.json_response({})

    async def _unload(self, request: web.Request) -> web.Response:
        name = (await request.json())["lora_name"]
        if name not in self.adapters:
            return _error(404, "model_not_found", f"{name} is not loaded.")
        self.adapters.remove(name)
        return web.json_response({})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        if self.answers_before_refusing is not None:
            self.answers_before_refusing -= 1
            if self.answers_before_refusing < 0:
                return _error(500, "broken", "The model has failed.")
        if self.busy_times > 0:
            self.busy_times -= 1
            return _error(429, "busy", "The queue is full.", {"Retry-After": self.retry_after})
        if body["model"] not in (BASE, *self.adapters, *self.found):
            return _error(404, "model_not_found", f"There is no model {body['model']}.")
        refusal = self.refuses_pictures or ("" if self.picture_tokens or self.drops_pictures else NO_EYES)
        if refusal and count_pictures(body["messages"]):
            return _error(400, "bad_request", refusal)
        if not body.get("stream"):
            usage = {"prompt_tokens": self._count(body["messages"]), "completion_tokens": 1}
            choice = {"index": 0, "message": {"content": "Hi"}, "finish_reason": "length"}
            return web.json_response({"choices": [choice], "usage": usage})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        try:
            return await self._speak(request, response, body)
        except (asyncio.CancelledError, ConnectionError):
            # Whoever asked has gone: a model server frees the slot here.
            self.cut_off += 1
            raise

    def _count(self, messages: Sequence[dict[str, Any]]) -> int:
        return count_tokens(messages) + self.picture_tokens * count_pictures(messages)

    async def _speak(
        self, request: web.Request, response: web.StreamResponse, body: dict[str, Any]
    ) -> web.StreamResponse:
        for ahead, wait_s in self.places if body.get("queue_updates") else ():
            await _send(response, {"choices": [], "queue": {"ahead": ahead, "wait_s": wait_s}})
            await asyncio.sleep(self.pause_s)
        words = self.answers.get(body["model"], self.answer).split(" ")
        for position, word in enumerate(words):
            if self.break_after is not None and position == self.break_after:
                assert request.transport is not None
                request.transport.abort()
                return response
            if self.gate is not None and position == len(words) // 2:
                await self.gate.wait()
            await _send(response, _chunk(word if position == 0 else f" {word}"))
            if self.pause_s:
                await asyncio.sleep(self.pause_s)
        await _send(response, _chunk(None, self.finish_reason))
        usage = {"prompt_tokens": self._count(body["messages"]), "completion_tokens": len(words)}
        await _send(response, {"choices": [], "usage": usage})
        await response.write(b"data: [DONE]\n\n")
        return response


def count_tokens(messages: Sequence[dict[str, Any]]) -> int:
    """One token a word, and four a message."""
    return sum(4 + len(words_of(message).split()) for message in messages)


def words_of(message: dict[str, Any]) -> str:
    """What a message says, whole or in parts."""
    content = message["content"]
    return content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)


def count_pictures(messages: Sequence[dict[str, Any]]) -> int:
    """How many pictures a conversation shows."""
    contents = [message["content"] for message in messages if isinstance(message["content"], list)]
    return sum(part["type"] == "image_url" for content in contents for part in content)


def _chunk(text: str | None, reason: str | None = None) -> dict[str, Any]:
    delta = {} if text is None else {"content": text}
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}


async def _send(response: web.StreamResponse, data: dict[str, Any]) -> None:
    await response.write(f"data: {json.dumps(data)}\n\n".encode())


def _error(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> web.Response:
    error = {"message": message, "type": "server_error", "code": code}
    return web.json_response({"error": error}, status=status, headers=headers)
