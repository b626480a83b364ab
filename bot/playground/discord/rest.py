"""The REST half of the stand-in: Discord's API v10 over aiohttp.

discord.py reads a body as JSON only where the content type is exactly `application/json`, and takes a
429 without a `Via` header for a ban: both are set here, on every answer.
"""

import hmac
import io
import json
import re
from typing import Any

import structlog
from aiohttp import web

from bot.playground.discord.backend import DiscordBackend, Upload
from bot.playground.discord.gateway import Gateway
from bot.playground.discord.ratelimit import RateLimiter
from bot.playground.errors import RestError

API_PREFIX = "/api/v10"
#: Discord's upload limit without boosts is 10 MiB a file; the whole request may carry ten of them.
MAX_FILE_BYTES = 10 * 1024 * 1024
MAX_REQUEST_BYTES = 10 * MAX_FILE_BYTES
_VIA = {"Via": "1.1 strop-playground"}
# These carry their own token in the path, as at Discord.
_TOKEN_IN_PATH = re.compile(r"/(interactions/\d+/[^/]+/callback|webhooks/\d+/[^/]+(/.*)?)")

log = structlog.get_logger(__name__)


class RestFront:
    """Serves the bot's REST calls from the backend."""

    def __init__(self, backend: DiscordBackend, gateway: Gateway, limiter: RateLimiter, token: str) -> None:
        self._backend = backend
        self._gateway = gateway
        self._limiter = limiter
        self._token = token

    def add_routes(self, app: web.Application) -> None:
        """Mount the API on the application."""
        app.router.add_route("*", API_PREFIX + "/{path:.*}", self.handle)

    async def handle(self, request: web.Request) -> web.Response:
        """Answer one call: authorisation, rate limit, then the backend."""
        path = request.rel_url.raw_path.removeprefix(API_PREFIX)
        if not self._authorised(request, path):
            return _answer(401, {"message": "401: Unauthorized", "code": 0})
        verdict = self._limiter.check(request.method, path)
        if not verdict.allowed:
            body = {
                "message": "You are being rate limited.",
                "retry_after": round(verdict.retry_after_s, 3),
                "global": verdict.is_global,
            }
            return _answer(429, body, verdict.headers)
        try:
            status, body = 200, await self._serve(request, path)
        except RestError as error:
            status, body = error.status, error.body
            log.info("playground.rest_refused", method=request.method, route=_template(path), status=status)
        return _answer(status, body, verdict.headers)

    def _authorised(self, request: web.Request, path: str) -> bool:
        if _TOKEN_IN_PATH.fullmatch(path):
            return True
        given = request.headers.get("Authorization", "").encode()
        return hmac.compare_digest(given, f"Bot {self._token}".encode())

    async def _serve(self, request: web.Request, path: str) -> Any:
        if path in ("/gateway", "/gateway/bot"):
            return self._gateway.describe()
        body, files = await _read(request)
        return self._backend.rest(
            request.method,
            path,
            body=body,
            params=dict(request.query),
            files=files,
            reason=request.headers.get("X-Audit-Log-Reason"),
        )


async def _read(request: web.Request) -> tuple[Any, list[Upload]]:
    """The JSON body and the files of a request; raises RestError if it is neither JSON nor a form."""
    if request.content_type == "multipart/form-data":
        return await _read_form(request)
    raw = await request.read()
    return (_parse(raw) if raw else None), []


def _parse(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise RestError(400, {"code": 50109, "message": "The request body contains invalid JSON."}) from error


async def _read_form(request: web.Request) -> tuple[Any, list[Upload]]:
    body: Any = None
    fields: dict[str, Any] = {}
    uploads: dict[str, Upload] = {}
    async for part in await request.multipart():
        name = getattr(part, "name", None) or ""
        data = await _read_part(part)
        filename = getattr(part, "filename", None)
        if name == "payload_json":
            body = _parse(data)
        elif filename:
            uploads[name] = Upload(io.BytesIO(data), filename, None)
        else:
            fields[name] = data.decode()
    files = [uploads[name] for name in sorted(uploads, key=_file_index)]
    _describe(files, body)
    return (fields or None) if body is None else body, files


async def _read_part(part: Any) -> bytes:
    """The raw bytes of one part: nothing is decompressed, and nothing beyond Discord's limit is kept."""
    data = bytearray()
    while chunk := await part.read_chunk(1 << 16):
        data += chunk
        if len(data) > MAX_FILE_BYTES:
            raise RestError(413, {"code": 40005, "message": "Request entity too large"})
    return bytes(data)


def _file_index(name: str) -> int:
    digits = re.sub(r"\D", "", name)
    return int(digits) if digits else 0


def _describe(files: list[Upload], body: Any) -> None:
    """Attach the descriptions, which Discord takes from the JSON part by index."""
    data = body.get("data", body) if isinstance(body, dict) else {}
    for entry in (data.get("attachments") or []) if isinstance(data, dict) else []:
        index = str(entry.get("id", ""))
        if index.isdecimal() and int(index) < len(files):
            files[int(index)].description = entry.get("description")


def _answer(status: int, body: Any, headers: dict[str, str] | None = None) -> web.Response:
    merged = {**_VIA, **(headers or {})}
    if body is None and status == 200:
        return web.Response(status=204, headers=merged)
    # No charset: discord.py compares the whole header with "application/json".
    return web.Response(
        status=status, body=json.dumps(body).encode(), headers={**merged, "Content-Type": "application/json"}
    )


def _template(path: str) -> str:
    """The route without ids and tokens, fit for a log."""
    return re.sub(r"/\d+(/[\w.-]{20,})?", "/:id", path)
