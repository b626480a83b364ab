"""From an engine's events to answers in OpenAI's shapes: whole ones, and streams of server-sent events.

A stream tells our own client its place in the queue (``queue_updates``); those are chunks without choices,
which no other client is ever sent.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from bot.serving.engine.events import Event, Failed, Finished, TextPiece
from bot.serving.errors import ReplyFailedError
from bot.serving.model.thoughts import ThoughtFilter
from bot.serving.protocol import QueuePlace, TokenIds

# While a request waits in the queue its stream sends comments, so that a silent stream means a dead server.
KEEPALIVE_S = 10.0
# The first place in the queue is told after a moment, in which most requests get a row.
FIRST_PLACE_S = 0.2
PLACE_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Kind:
    """What distinguishes chat completions from plain ones on the wire."""

    id_prefix: str
    whole: str
    chunk: str


CHAT = Kind("chatcmpl", "chat.completion", "chat.completion.chunk")
TEXT = Kind("cmpl", "text_completion", "text_completion")


class Answer:
    """One answer's head, and its parts in the shape of its kind."""

    def __init__(self, kind: Kind, model: str) -> None:
        self._kind = kind
        self._head = {
            "id": f"{kind.id_prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, choices: list[dict[str, Any]], ends: list[Finished]) -> web.Response:
        """Return the answer to a request that did not ask for a stream."""
        return web.json_response(
            {**self._head, "object": self._kind.whole, "choices": choices, "usage": usage(ends)}
        )

    def opening(self) -> dict[str, Any] | None:
        """Return the chunk that a chat begins with."""
        return self._chunk({"delta": {"role": "assistant", "content": ""}}) if self._kind is CHAT else None

    def piece(self, text: str) -> dict[str, Any]:
        """Return the chunk with a piece of text."""
        return self._chunk({"delta": {"content": text}} if self._kind is CHAT else {"text": text})

    def ending(self, reason: str) -> dict[str, Any]:
        """Return the one chunk with a finish reason."""
        return self._chunk({"delta": {}} if self._kind is CHAT else {"text": ""}, reason)

    def without_choices(self, **fields: Any) -> dict[str, Any]:
        """Return a chunk that carries something else than text."""
        return {**self._head, "object": self._kind.chunk, "choices": [], **fields}

    def _chunk(self, content: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, **content, "finish_reason": reason, "logprobs": None}
        return {**self._head, "object": self._kind.chunk, "choices": [choice]}


async def collect(queue: asyncio.Queue[Event], thoughts: ThoughtFilter | None = None) -> tuple[str, Finished]:
    """Wait for a job's end; return its whole text, without its thoughts where a filter is given.

    Raises:
        ReplyFailedError: the engine could not finish it.
    """
    pieces: list[str] = []
    while True:
        event = await queue.get()
        if isinstance(event, TextPiece):
            pieces.append(event.text)
        elif isinstance(event, Finished):
            text = "".join(pieces)
            return (thoughts.push(text) + thoughts.finish() if thoughts else text), event
        else:
            raise ReplyFailedError(event.message, event.code)


async def stream(
    request: web.Request,
    queue: asyncio.Queue[Event],
    answer: Answer,
    *,
    include_usage: bool,
    thoughts: ThoughtFilter | None = None,
    place: Callable[[], QueuePlace | None] | None = None,
) -> web.StreamResponse:
    """Send a job's events as chunks; exactly one has a finish reason, or the stream ends with an error.

    With ``thoughts``, what that filter drops is not sent. With ``place``, the request's place in the queue is
    sent whenever it has changed.
    """
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    await response.prepare(request)
    if (opening := answer.opening()) is not None:
        await _send(response, opening)
    async for event in _with_places(queue, place):
        if event is None:
            await response.write(b": waiting\n\n")
        elif isinstance(event, TextPiece):
            if text := thoughts.push(event.text) if thoughts else event.text:
                await _send(response, answer.piece(text))
        elif isinstance(event, QueuePlace):
            await _send(response, answer.without_choices(queue=dataclasses.asdict(event)))
        elif isinstance(event, Failed):
            error = {"message": event.message, "type": "server_error", "code": event.code, "status": 503}
            await _send(response, {"error": error})
        else:
            if thoughts and (rest := thoughts.finish()):
                await _send(response, answer.piece(rest))
            await _send(response, answer.ending(event.reason))
            if include_usage:
                await _send(response, answer.without_choices(usage=usage([event])))
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


def usage(ends: list[Finished]) -> dict[str, int]:
    """Return the token counts of a request's jobs together."""
    prompt = sum(end.prompt_tokens for end in ends)
    completion = sum(end.completion_tokens for end in ends)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def prompt_logprobs(prompt: TokenIds, end: Finished) -> list[dict[str, dict[str, float]] | None]:
    """Return vLLM's shape: nothing for the first token, then the log-probability of each token by its id."""
    scores = end.scores or ()
    return [None, *({str(t): {"logprob": s}} for t, s in zip(prompt[1:], scores, strict=True))]


async def _with_places(
    queue: asyncio.Queue[Event], place: Callable[[], QueuePlace | None] | None
) -> AsyncIterator[Event | QueuePlace | None]:
    """Yield a job's events up to the terminal one; in pauses its changed place, or None every ten seconds."""
    loop = asyncio.get_running_loop()
    told: QueuePlace | None = None
    pause_s = KEEPALIVE_S if place is None else FIRST_PLACE_S
    sent_at = loop.time()
    while True:
        try:
            event: Event | QueuePlace | None = await asyncio.wait_for(queue.get(), pause_s)
        except TimeoutError:
            now = place() if place is not None else None
            pause_s = KEEPALIVE_S if place is None else PLACE_EVERY_S
            if now is not None and now != told:
                event = told = now
            elif loop.time() - sent_at >= KEEPALIVE_S:
                event = None
            else:
                continue
        sent_at = loop.time()
        yield event
        if isinstance(event, Finished | Failed):
            return


async def _send(response: web.StreamResponse, value: dict[str, Any]) -> None:
    await response.write(b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n")
