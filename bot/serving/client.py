"""Talk to the model server, or to any OpenAI-compatible one such as vLLM (torch-free).

Every call has a deadline, and every failure is one of :mod:`bot.serving.errors`. A client made by
:meth:`ModelClient.from_run_dir` follows the server through restarts: port and secret are read again from
``server.json`` whenever a connection fails or the secret is refused.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from bot.serving.client_parsing import read_chat_stream, read_error, read_health, read_scores
from bot.serving.endpoint import SERVER_FILE as SERVER_FILE
from bot.serving.endpoint import Endpoint, headers_for, read_endpoint, readable, translated, trim
from bot.serving.errors import (
    AdapterRefusedError,
    RequestRejectedError,
    ServerUnavailableError,
    UnknownModelError,
)
from bot.serving.model.capabilities import ServerCapabilities
from bot.serving.model.thoughts import without_thoughts
from bot.serving.model.token_estimate import prompt_length
from bot.serving.protocol import (
    PRIORITY_BACKGROUND,
    PRIORITY_PEOPLE,
    ChatDelta,
    ChatMessage,
    Completion,
    Health,
    Sampling,
    TokenIds,
    Usage,
)
from bot.serving.server_probe import offers_tokenize, probe

CONNECT_TIMEOUT_S = 5.0
QUICK_DEADLINE_S = 15.0
ADAPTER_DEADLINE_S = 120.0
# The server sends a comment line every few seconds while a request waits: such a silence is a dead server.
SILENCE_LIMIT_S = 120.0
SCORE_BATCH = 16


class ModelClient:
    """A connection pool to one model server. Close it with :meth:`close`, or use it in ``async with``."""

    def __init__(
        self,
        base_url: str,
        *,
        secret: str | None = None,
        api_key: str | None = None,
        session: aiohttp.ClientSession | None = None,
        proxy: str | None = None,
    ) -> None:
        """Use the server at ``base_url`` (a trailing ``/v1`` is dropped); ``session`` stays the caller's."""
        self._proxy = proxy
        self._endpoint: Endpoint | None = Endpoint(trim(base_url), secret, api_key) if base_url else None
        self._run_dir: Path | None = None
        self._api_key = api_key
        self._session = session
        self._owns_session = session is None
        self._capabilities: ServerCapabilities | None = None
        self._counts_tokens = True

    @classmethod
    def from_run_dir(
        cls, run_dir: Path, *, api_key: str | None = None, session: aiohttp.ClientSession | None = None
    ) -> ModelClient:
        """Follow the server that writes ``run_dir/server.json``, also across its restarts."""
        client = cls("", api_key=api_key, session=session)
        client._run_dir = run_dir
        return client

    @classmethod
    def connect(
        cls, base_url: str, run_dir: Path, api_key: str | None = None, proxy: str | None = None
    ) -> ModelClient:
        """Use the server at ``base_url``; where that is empty, the one that writes to ``run_dir``.

        ``proxy`` is on the way to ``base_url``; ours is on this machine.
        """
        if base_url:
            return cls(base_url, api_key=api_key, proxy=proxy)
        return cls.from_run_dir(run_dir, api_key=api_key)

    async def __aenter__(self) -> ModelClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections that this client opened."""
        if self._owns_session and self._session is not None:
            await self._session.close()
            self._session = None

    async def health(self) -> Health:
        """Return what the server says about itself, also while it is loading.

        Raises:
            ServerUnavailableError: nothing answers.
        """
        # Ollama has no /health: whoever answers at all may be asked to chat.
        async with self._request(
            "GET", "/health", deadline_s=QUICK_DEADLINE_S, allow=(200, 404, 503)
        ) as response:
            text, status = await response.text(), response.status
        with readable("/health"):
            return read_health(json.loads(text) if text.strip() and status != 404 else {}, status)

    async def capabilities(self) -> ServerCapabilities:
        """Return what the server offers beyond chat completions; it is tried once, then remembered.

        Raises:
            ServerUnavailableError, ServerLoadingError: as they say.
        """
        if self._capabilities is None:
            names = await self.models()
            self._capabilities = await probe(self._ask, names[0] if names else "")
        return self._capabilities

    async def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None
    ) -> tuple[int, Mapping[str, Any] | None]:
        """Send a probing request; any status is an answer."""
        any_status = tuple(range(200, 600))
        async with self._request(
            method, path, body, deadline_s=QUICK_DEADLINE_S, allow=any_status
        ) as response:
            status, text = response.status, await response.text()
        try:
            value = json.loads(text)
        except ValueError:
            return status, None
        return status, value if isinstance(value, dict) else None

    async def models(self) -> list[str]:
        """Return the names that a request may use: the base's first, then the loaded adapters'."""
        answer = await self._json("GET", "/v1/models", deadline_s=QUICK_DEADLINE_S)
        with readable("/v1/models"):
            return [str(entry["id"]) for entry in answer["data"]]

    async def chat_stream(
        self,
        *,
        model: str,
        messages: Sequence[ChatMessage],
        sampling: Sampling,
        priority: int = PRIORITY_PEOPLE,
        user: str = "",
        queue_updates: bool = False,
        deadline_s: float = 300.0,
    ) -> AsyncIterator[ChatDelta]:
        """Yield the reply piece by piece; the last piece carries ``finish_reason`` and ``usage``.

        ``user`` is a pseudonym by which the server shares its rows fairly. With ``queue_updates``, which
        only our own server knows, pieces without text tell the place in the queue. Closing the iterator
        early cancels the request on the server.

        Raises:
            ServerUnavailableError: no server, the connection broke, or ``deadline_s`` passed.
            ServerLoadingError, ServerBusyError, UnknownModelError, RequestRejectedError: as they say.
        """
        body: dict[str, Any] = {
            "model": model,
            "messages": _wire(messages),
            **sampling.as_json(),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        extras = {"priority": priority, "user": user, "queue_updates": queue_updates}
        body |= {name: value for name, value in extras.items() if value}
        async with self._request("POST", "/v1/chat/completions", body, deadline_s=deadline_s) as response:
            async for delta in read_chat_stream(response.content):
                yield delta

    async def chat(
        self,
        *,
        model: str,
        messages: Sequence[ChatMessage],
        sampling: Sampling,
        priority: int = PRIORITY_PEOPLE,
        user: str = "",
        deadline_s: float = 300.0,
    ) -> Completion:
        """Return the whole reply; same arguments and errors as :meth:`chat_stream`."""
        pieces: list[str] = []
        reason, usage = "stop", Usage(0, 0)
        async for delta in self.chat_stream(
            model=model,
            messages=messages,
            sampling=sampling,
            priority=priority,
            user=user,
            deadline_s=deadline_s,
        ):
            pieces.append(delta.text)
            reason = delta.finish_reason or reason
            usage = delta.usage or usage
        return Completion("".join(pieces), reason, usage.prompt_tokens, usage.completion_tokens)

    async def tokenize(
        self, *, model: str, messages: Sequence[ChatMessage], add_generation_prompt: bool = True
    ) -> TokenIds:
        """Return the token ids of a chat as the server would send it to the model."""
        answer = await self._tokenize(model, messages, add_generation_prompt)
        with readable("/tokenize"):
            return [int(token) for token in answer["tokens"]]

    async def count_tokens(
        self, *, model: str, messages: Sequence[ChatMessage], add_generation_prompt: bool = True
    ) -> int:
        """Return how many tokens a chat takes of the model's context; an estimate where no server counts."""
        if not self._counts_tokens:
            return prompt_length(messages)
        try:
            answer = await self._tokenize(model, messages, add_generation_prompt)
            with readable("/tokenize"):
                return int(answer["count"])
        except (RequestRejectedError, UnknownModelError, ServerUnavailableError):
            names = await self.models()
            if await offers_tokenize(self._ask, names[0] if names else model):
                raise
            self._counts_tokens = False
            return prompt_length(messages)

    async def _tokenize(
        self, model: str, messages: Sequence[ChatMessage], generation: bool
    ) -> dict[str, Any]:
        body = {
            "model": model,
            "messages": _wire(messages),
            "add_generation_prompt": generation,
        }
        return await self._json("POST", "/tokenize", body, deadline_s=QUICK_DEADLINE_S)

    async def score(
        self,
        *,
        model: str,
        prompts: Sequence[Sequence[int]],
        priority: int = PRIORITY_BACKGROUND,
        deadline_s: float = 600.0,
    ) -> list[list[float]]:
        """Return per prompt the log-probability of each token given those before it, in nats.

        Each list is as long as its prompt; the first entry is 0.0, since nothing comes before the first.
        The order of the prompts is kept. ``deadline_s`` holds for each batch of 16 prompts.
        """
        scores: list[list[float]] = []
        for start in range(0, len(prompts), SCORE_BATCH):
            batch = [list(prompt) for prompt in prompts[start : start + SCORE_BATCH]]
            body = {
                "model": model,
                "prompt": batch,
                "max_tokens": 1,
                "prompt_logprobs": 0,
                "temperature": 0.0,
            }
            if priority:
                body["priority"] = priority
            answer = await self._json("POST", "/v1/completions", body, deadline_s=deadline_s)
            with readable("/v1/completions"):
                choices = sorted(answer["choices"], key=lambda choice: int(choice["index"]))
                scores += [read_scores(choice, ids) for choice, ids in zip(choices, batch, strict=True)]
        return scores

    async def load_adapter(self, name: str, path: Path | str) -> None:
        """Load an adapter folder under a name; loading the same one twice changes nothing.

        Raises:
            AdapterRefusedError: the server refused the folder; the text says why.
        """
        body = {"lora_name": name, "lora_path": str(path)}
        await self._adapter_call("/v1/load_lora_adapter", body)

    async def unload_adapter(self, name: str) -> None:
        """Forget an adapter once its last running request has ended.

        Raises:
            UnknownModelError: no adapter of this name is loaded.
        """
        await self._adapter_call("/v1/unload_lora_adapter", {"lora_name": name})

    async def _adapter_call(self, path: str, body: Mapping[str, Any]) -> None:
        try:
            async with self._request("POST", path, body, deadline_s=ADAPTER_DEADLINE_S) as response:
                await response.read()
        except RequestRejectedError as error:
            # vLLM answers 400 when the adapter is loaded already; so does an older server of ours.
            if "already been loaded" not in str(error):
                raise AdapterRefusedError(str(error)) from error

    async def _json(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, deadline_s: float
    ) -> dict[str, Any]:
        async with self._request(method, path, body, deadline_s=deadline_s) as response:
            text = await response.text()
        with readable(path):
            return dict(json.loads(text))

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        deadline_s: float,
        allow: tuple[int, ...] = (200,),
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send one request, once more where ``server.json`` has changed; translate every failure."""
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + deadline_s
        endpoint = await self._current_endpoint()
        with translated(endpoint, deadline_s):
            response = await self._open(endpoint, method, path, body, ends_at)
            if response is None or response.status in (401, 403):
                endpoint, response = await self._reopen(endpoint, response, method, path, body, ends_at)
            try:
                if response.status not in allow:
                    raise read_error(response.status, response.headers, await response.text())
                yield response
            finally:
                response.close()

    async def _reopen(
        self,
        old: Endpoint,
        refused: aiohttp.ClientResponse | None,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        ends_at: float,
    ) -> tuple[Endpoint, aiohttp.ClientResponse]:
        """Try again at the address that a restarted server wrote; without one, the first outcome stands."""
        endpoint = await self._current_endpoint(fresh=True)
        if endpoint == old:
            if refused is not None:
                return old, refused
            raise ServerUnavailableError("No model server answers at {address}.", address=old.base_url)
        if refused is not None:
            refused.close()
        response = await self._open(endpoint, method, path, body, ends_at)
        if response is None:
            raise ServerUnavailableError("No model server answers at {address}.", address=endpoint.base_url)
        return endpoint, response

    async def _open(
        self, endpoint: Endpoint, method: str, path: str, body: Mapping[str, Any] | None, ends_at: float
    ) -> aiohttp.ClientResponse | None:
        """Return the response once its head has come, or None where nothing accepts connections."""
        remaining_s = max(ends_at - asyncio.get_running_loop().time(), 0.001)
        timeout = aiohttp.ClientTimeout(
            total=remaining_s, sock_connect=CONNECT_TIMEOUT_S, sock_read=SILENCE_LIMIT_S
        )
        if self._session is None:
            self._session = aiohttp.ClientSession()
        try:
            return await self._session.request(
                method,
                endpoint.base_url + path,
                json=body,
                headers=headers_for(endpoint),
                timeout=timeout,
                allow_redirects=False,
                proxy=self._proxy,
            )
        except aiohttp.ClientConnectorError:
            return None

    async def _current_endpoint(self, *, fresh: bool = False) -> Endpoint:
        if self._run_dir is not None and (fresh or self._endpoint is None):
            self._endpoint = await asyncio.to_thread(read_endpoint, self._run_dir, self._api_key)
        if self._endpoint is None:
            raise ServerUnavailableError(
                "The model server is not running (it has not written its address yet)."
            )
        return self._endpoint


def _wire(messages: Sequence[ChatMessage]) -> list[dict[str, str]]:
    """Write messages as JSON; a reply goes back without its thoughts, whichever server had written it."""
    return [
        {"role": each.role, "content": without_thoughts(each.content)}
        if each.role == "assistant"
        else each.as_json()
        for each in messages
    ]
