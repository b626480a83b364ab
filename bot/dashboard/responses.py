"""How pages and their calls are answered: JSON that nobody keeps, files that load nothing from elsewhere."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

from aiohttp import web

#: What the playground's page and the dashboard's both show.
SHARED = Path(__file__).parent / "static"
_STATIC_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9]{1,16})+")
_TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".woff2": "font/woff2",
    ".json": "application/json",
    ".webmanifest": "application/manifest+json",
}


def json_answer(value: Any, status: int = 200) -> web.Response:
    """Answer with a value, which no browser keeps."""
    return web.json_response(value, status=status, headers={"Cache-Control": "no-store"})


def error_answer(status: int, sentence: str) -> web.Response:
    """Answer with one sentence on what went wrong."""
    return json_answer({"error": sentence}, status)


async def static_file(request: web.Request, *folders: Path) -> web.Response:
    """Answer with the file that a path names, from the first folder that has it."""
    name = request.match_info["name"]
    suffix = Path(name).suffix
    if not _STATIC_NAME.fullmatch(name) or suffix not in _TYPES or suffix == ".html":
        raise web.HTTPNotFound
    for folder in folders:
        try:
            body = await asyncio.to_thread((folder / name).read_bytes)
        except OSError:
            continue
        return file_answer(body, suffix, request)
    raise web.HTTPNotFound


def file_answer(body: bytes, suffix: str, request: web.Request) -> web.Response:
    """Answer with a file of a page under a policy that lets it load and reach this server alone."""
    headers = {
        "Content-Security-Policy": (
            f"default-src 'self'; connect-src 'self' ws://{request.host}; img-src 'self' data: blob:; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        ),
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": "same-origin",
    }
    return web.Response(body=body, content_type=_TYPES[suffix], charset="utf-8", headers=headers)
