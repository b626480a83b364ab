"""Who may talk to a page's server: hosts, origins and secrets."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable

from aiohttp import web
from yarl import URL

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def only_from_this_machine(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse a request for another host name (DNS rebinding) or from another web site's page."""
    if not is_loopback(request.host):
        raise web.HTTPForbidden(text="This page answers only to addresses of this machine.")
    return await _from_its_own_page(request, handler)


@web.middleware
async def only_from_its_own_page(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse a request from another web site's page; whoever asks has to know a token besides."""
    return await _from_its_own_page(request, handler)


async def _from_its_own_page(request: web.Request, handler: Handler) -> web.StreamResponse:
    origin = request.headers.get("Origin")
    if origin is not None and origin not in (f"http://{request.host}", f"https://{request.host}"):
        raise web.HTTPForbidden(text="Another web site can't use this page.")
    return await handler(request)


def is_loopback(host: str) -> bool:
    """Whether a host, with or without a port, is this machine by an address that no name server decides."""
    try:
        return URL(f"http://{host}").host in _LOOPBACK
    except ValueError:
        return False


def is_secret(given: object, secret: str) -> bool:
    """Whether a secret was given, compared in constant time."""
    return isinstance(given, str) and hmac.compare_digest(given.encode(), secret.encode())
