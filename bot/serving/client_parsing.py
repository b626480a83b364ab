"""Read what model servers answer: errors, health, chat streams and scores, ours and vLLM's (torch-free)."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from typing import Any

from bot.serving.errors import (
    AdapterRefusedError,
    ConnectionBrokenError,
    RequestRejectedError,
    ServerBusyError,
    ServerLoadingError,
    ServerUnavailableError,
    ServingError,
    UnknownModelError,
)
from bot.serving.messages import Message, read_message
from bot.serving.model.capabilities import BaseCapabilities
from bot.serving.model.identity import BaseIdentity
from bot.serving.model.thoughts import ThoughtFilter
from bot.serving.protocol import BaseDescription, ChatDelta, Health, QueuePlace, QueueState, Usage
from bot.serving.sse import events


async def read_chat_stream(chunks: AsyncIterable[bytes]) -> AsyncIterator[ChatDelta]:
    """Read a chat stream; exactly one delta with a finish reason comes last, also when usage follows it.

    Thoughts are left out here once more: other servers send them as they come.

    Raises ServerUnavailableError where the stream breaks off, or the error that the server names.
    """
    thoughts, characters = ThoughtFilter(), WholeCharacters()
    reason: str | None = None
    usage: Usage | None = None
    async for data in events(chunks):
        if data == "[DONE]":
            # Some servers say no more than that they are done.
            reason = reason or "stop"
            break
        chunk = json.loads(data)
        if error := chunk.get("error") or (chunk.get("object") == "error" and chunk):
            status = error.get("status") if isinstance(error, dict) else None
            raise read_error(status if isinstance(status, int) and status >= 400 else 500, {}, data)
        usage = _usage(chunk.get("usage")) or usage
        if chunk.get("queue"):
            yield ChatDelta("", queue=QueuePlace(**chunk["queue"]))
        for choice in chunk.get("choices") or ():
            reason = choice.get("finish_reason") or reason
            # A server that doesn't stream sends the whole message at once.
            text = _text((choice.get("delta") or choice.get("message") or {}).get("content"))
            if text and (shown := characters.push(thoughts.push(text))):
                yield ChatDelta(shown)
    if rest := characters.push(thoughts.finish()) + characters.finish():
        yield ChatDelta(rest)
    if reason is None:
        raise ConnectionBrokenError("The model server's stream ended in the middle of a reply.")
    yield ChatDelta("", reason, usage)


def _usage(found: object) -> Usage | None:
    """Return the counted tokens, where both counts came: a reply is no worse without them."""
    if not isinstance(found, dict):
        return None
    prompt, completion = found.get("prompt_tokens"), found.get("completion_tokens")
    return Usage(prompt, completion) if isinstance(prompt, int) and isinstance(completion, int) else None


def _text(content: object) -> str:
    """Return a piece's text; some servers send it in parts, of which thoughts are others."""
    if isinstance(content, list):
        parts = [each for each in content if isinstance(each, dict) and each.get("type") == "text"]
        return "".join(str(each.get("text") or "") for each in parts)
    return content if isinstance(content, str) else ""


class WholeCharacters:
    """Puts characters together that a server's JSON cuts in two; a half that stays alone becomes U+FFFD.

    Half a character is a string in Python, and in nothing that stores or sends text.
    """

    def __init__(self) -> None:
        self._half = ""

    def push(self, text: str) -> str:
        """Return what is whole so far."""
        text, self._half = self._half + text, ""
        if text and "\ud800" <= text[-1] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

    def finish(self) -> str:
        """Return what stands for a half that is still waiting."""
        half, self._half = self._half, ""
        return "\ufffd" if half else ""


