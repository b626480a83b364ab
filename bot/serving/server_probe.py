"""Find out what an unknown model server offers, by asking it for the least of each thing (torch-free).

Servers answer what they don't know with 404, with 405, or (LM Studio) with 200 and an error in the body;
and some have a ``/tokenize`` of another shape (llama.cpp). So only an answer in the expected shape counts.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

from bot.serving.model.capabilities import ServerCapabilities
from bot.serving.protocol import MAX_PICTURE_SIDE

# Sends a request and returns its status, and its body where that is a JSON object.
Answer: TypeAlias = tuple[int, Mapping[str, Any] | None]
Ask: TypeAlias = Callable[[str, str, Mapping[str, Any] | None], Awaitable[Answer]]

_UNKNOWN = frozenset((404, 405, 501))


async def probe(ask: Ask, model: str) -> ServerCapabilities:
    """Return what the server offers; costs it four tokens of ``model``."""
    _, health = await ask("GET", "/health", None)
    if isinstance(base := (health or {}).get("base"), Mapping) and base.get("hash"):
        # A server of Strop's own has it all, and needs no trying.
        return ServerCapabilities()
    return ServerCapabilities(
        describes_base=False,
        tokenize=await offers_tokenize(ask, model),
        prompt_logprobs=await _scores_prompts(ask, model),
        adapters=await _loads_adapters(ask),
        priority=await _takes_priority(ask, model),
        picture_tokens=await _picture_tokens(ask, model),
    )


async def offers_tokenize(ask: Ask, model: str) -> bool:
    """Whether the server counts the tokens of a chat."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "add_generation_prompt": True}
    status, answer = await ask("POST", "/tokenize", body)
    return status == 200 and isinstance((answer or {}).get("count"), int)


async def _scores_prompts(ask: Ask, model: str) -> bool:
    body = {"model": model, "prompt": [[1, 2]], "max_tokens": 1, "prompt_logprobs": 0, "temperature": 0.0}
    status, answer = await ask("POST", "/v1/completions", body)
    choices = (answer or {}).get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    return status == 200 and isinstance(first, Mapping) and isinstance(first.get("prompt_logprobs"), list)


async def _loads_adapters(ask: Ask) -> bool:
    """An empty request is refused by who knows the call; it loads nothing anywhere."""
    status, _ = await ask("POST", "/v1/load_lora_adapter", {})
    return status not in _UNKNOWN and 400 <= status < 500


async def _takes_priority(ask: Ask, model: str) -> bool:
    """vLLM refuses a priority that its scheduler would not follow; who has never heard of it ignores it."""
    body = {"model": model, "prompt": "Hi", "max_tokens": 1, "priority": 1}
    status, _ = await ask("POST", "/v1/completions", body)
    return status == 200


async def _picture_tokens(ask: Ask, model: str) -> int:
    """Return how many tokens a picture of the largest size takes; 0 where the model doesn't see it.

    No list of a server's says so for certain, and some drop a picture without a word: then the prompt is as
    long with it as without.
    """
    words = {"type": "text", "text": "Hi"}
    picture = {"type": "image_url", "image_url": {"url": _blank_picture(MAX_PICTURE_SIDE)}}
    alone = await _prompt_tokens(ask, model, [words])
    beside = await _prompt_tokens(ask, model, [words, picture]) if alone else 0
    return max(beside - alone, 0)


async def _prompt_tokens(ask: Ask, model: str, parts: list[dict[str, Any]]) -> int:
    """Return how long the server says that a question is; 0 where it refuses it or doesn't say."""
    body = {"model": model, "messages": [{"role": "user", "content": parts}], "max_tokens": 1}
    status, answer = await ask("POST", "/v1/chat/completions", body)
    usage = (answer or {}).get("usage")
    count = usage.get("prompt_tokens") if status == 200 and isinstance(usage, Mapping) else None
    return count if isinstance(count, int) else 0


def _blank_picture(side: int) -> str:
    """Return a white square as the data URL of a PNG (its specification, 5.2 and 11.2.1)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\xff" * (3 * side)) * side)
    drawn = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return f"data:image/png;base64,{base64.b64encode(drawn).decode()}"
