"""The model server's HTTP face: OpenAI's chat completions, vLLM's adapter endpoints, health and metrics."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, TypeVar

import structlog
from aiohttp import ClientPayloadError, web
from pydantic import BaseModel, ValidationError

from bot.serving.api.auth import Handler, error_response, guard, is_trusted
from bot.serving.api.responses import CHAT, TEXT, Answer, collect, prompt_logprobs, stream
from bot.serving.api.service import Run, Service
from bot.serving.engine.events import JobOptions, SamplingOptions
from bot.serving.engine.scheduler import LIMITS
from bot.serving.errors import (
    AdapterRefusedError,
    FailureCode,
    ReplyFailedError,
    RequestRejectedError,
    ServerBusyError,
    ServerLoadingError,
    ServerUnavailableError,
    ServingError,
    UnknownModelError,
)
from bot.serving.model import control_tokens
from bot.serving.model.thoughts import ThoughtFilter
from bot.serving.protocol import (
    MAX_PROMPTS_PER_REQUEST,
    NOT_OFFERED,
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    LoadAdapterRequest,
    TokenIds,
    TokenizeRequest,
    UnloadAdapterRequest,
    WireMessage,
)

log = structlog.get_logger(__name__)

MAX_BODY_BYTES = 8 * 1024 * 1024

_Model = TypeVar("_Model", bound=BaseModel)


def build_app(service: Service, *, secret: str) -> web.Application:
    """Return the application; ``secret`` opens the calls that change what is loaded."""
    settings = service.settings
    checks = guard(loopback=settings.is_loopback(), secret=secret, api_key=settings.api_key)
    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[checks, _translate_errors])
    face = _Face(service, secret)
    app.router.add_get("/health", face.health)
    app.router.add_get("/metrics", face.metrics)
    app.router.add_get("/v1/models", face.models)
    app.router.add_get("/v1/models/{name:.+}", face.model)
    app.router.add_post("/v1/chat/completions", face.chat)
    app.router.add_post("/v1/completions", face.completions)
    app.router.add_post("/v1/load_lora_adapter", face.load_adapter)
    app.router.add_post("/v1/unload_lora_adapter", face.unload_adapter)
    app.router.add_post("/tokenize", face.tokenize)
    app.router.add_post("/reset_prefix_cache", face.reset_prefix_cache)
    return app


@web.middleware
async def _translate_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except ServingError as error:
        return _refusal(error)
    except (ConnectionError, ClientPayloadError):
        # The client has left, in the middle of its request or of our answer: nobody is there to be told.
        log.info("request.client_left", path=request.path)
        return error_response(499, "The client has closed the connection.", "client_left")
    except web.HTTPRequestEntityTooLarge:
        return error_response(413, f"The body is larger than {MAX_BODY_BYTES:,} bytes.", "body_too_large")
    except web.HTTPException as error:
        return error_response(error.status, error.reason, "not_found" if error.status == 404 else "http")
    except Exception:  # the process boundary: a caller gets a sentence, the log gets the trace
        log.exception("request failed", path=request.path)
        return error_response(500, "The model server failed on this request.", "internal")


def _refusal(error: ServingError) -> web.Response:
    message = error.message
    if isinstance(error, ServerBusyError):
        headers = {"Retry-After": str(max(1, round(error.retry_after_s)))}
        return error_response(429, message, "busy", headers=headers)
    if isinstance(error, UnknownModelError):
        return error_response(404, message, "model_not_found", param="model")
    if isinstance(error, ServerLoadingError):
        return error_response(503, message, "loading", headers={"Retry-After": "2"})
    if isinstance(error, ServerUnavailableError):
        return error_response(503, message, "shutting_down")
    if isinstance(error, AdapterRefusedError):
        return error_response(400, message, "adapter_refused")
    if isinstance(error, ReplyFailedError):
        return error_response(_FAILURES[error.code], message, error.code)
    param = error.param if isinstance(error, RequestRejectedError) else None
    return error_response(400, message, "invalid_request", param=param)


_FAILURES: dict[FailureCode, int] = {"deadline": 504, "shutting_down": 503, "internal": 500}


class _Face:
    """The handlers, bound to one service."""

    def __init__(self, service: Service, secret: str) -> None:
        self._service = service
        self._secret = secret
        self._started = int(time.time())

    async def health(self, request: web.Request) -> web.Response:
        """Say whether the model is loaded and, to those who may know, everything about it."""
        service = self._service
        detail = service.detail
        body: dict[str, Any] = {"status": "ok" if service.ready else "loading", "detail": detail}
        body |= {f"detail_{name}": value for name, value in detail.as_json().items()}
        open_to_all = service.settings.api_key is None
        if service.ready and (open_to_all or is_trusted(request, self._secret, service.settings.api_key)):
            engine = service.runtime.engine
            running, waiting = engine.counts()
            body["base"] = dataclasses.asdict(service.runtime.description)
            body["adapters"] = engine.loaded_adapters.names()
            state = dataclasses.asdict(engine.queue_state())
            body["queue"] = {"running": running, "waiting": waiting, **state}
        return web.json_response(body, status=200 if service.ready else 503)

    async def metrics(self, _: web.Request) -> web.Response:
        """Answer in Prometheus' text format."""
        engine = self._service.runtime.engine
        running = engine.counts()[0]
        text = engine.metrics.render(
            running=running, queue=engine.queue_state(), adapters=len(engine.loaded_adapters.names())
        )
        return web.Response(text=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def models(self, _: web.Request) -> web.Response:
        """List the base and the loaded adapters."""
        names = self._service.model_names()
        return web.json_response({"object": "list", "data": [self._model(name, names) for name in names]})

    async def model(self, request: web.Request) -> web.Response:
        """Describe one model."""
        name = request.match_info["name"]
        self._service.check_model(name)
        return web.json_response(self._model(name, self._service.model_names()))

    def _model(self, name: str, names: list[str]) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._started,
            "owned_by": "strop",
            "parent": None if name == names[0] else names[0],
        }

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """``POST /v1/chat/completions``."""
        body = await _read(request, ChatRequest)
        self._service.check_model(body.model)
        prompt = await self._service.tokenize_chat(_messages(body.messages))
        options = _options(body, body.max_completion_tokens or body.max_tokens)
        answer = Answer(CHAT, body.model)
        async with self._service.run(body.model, [prompt], options) as (run,):
            thoughts = run.thoughts()
            if body.stream:
                return await _stream(request, body, run, answer, thoughts)
            text, end = await collect(run.events, thoughts)
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": end.reason, "logprobs": None}
        return answer.whole([choice], [end])

    async def completions(self, request: web.Request) -> web.StreamResponse:
        """``POST /v1/completions``: raw prompts, and scoring of prompts."""
        body = await _read(request, CompletionRequest)
        self._service.check_model(body.model)
        score = body.prompt_logprobs is not None
        if score and body.max_tokens != 1:
            raise RequestRejectedError("prompt_logprobs needs max_tokens: 1.", "max_tokens")
        prompts = await self._prompt_ids(body)
        if body.stream and (score or len(prompts) > 1):
            raise RequestRejectedError("A stream carries one prompt, and no prompt_logprobs.", "stream")
        options = _options(body, body.max_tokens, score=score)
        answer = Answer(TEXT, body.model)
        async with self._service.run(body.model, prompts, options) as runs:
            if body.stream:
                return await _stream(request, body, runs[0], answer)
            ends = [await collect(run.events) for run in runs]
        choices = [
            {
                "index": index,
                "text": text,
                "finish_reason": end.reason,
                "logprobs": None,
                "prompt_logprobs": prompt_logprobs(prompts[index], end) if score else None,
            }
            for index, (text, end) in enumerate(ends)
        ]
        return answer.whole(choices, [end for _, end in ends])

    async def _prompt_ids(self, body: CompletionRequest) -> list[TokenIds]:
        prompts = body.prompts()
        # More than may wait would be refused as "busy" for ever.
        limit = min(MAX_PROMPTS_PER_REQUEST, LIMITS.of_one_caller(body.priority, body.user))
        if not 1 <= len(prompts) <= limit:
            raise RequestRejectedError(f"Send 1 to {limit} prompts in a request.", "prompt")
        return [
            await self._service.tokenize_text(prompt) if isinstance(prompt, str) else prompt
            for prompt in prompts
        ]

    async def load_adapter(self, request: web.Request) -> web.Response:
        """``POST /v1/load_lora_adapter``."""
        body = await _read(request, LoadAdapterRequest)
        if body.lora_name == self._service.runtime.description.id:
            raise AdapterRefusedError(f"The name {body.lora_name} belongs to the base.")
        fresh = await self._service.load_adapter(body.lora_name, Path(body.lora_path))
        word = "added" if fresh else "already loaded"
        return web.Response(text=f"Success: LoRA adapter '{body.lora_name}' {word}.")

    async def unload_adapter(self, request: web.Request) -> web.Response:
        """``POST /v1/unload_lora_adapter``."""
        body = await _read(request, UnloadAdapterRequest)
        await self._service.unload_adapter(body.lora_name)
        return web.Response(text=f"Success: LoRA adapter '{body.lora_name}' removed.")

    async def reset_prefix_cache(self, _: web.Request) -> web.Response:
        """``POST /reset_prefix_cache`` (vLLM's name): keep nothing of the prompts that were read so far."""
        self._service.runtime.engine.forget_prompts()
        control_tokens.forget()
        return web.Response()

    async def tokenize(self, request: web.Request) -> web.Response:
        """``POST /tokenize``: what a chat or a text costs, in tokens."""
        body = await _read(request, TokenizeRequest)
        if body.model:
            self._service.check_model(body.model)
        if body.messages is not None:
            messages = _messages(body.messages)
            tokens = await self._service.tokenize_chat(messages, generation=body.add_generation_prompt)
        elif body.prompt is not None:
            tokens = await self._service.tokenize_text(body.prompt)
        else:
            raise RequestRejectedError("Send messages or a prompt.")
        limit = self._service.runtime.engine.context_tokens
        return web.json_response({"tokens": tokens, "count": len(tokens), "max_model_len": limit})


