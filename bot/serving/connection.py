"""Requests to one model server: followed through restarts, with deadlines, failures told (torch-free)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import aiohttp

from bot.serving.client_parsing import read_error
from bot.serving.endpoint import Endpoint, headers_for, read_endpoint, readable, translated, trim
from bot.serving.errors import ConnectionBrokenError, ServerUnavailableError

CONNECT_TIMEOUT_S = 5.0
# Our server sends a comment line every few seconds while a request waits: such a silence is a dead server.
# Others send nothing while they load a model or read a long prompt, which takes minutes on a CPU.
SILENCE_LIMIT_S = 120.0


class Connection:
    """A connection pool to one model server, which is found again where it has moved."""

    def __init__(
        self,
        base_url: str,
        *,
        secret: str | None = None,
        api_key: str | None = None,
        session: aiohttp.ClientSession | None = None,
        proxy: str | None = None,
        model: str = "",
    ) -> None:
        """Use the server at ``base_url`` (a trailing ``/v1`` is dropped); ``session`` stays the caller's.

        ``model`` is the one to ask for where the server has several; empty is its first.
        """
        self._proxy = proxy
        self._wanted = model
        self._endpoint: Endpoint | None = Endpoint(trim(base_url), secret, api_key) if base_url else None
        self._run_dir: Path | None = None
        self._api_key = api_key
        self._session = session
        self._owns_session = session is None

    @classmethod
    def from_run_dir(
        cls, run_dir: Path, *, api_key: str | None = None, session: aiohttp.ClientSession | None = None
    ) -> Self:
        """Follow the server that writes ``run_dir/server.json``, also across its restarts."""
        client = cls("", api_key=api_key, session=session)
        client._run_dir = run_dir
        return client

    @classmethod
    def connect(
        cls,
        base_url: str,
        run_dir: Path,
        api_key: str | None = None,
        proxy: str | None = None,
        model: str = "",
    ) -> Self:
        """Use the server at ``base_url``; where that is empty, the one that writes to ``run_dir``.

        ``proxy`` is on the way to ``base_url``; ours is on this machine, and has one base.
        """
        if base_url:
            return cls(base_url, api_key=api_key, proxy=proxy, model=model)
        return cls.from_run_dir(run_dir, api_key=api_key)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections that this client opened."""
        if self._owns_session and self._session is not None:
            await self._session.close()
            self._session = None

    async def _json(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, deadline_s: float
    ) -> dict[str, Any]:
        try:
            text = await self._text(method, path, body, deadline_s)
        except ConnectionBrokenError:
            # None of these calls minds being sent twice. Behind a router another server may answer.
            text = await self._text(method, path, body, deadline_s)
        with readable(path):
            return dict(json.loads(text))

    async def _text(self, method: str, path: str, body: Mapping[str, Any] | None, deadline_s: float) -> str:
        async with self._request(method, path, body, deadline_s=deadline_s) as response:
            return await response.text()

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
            total=remaining_s,
            sock_connect=CONNECT_TIMEOUT_S,
            sock_read=SILENCE_LIMIT_S if endpoint.sends_comments else None,
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