def read_error(status: int, headers: Mapping[str, str], text: str) -> ServingError:
    """Translate an error answer in OpenAI's shape, or whatever came instead of one."""
    try:
        answer = json.loads(text)
        # Earlier vLLM and SGLang have the error itself as their answer, FastAPI a sentence as its detail.
        details = answer.get("error") or answer.get("detail") or answer
        # Ollama's error is a bare sentence.
        if isinstance(details, str):
            details = {"message": details}
        message = read_message(str(details["message"]), details.get("template"), details.get("values"))
        code = str(details.get("code"))
    except (ValueError, KeyError, TypeError, AttributeError):
        message, code = Message(f"The model server answered with HTTP status {status}."), ""
    if status == 404 and code != "not_found":
        return UnknownModelError(message)
    if status == 429:
        return ServerBusyError(message, _retry_after_s(headers))
    if status == 503:
        return ServerLoadingError(message) if code in ("loading", "") else ServerUnavailableError(message)
    if code == "adapter_refused":
        return AdapterRefusedError(message)
    return RequestRejectedError(message) if 400 <= status < 500 else ServerUnavailableError(message)


def _retry_after_s(headers: Mapping[str, str]) -> float:
    try:
        return max(float(headers.get("Retry-After", "1")), 0.0)
    except ValueError:
        return 1.0


def read_health(value: Mapping[str, Any], status: int = 200) -> Health:
    """Read ``/health``: ours says everything, vLLM nothing, llama.cpp an error while it loads its model."""
    if status == 503 and "status" not in value:
        error = value.get("error")
        return Health("loading", Message(str(error.get("message", "")) if isinstance(error, dict) else ""))
    base = value.get("base")
    queue = value.get("queue") or {}
    return Health(
        status=known if (known := value.get("status")) in ("loading", "failed") else "ok",
        detail=read_message(
            str(value.get("detail", "")), value.get("detail_template"), value.get("detail_values")
        ),
        base=read_base(base) if isinstance(base, dict) else None,
        adapters=tuple(value.get("adapters", ())),
        running=int(queue.get("running", 0)),
        waiting=int(queue.get("waiting", 0)),
        queue=QueueState(**{name: queue[name] for name in QueueState.__dataclass_fields__ if name in queue}),
    )


def order_models(names: Sequence[str], wanted: str) -> list[str]:
    """Return a server's models with the wanted one first.

    A server that loads models when they are asked for may list none; Ollama lists one with its tag.

    Raises:
        UnknownModelError: the server has others.
    """
    for name in (wanted, f"{wanted}:latest"):
        if name in names or not names:
            return [name, *(each for each in names if each != name)]
    raise UnknownModelError(
        "The model server has no model {wanted}; it has {names}.", wanted=wanted, names=", ".join(names)
    )


def read_base(value: Mapping[str, Any]) -> BaseDescription:
    """Read the description of a base, from ``/health`` or ``server.json``."""
    fields = {name: value[name] for name in BaseDescription.__dataclass_fields__ if name in value}
    fields["special_tokens"] = tuple(fields.get("special_tokens", ()))
    found = fields.get("capabilities") or {}
    known = {name: found[name] for name in BaseCapabilities.__dataclass_fields__ if name in found}
    fields["capabilities"] = BaseCapabilities(**{**known, "stop_tokens": tuple(known.get("stop_tokens", ()))})
    if isinstance(identity := fields.get("identity"), dict):
        names = BaseIdentity.__dataclass_fields__
        fields["identity"] = BaseIdentity(**{name: str(identity.get(name, "")) for name in names})
    return BaseDescription(**fields)


def read_scores(choice: Mapping[str, Any], ids: Sequence[int]) -> list[float]:
    """Return the log-probability of each token of a scored prompt, 0.0 for the first.

    Raises ServerUnavailableError for another number of scores than tokens.
    """
    entries = choice["prompt_logprobs"]
    if len(entries) != len(ids):
        raise ServerUnavailableError("The model server scored another number of tokens than it was sent.")
    scores = [0.0]
    for token, entry in zip(ids[1:], entries[1:], strict=True):
        value = float(entry[str(token)]["logprob"])
        if math.isnan(value):
            raise ServerUnavailableError("The model server sent a log-probability that is not a number.")
        scores.append(value)
    return scores
