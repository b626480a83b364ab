"""What a model server has: its base, its models, its adapters (torch-free).

Our own server loads an adapter when it is told to. vLLM, as `strop serve` starts it, finds one by its name in
the adapters' folder; so does each of several behind a router, where every call may reach another one and no
list holds for all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bot.serving.client_parsing import order_models, read_base, read_health
from bot.serving.connection import Connection
from bot.serving.endpoint import Endpoint, readable
from bot.serving.errors import (
    AdapterRefusedError,
    RequestRejectedError,
    ServerUnavailableError,
    UnknownModelError,
)
from bot.serving.messages import Message
from bot.serving.model.adapter_files import verify
from bot.serving.protocol import VLLM, BaseDescription, Health

QUICK_DEADLINE_S = 15.0
ADAPTER_DEADLINE_S = 120.0


class Inventory(Connection):
    """Asks a server what it has, and loads adapters."""

    _base_behind_router: BaseDescription | None = None
    _asked = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # Adapters that a vLLM has found for this client.
        self._found: set[str] = set()

    @property
    def finds_adapters(self) -> bool:
        """Whether the server is known to be one of several that find an adapter when it is asked for."""
        return self._base_behind_router is not None

    async def health(self) -> Health:
        """Return what the server says about itself, also while it is loading.

        Raises:
            ServerUnavailableError: nothing answers.
        """
        if self._run_dir is not None:
            endpoint = await self._current_endpoint(fresh=True)
            if endpoint.engine == VLLM:
                return await self._health_of_vllm(endpoint)
        # Ollama has no /health: whoever answers at all may be asked to chat.
        async with self._request(
            "GET", "/health", deadline_s=QUICK_DEADLINE_S, allow=(200, 404, 503)
        ) as response:
            text, status = await response.text(), response.status
        with readable("/health"):
            health = read_health(json.loads(text) if text.strip() and status != 404 else {}, status)
        if health.base is not None and health.base.execution == VLLM:
            self._base_behind_router = health.base
            # Each of several lists what it was asked for itself, and answers with the others' too.
            known = dict.fromkeys((*health.adapters, *sorted(self._found)))
            return dataclasses.replace(health, adapters=tuple(known))
        return health

    async def _health_of_vllm(self, endpoint: Endpoint) -> Health:
        """Say of a vLLM that our process keeps what it can't say itself."""
        if endpoint.asleep:
            return Health("loading", Message("A training has the GPU to itself; answers come after it."))
        if not endpoint.described:
            return Health("loading", Message("The base is being prepared for vLLM."))
        try:
            names = await self.models()
        except ServerUnavailableError:
            return Health("loading", Message("vLLM is starting."))
        return Health("ok", base=read_base(endpoint.described), adapters=tuple(names[1:]))

    async def models(self) -> list[str]:
        """Return the names that a request may use: the base's first, then the loaded adapters'.

        Raises:
            UnknownModelError: the server doesn't have the model that it is to be asked for.
        """
        answer = await self._json("GET", "/v1/models", deadline_s=QUICK_DEADLINE_S)
        with readable("/v1/models"):
            # Ollama says null where it has none.
            names = [str(entry["id"]) for entry in answer["data"] or ()]
        return order_models(names, self._wanted) if self._wanted else names

    async def has_adapter(self, name: str) -> bool:
        """Whether requests may name an adapter now.

        Raises:
            ServerUnavailableError, ServerLoadingError: as they say.
        """
        if self._run_dir is None and await self._finding_base() is not None:
            return await self._finds(name)
        return name in await self.models()

    async def load_adapter(self, name: str, path: Path | str) -> None:
        """Load an adapter folder under a name; loading the same one twice changes nothing.

        Raises:
            AdapterRefusedError: the server refused the folder; the text says why.
        """
        base = await self._finding_base()
        if base is not None:
            await self._resolve_adapter(name, Path(path), base)
            return
        body = {"lora_name": name, "lora_path": str(path)}
        await self._adapter_call("/v1/load_lora_adapter", body)

    async def _resolve_adapter(self, name: str, path: Path, base: BaseDescription) -> None:
        """Let vLLM's resolver find an adapter, once it is checked here: vLLM itself would say less."""
        self._found.discard(name)
        await asyncio.to_thread(
            verify,
            path,
            adapters_dir=path.parent,
            base_hash=base.hash,
            chat_template_hash=base.chat_template_hash,
        )
        if not await self._finds(name):
            raise AdapterRefusedError("vLLM does not find adapter {adapter}; see run/vllm.log.", adapter=name)
        self._found.add(name)

    async def unload_adapter(self, name: str) -> None:
        """Forget an adapter once its last running request has ended.

        Several vLLMs behind a router are told nothing: each looks for an adapter's folder when asked for
        it, and drops what nobody asks for.

        Raises:
            UnknownModelError: no adapter of this name is loaded.
        """
        self._found.discard(name)
        if self._run_dir is None and await self._finding_base() is not None:
            return
        await self._adapter_call("/v1/unload_lora_adapter", {"lora_name": name})

    async def _finding_base(self) -> BaseDescription | None:
        """Return the base of a vLLM that finds adapters by itself; None where they are loaded by a call."""
        endpoint = await self._current_endpoint()
        if endpoint.engine == VLLM and endpoint.described:
            return read_base(endpoint.described)
        if self._run_dir is None and not self._asked:
            with contextlib.suppress(RequestRejectedError, UnknownModelError):
                await self.health()
            self._asked = True
        return self._base_behind_router

    async def _finds(self, name: str) -> bool:
        try:
            await self._json(
                "POST", "/tokenize", {"model": name, "prompt": "a"}, deadline_s=ADAPTER_DEADLINE_S
            )
        except UnknownModelError:
            return False
        return True

    async def _adapter_call(self, path: str, body: Mapping[str, Any]) -> None:
        try:
            async with self._request("POST", path, body, deadline_s=ADAPTER_DEADLINE_S) as response:
                await response.read()
        except RequestRejectedError as error:
            # vLLM answers 400 when the adapter is loaded already; so does an older server of ours.
            if "already been loaded" not in str(error):
                raise AdapterRefusedError(str(error)) from error
