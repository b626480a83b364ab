"""Find out what an unknown model server offers, by asking it for the least of each thing (torch-free).

Servers answer what they don't know with 404, with 405, or (LM Studio) with 200 and an error in the body;
and some have a ``/tokenize`` of another shape (llama.cpp). So only an answer in the expected shape counts.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

from bot.serving.model.capabilities import ServerCapabilities

# Sends a request and returns its status, and its body where that is a JSON object.
Answer: TypeAlias = tuple[int, Mapping[str, Any] | None]
Ask: TypeAlias = Callable[[str, str, Mapping[str, Any] | None], Awaitable[Answer]]

_UNKNOWN = frozenset((404, 405, 501))


async def probe(ask: Ask, model: str) -> ServerCapabilities:
    """Return what the server offers; costs it two tokens of ``model``."""
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
