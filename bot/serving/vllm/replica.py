"""What a vLLM says and does as one of several behind a router (an ASGI middleware).

A router sends each call to any replica. So none may be asked for what it holds: an adapter is served while
its folder is there, on storage that all of them share, and each looks before it answers. `/health` says which
base is served, as our own server's does, so that clients need no file of this machine.

vLLM imports it by `--middleware`, in its own environment: nothing here needs more than the standard library.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any, TypeAlias

from bot.serving.vllm.resolver import ADAPTERS_DIR

# The base's description, as JSON.
BASE = "STROP_BASE"
# What `--middleware` is given.
MIDDLEWARE = "bot.serving.vllm.replica.Replica"

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


class Replica:
    """Wraps vLLM's application; `environment` is what its process was started with."""

    def __init__(self, app: App, environment: Mapping[str, str] = os.environ) -> None:
        self._app = app
        self._adapters = Path(environment[ADAPTERS_DIR])
        self._base = json.loads(environment[BASE])

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one connection."""
        if scope["type"] == "http" and scope["path"] == "/health":
            send = self._described(scope, send)
        elif scope["type"] == "http":
            listed = _listed(scope)
            wanted = tuple(listed)
            if scope["method"] == "POST":
                name, receive = await _model_of(receive)
                wanted = (name,) if name in listed else ()
            for gone in await asyncio.to_thread(self._gone, wanted) if wanted else ():
                # vLLM's resolver is asked for it then, and finds nothing.
                listed.pop(gone, None)
        await self._app(scope, receive, send)

    def _gone(self, names: tuple[str, ...]) -> list[str]:
        return [name for name in names if not (self._adapters / name).is_dir()]

    def _described(self, scope: Mapping[str, Any], send: Send) -> Send:
        """Return what sends `/health` on, with our body in place of vLLM's empty one where all is well."""
        well = False

        async def passing(message: Message) -> None:
            nonlocal well
            if message["type"] == "http.response.start":
                well = message["status"] == 200
                if well:
                    headers = [(b"content-type", b"application/json"), (b"content-length", size)]
                    message = {**message, "headers": headers}
            elif well:
                message = {**message, "body": body}
            await send(message)

        said = {"status": "ok", "base": self._base, "adapters": list(_listed(scope))}
        body = json.dumps(said).encode()
        size = str(len(body)).encode()
        return passing


def _listed(scope: Mapping[str, Any]) -> MutableMapping[str, Any]:
    """Return vLLM's adapters by their names; empty before it has any (`vllm/entrypoints/openai/models`)."""
    models = getattr(scope["app"].state, "openai_serving_models", None) if "app" in scope else None
    return getattr(models, "lora_requests", {})


async def _model_of(receive: Receive) -> tuple[str, Receive]:
    """Return which model a call asks for, and what tells vLLM the same call once more."""
    told: list[Message] = [await receive()]
    while told[-1].get("more_body"):
        told.append(await receive())
    left = iter(told)

    async def again() -> Message:
        for message in left:
            return message
        return await receive()

    try:
        return str(json.loads(b"".join(each.get("body", b"") for each in told))["model"]), again
    except (ValueError, KeyError, TypeError):
        return "", again  # vLLM says what is wrong with it