async def _read(request: web.Request, model: type[_Model]) -> _Model:
    try:
        return model.model_validate_json(await request.read())
    except ValidationError as error:
        problem = error.errors()[0]
        refused = (problem["ctx"]["field"],) if problem["type"] == NOT_OFFERED else problem["loc"]
        place = ".".join(str(part) for part in refused)
        reason = problem["msg"].removeprefix("Value error, ")
        raise RequestRejectedError(f"{place or 'body'}: {reason}", place or None) from error


def _messages(messages: list[WireMessage]) -> list[ChatMessage]:
    return [ChatMessage(message.role, message.content) for message in messages]


def _options(
    body: ChatRequest | CompletionRequest, max_tokens: int | None, *, score: bool = False
) -> JobOptions:
    sampling = SamplingOptions(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=max(body.top_k, 0),
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        seed=body.seed,
    )
    return JobOptions(
        max_tokens=max_tokens,
        sampling=sampling,
        stop=body.stop,
        priority=body.priority,
        user=body.user,
        score=score,
        deadline_s=body.deadline_s,
    )


async def _stream(
    request: web.Request,
    body: ChatRequest | CompletionRequest,
    run: Run,
    answer: Answer,
    thoughts: ThoughtFilter | None = None,
) -> web.StreamResponse:
    usage = body.stream_options is not None and body.stream_options.include_usage
    place = run.place if body.queue_updates else None
    return await stream(request, run.events, answer, include_usage=usage, thoughts=thoughts, place=place)
