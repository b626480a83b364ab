"""Where a model server listens, what opens it, and how its failures are told (torch-free)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from bot.serving.errors import ConnectionBrokenError, ServerUnavailableError
from bot.serving.protocol import ASLEEP, SECRET_HEADER, SERVER_FILE, VLLM


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server listens and what opens it."""

    base_url: str
    secret: str | None = None
    api_key: str | None = None
    # What a vLLM that our process started can't say of itself.
    engine: str = ""
    described: Mapping[str, Any] | None = None
    asleep: bool = False

    @property
    def sends_comments(self) -> bool:
        """Whether it is our own server, which lets nobody wait in silence."""
        return self.secret is not None and self.engine != VLLM


@contextmanager
def readable(path: str) -> Iterator[None]:
    """Turn an answer of another shape into one sentence. Raises ServerUnavailableError."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise ServerUnavailableError(
            "The model server's answer to {path} could not be read.", path=path
        ) from error


class translated:
    """Turn aiohttp's and asyncio's failures into this package's errors."""

    def __init__(self, endpoint: Endpoint, deadline_s: float) -> None:
        self._endpoint = endpoint
        self._deadline_s = deadline_s

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, TimeoutError):
            raise ServerUnavailableError(
                "The model server at {address} did not finish within {seconds} s.",
                address=self._endpoint.base_url,
                seconds=f"{self._deadline_s:g}",
            ) from error
        if isinstance(error, aiohttp.ClientError | ConnectionError):
            raise ConnectionBrokenError(
                "The connection to the model server at {address} broke.", address=self._endpoint.base_url
            ) from error
        if isinstance(error, KeyError | IndexError | TypeError | ValueError):
            raise ServerUnavailableError(
                "The model server at {address} sent an answer that could not be read.",
                address=self._endpoint.base_url,
            ) from error


def trim(base_url: str) -> str:
    """Drop what people copy along with a server's address: ``/v1``, or the path of one of its calls."""
    bare = base_url.strip().rstrip("/")
    for path in ("/chat/completions", "/completions", "/models"):
        bare = bare.removesuffix(path)
    return bare.removesuffix("/v1").rstrip("/")


def headers_for(endpoint: Endpoint) -> dict[str, str]:
    """Return the headers that open the server."""
    headers = {"Accept": "application/json, text/event-stream"}
    if endpoint.secret:
        headers[SECRET_HEADER] = endpoint.secret
    if endpoint.api_key:
        headers["Authorization"] = f"Bearer {endpoint.api_key}"
    return headers


def read_endpoint(run_dir: Path, api_key: str | None) -> Endpoint | None:
    """Read ``server.json``; None while no server has written it."""
    try:
        value = json.loads((run_dir / SERVER_FILE).read_text(encoding="utf-8"))
        secret, engine, base = str(value["secret"]), str(value.get("engine", "")), value.get("base")
        if engine == VLLM:
            # vLLM knows one key and no secret.
            api_key = api_key or secret
        asleep = bool(value.get(ASLEEP, False))
        return Endpoint(trim(str(value["base_url"])), secret, api_key, engine, base, asleep)
    except (OSError, ValueError, KeyError, TypeError):
        return None
