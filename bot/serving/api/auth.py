"""What a request must bring before any handler sees it: the right host, origin, content type and key.

A server on loopback is reachable by every web page open in a browser on the same machine. The Host check
stops DNS rebinding, the Origin check stops plain cross-site requests, the content type stops forms, and the
secret in ``run/server.json`` keeps everyone who cannot read that file from changing what is loaded.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Middleware

from bot.serving.messages import Message
from bot.serving.protocol import SECRET_HEADER

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

LOOPBACK_NAMES = frozenset(("127.0.0.1", "localhost", "::1"))
CHANGING_PATHS = frozenset(("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/reset_prefix_cache"))


def error_response(
    status: int,
    message: str,
    code: str,
    *,
    param: str | None = None,
    headers: dict[str, str] | None = None,
) -> web.Response:
    """Answer in OpenAI's error shape; ``param`` is the field that is wrong."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    error: dict[str, Any] = {"message": message, "type": kind, "code": code, "param": param}
    body = {"error": error | (message.as_json() if isinstance(message, Message) else {})}
    return web.json_response(body, status=status, headers=headers)


def guard(*, loopback: bool, secret: str, api_key: str | None) -> Middleware:
    """Return the middleware that refuses what must not reach a handler."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        refusal = (
            (_check_host(request) if loopback else None)
            or _check_origin(request)
            or _check_content_type(request)
            or _check_key(request, secret, api_key)
        )
        return refusal if refusal is not None else await handler(request)

    return middleware


def is_trusted(request: web.Request, secret: str, api_key: str | None) -> bool:
    """Whether the request carries the start's secret or the API key."""
    given = request.headers.get(SECRET_HEADER, "")
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    right_key = api_key is not None and scheme.lower() == "bearer" and _same(token.strip(), api_key)
    return right_key or _same(given, secret)


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), expected.encode())


def _check_host(request: web.Request) -> web.Response | None:
    """On loopback only loopback names are served: a rebound DNS name arrives with its own name in Host."""
    try:
        name = urlsplit(f"//{request.headers.get('Host', '')}").hostname
    except ValueError:
        name = None
    if name in LOOPBACK_NAMES:
        return None
    return error_response(403, "This server answers only to loopback host names.", "host_refused")


def _check_origin(request: web.Request) -> web.Response | None:
    origin = request.headers.get("Origin")
    if origin is None:
        return None
    try:
        same = urlsplit(origin).netloc == request.headers.get("Host") and origin != "null"
    except ValueError:
        same = False
    return None if same else error_response(403, "Requests from other origins are refused.", "origin_refused")


def _check_content_type(request: web.Request) -> web.Response | None:
    if request.method != "POST" or request.content_type == "application/json":
        return None
    return error_response(415, "Send the body as application/json.", "content_type")


def _check_key(request: web.Request, secret: str, api_key: str | None) -> web.Response | None:
    if is_trusted(request, secret, api_key) or request.path == "/health":
        return None
    if api_key is not None:
        return error_response(401, "An API key is needed (Authorization: Bearer ...).", "invalid_api_key")
    if request.path in CHANGING_PATHS:
        message = f"Changing calls need the {SECRET_HEADER} header with the secret from run/server.json."
        return error_response(403, message, "secret_needed")
    return None
