"""What the playground's page calls: acting as a member, watching events, and steering the loop.

Every call needs the secret that is embedded in the served page. Host and Origin are checked for the whole
server (`server.only_from_this_machine`), so that a web site open in another tab can neither read the secret
nor use it.
"""

import asyncio
import base64
import hmac
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from aiohttp import WSMsgType, web

from bot.playground.discord import community
from bot.playground.discord.backend import DiscordBackend, Payload
from bot.playground.discord.gateway import Gateway
from bot.playground.discord.rest import MAX_FILE_BYTES
from bot.playground.errors import ActionRefusedError, RehearsalError, SampleError
from bot.playground.page.client import SECRET_HEADER
from bot.playground.page.loop_view import LoopView
from bot.playground.page.reports import Reports
from bot.playground.simulation.custom_tastes import wish
from bot.playground.simulation.rehearsal import Cast, Rehearsal
from bot.playground.simulation.sample import load_sample
from bot.playground.simulation.tastes import DEFAULT_TASTE, TASTES
from storage.db.database import Database
from storage.errors import StorageError, UnknownRowError
from storage.feedback import duels

PAGE_DIR = Path(__file__).parent / "static"
SECRET_PLACEHOLDER = "{{PLAYGROUND_SECRET}}"
#: Messages a channel in the first snapshot, and events waiting for a slow page before it is cut off.
SNAPSHOT_MESSAGES = 200
MAX_QUEUED_EVENTS = 2000
SECRET_WAIT_S = 10.0
MAX_FILES = 10
_FILE_NAME = re.compile(r"[^/\\\x00-\x1f?#%]+")
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
_CHOICES = {"first": 1, "second": -1, "tie": 0}

log = structlog.get_logger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class LoopParts:
    """What the page's loop panel needs; the stand-in alone runs without."""

    database: Database
    view: LoopView
    rehearsal: Rehearsal
    scope: str
    reports: Reports | None = None


class PageApi:
    """The page's HTTP calls and its event stream."""

    def __init__(
        self, backend: DiscordBackend, gateway: Gateway, secret: str, loop: LoopParts | None
    ) -> None:
        self._backend = backend
        self._gateway = gateway
        self._secret = secret
        self._loop = loop
        self._pages: set[asyncio.Queue[str | None]] = set()
        backend.on_page_event(lambda event, data: self._publish({"t": "event", "event": event, "data": data}))

    def add_routes(self, app: web.Application) -> None:
        """Mount the page, its files, its calls and its event stream."""
        app.router.add_get("/", self._page)
        app.router.add_get("/static/{name}", self._static)
        app.router.add_get("/playground/events", self._events)
        for method, path, handler in (
            ("POST", "/playground/messages", self._send),
            ("PATCH", "/playground/messages/{channel_id}/{message_id}", self._edit),
            ("DELETE", "/playground/messages/{channel_id}/{message_id}", self._delete),
            ("PUT", "/playground/reactions", self._react),
            ("DELETE", "/playground/reactions", self._unreact),
            ("POST", "/playground/commands", self._command),
            ("POST", "/playground/autocomplete", self._autocomplete),
            ("POST", "/playground/components", self._component),
            ("POST", "/playground/modals", self._modal),
            ("GET", "/playground/loop", self._loop_state),
            ("POST", "/playground/sample", self._sample),
            ("GET", "/playground/tastes", self._tastes),
            ("GET", "/playground/rehearsal", self._rehearsal_state),
            ("POST", "/playground/rehearsal", self._rehearse),
            ("DELETE", "/playground/rehearsal", self._stop_rehearsal),
            ("GET", "/playground/duels", self._duels),
            ("POST", "/playground/duels/{duel_id}/votes", self._vote),
        ):
            app.router.add_route(method, path, self._guarded(handler))
        if self._loop is not None and self._loop.reports is not None:
            reports = self._loop.reports
            app.router.add_post("/playground/reports/{run_id}", self._guarded(reports.make))
            app.router.add_get("/playground/reports/{token}", reports.show)

    def publish_loop(self, state: Payload) -> None:
        """Send the loop's state to every open page."""
        self._publish({"t": "loop", "loop": state})

    def close_pages(self) -> None:
        """End every event stream, so that the server can stop."""
        for queue in self._pages:
            _put(queue, None)

    # ------------------------------------------------------------------ guard and answers

    def _guarded(self, handler: Handler) -> Handler:
        async def guarded(request: web.Request) -> web.StreamResponse:
            if not self._knows_secret(request.headers.get(SECRET_HEADER, "")):
                return _error(403, "This page is out of date: reload it.")
            try:
                return await handler(request)
            except ActionRefusedError as error:
                return _error(error.status, str(error))
            except UnknownRowError as error:
                return _error(404, str(error))
            except (RehearsalError, SampleError) as error:
                return _error(409, str(error))
            except StorageError as error:
                log.warning("playground.storage_failed", error=str(error))
                return _error(503, str(error))

        return guarded

    def _knows_secret(self, given: object) -> bool:
        return isinstance(given, str) and hmac.compare_digest(given.encode(), self._secret.encode())

    def _parts(self) -> LoopParts:
        if self._loop is None:
            raise ActionRefusedError("This playground runs without a database.", 503)
        return self._loop

    # ------------------------------------------------------------------ the page itself

    async def _page(self, request: web.Request) -> web.Response:
        html = await asyncio.to_thread((PAGE_DIR / "index.html").read_text, "utf-8")
        return _file(html.replace(SECRET_PLACEHOLDER, self._secret).encode(), ".html", request)

    async def _static(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        suffix = Path(name).suffix
        if not _STATIC_NAME.fullmatch(name) or suffix not in _TYPES or suffix == ".html":
            raise web.HTTPNotFound
        try:
            body = await asyncio.to_thread((PAGE_DIR / name).read_bytes)
        except OSError as error:
            raise web.HTTPNotFound from error
        return _file(body, suffix, request)

    # ------------------------------------------------------------------ events

    async def _events(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(max_msg_size=1 << 16, heartbeat=30.0)
        await socket.prepare(request)
        if not await self._introduced(socket):
            await socket.close(code=4403, message=b"reload the page")
            return socket
        queue: asyncio.Queue[str | None] = asyncio.Queue(MAX_QUEUED_EVENTS)
        queue.put_nowait(json.dumps(self._snapshot()))
        self._pages.add(queue)
        sender = asyncio.create_task(_send_events(socket, queue))
        try:
            async for _ in socket:
                pass  # The page only listens; reading notices when it leaves.
        finally:
            self._pages.discard(queue)
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)
        return socket

    async def _introduced(self, socket: web.WebSocketResponse) -> bool:
        """Whether the first message carries the secret (a browser can't set headers on a WebSocket)."""
        try:
            message = await socket.receive(timeout=SECRET_WAIT_S)
            first = json.loads(message.data) if message.type is WSMsgType.TEXT else None
        except (TimeoutError, ValueError):
            return False
        return isinstance(first, dict) and self._knows_secret(first.get("secret"))

    def _snapshot(self) -> Payload:
        return {
            "t": "snapshot",
            "guild": {"id": str(community.GUILD_ID), "name": community.GUILD_NAME},
            "channels": self._backend.channels(),
            "members": self._backend.members(),
            "messages": self._backend.history(SNAPSHOT_MESSAGES),
            "commands": self._backend.commands(),
            "loop": None if self._loop is None else self._loop.view.latest or None,
            "bot_online": self._gateway.online,
        }

    def _publish(self, frame: Payload) -> None:
        if not self._pages:
            return
        text = json.dumps(frame)
        for queue in self._pages:
            _put(queue, text)

    # ------------------------------------------------------------------ acting as a member

    async def _send(self, request: web.Request) -> web.Response:
        body = await _body(request)
        reply_to = body.get("reply_to")
        message = self._backend.send_message(
            _id(body, "channel_id"),
            _id(body, "author_id"),
            _text(body, "content", "" if body.get("files") else None),
            reply_to=None if reply_to is None else _id(body, "reply_to"),
            files=_files(body),
        )
        return _json(message)

    async def _edit(self, request: web.Request) -> web.Response:
        body = await _body(request)
        channel_id, message_id = _path_ids(request)
        return _json(
            self._backend.edit_message(channel_id, message_id, _id(body, "user_id"), _text(body, "content"))
        )

    async def _delete(self, request: web.Request) -> web.Response:
        body = await _body(request)
        channel_id, message_id = _path_ids(request)
        self._backend.delete_message(channel_id, message_id, _id(body, "user_id"))
        return _json({"ok": True})

    async def _react(self, request: web.Request) -> web.Response:
        return await self._set_reaction(request, reacted=True)

    async def _unreact(self, request: web.Request) -> web.Response:
        return await self._set_reaction(request, reacted=False)

    async def _set_reaction(self, request: web.Request, *, reacted: bool) -> web.Response:
        body = await _body(request)
        ids = (_id(body, "channel_id"), _id(body, "message_id"), _id(body, "user_id"))
        self._backend.set_reaction(*ids, _text(body, "emoji"), reacted=reacted)
        return _json({"ok": True})

    async def _command(self, request: web.Request) -> web.Response:
        body = await _body(request)
        interaction_id = self._backend.run_command(
            _id(body, "channel_id"),
            _id(body, "user_id"),
            _text(body, "name"),
            subcommand=_text(body, "subcommand", ""),
            options=_options(body),
            target_id=None if body.get("target_id") is None else _id(body, "target_id"),
        )
        return _json({"interaction_id": str(interaction_id)})

    async def _autocomplete(self, request: web.Request) -> web.Response:
        body = await _body(request)
        choices = await self._backend.autocomplete(
            _id(body, "channel_id"),
            _id(body, "user_id"),
            _text(body, "name"),
            subcommand=_text(body, "subcommand", ""),
            option=_text(body, "option"),
            value=_text(body, "value", ""),
        )
        return _json({"choices": choices})

    async def _component(self, request: web.Request) -> web.Response:
        body = await _body(request)
        values = body.get("values") or []
        if not isinstance(values, list):
            raise ActionRefusedError("“values” must be a list.")
        interaction_id = self._backend.press_component(
            _id(body, "channel_id"),
            _id(body, "message_id"),
            _id(body, "user_id"),
            _text(body, "custom_id"),
            [str(value) for value in values],
        )
        return _json({"interaction_id": str(interaction_id)})

    async def _modal(self, request: web.Request) -> web.Response:
        body = await _body(request)
        interaction_id = self._backend.submit_modal(
            _id(body, "user_id"), _id(body, "modal_id"), _object(body, "values")
        )
        return _json({"interaction_id": str(interaction_id)})

    # ------------------------------------------------------------------ the loop

    async def _loop_state(self, request: web.Request) -> web.Response:
        return _json(await self._parts().view.refresh())

    async def _sample(self, request: web.Request) -> web.Response:
        parts = self._parts()
        await parts.view.refresh()
        if not parts.view.base_hash:
            raise SampleError("The model is still loading: the sample fits one base model, so wait for it.")
        loaded = await asyncio.to_thread(
            load_sample,
            parts.database,
            parts.view.base_hash,
            parts.scope,
            community.GUILD_ID,
            community.REHEARSAL_ID,
        )
        self.publish_loop(await parts.view.refresh())
        return _json(loaded.as_json())

    async def _tastes(self, request: web.Request) -> web.Response:
        return _json(
            [
                {
                    "key": taste.key,
                    "title": taste.title,
                    "description": taste.description,
                    "example": taste.example,
                    "default": taste.key == DEFAULT_TASTE,
                }
                for taste in TASTES.values()
            ]
        )

    async def _rehearsal_state(self, request: web.Request) -> web.Response:
        state = self._parts().rehearsal.state()
        return _json({"rehearsal": state, "bot_online": self._gateway.online})

    async def _rehearse(self, request: web.Request) -> web.Response:
        body = await _body(request)
        rounds = body.get("rounds")
        if rounds is not None and (isinstance(rounds, bool) or not isinstance(rounds, int)):
            raise ActionRefusedError("“rounds” must be a whole number.")
        described = body.get("taste")
        taste = wish(described) if isinstance(described, dict) else _text(body, "taste", DEFAULT_TASTE)
        state = await self._parts().rehearsal.start(
            taste, rounds, bot_online=self._gateway.online, cast=_cast(body)
        )
        return _json({"rehearsal": state})

    async def _stop_rehearsal(self, request: web.Request) -> web.Response:
        return _json({"rehearsal": await self._parts().rehearsal.cancel()})

    async def _duels(self, request: web.Request) -> web.Response:
        parts = self._parts()
        found = await parts.database.aread(lambda db: duels.open_for(db, parts.scope, limit=200))
        shown = [
            {
                "id": duel.id,
                "run_id": duel.run_id,
                "prompt": duel.prompt,
                "first": duel.first_text,
                "second": duel.second_text,
            }
            for duel in found
        ]
        return _json({"duels": shown, "open": len(shown)})

    async def _vote(self, request: web.Request) -> web.Response:
        body = await _body(request)
        choice = _CHOICES.get(str(body.get("choice")), body.get("choice"))
        if isinstance(choice, bool) or choice not in (1, 0, -1):
            raise ActionRefusedError("Choose “first”, “second” or “tie”.")
        duel_id, user_id, parts = request.match_info["duel_id"], _id(body, "user_id"), self._parts()
        changed = await parts.database.awrite(
            lambda db: duels.vote(db, duel_id=duel_id, user_id=user_id, choice=choice, source="playground")
        )
        return _json({"ok": True, "changed": changed})


async def _send_events(socket: web.WebSocketResponse, queue: "asyncio.Queue[str | None]") -> None:
    while (text := await queue.get()) is not None:
        try:
            await socket.send_str(text)
        except (ConnectionError, RuntimeError):
            return
    await socket.close(code=1001, message=b"the playground stopped or the page was too slow")


def _put(queue: "asyncio.Queue[str | None]", text: str | None) -> None:
    """Queue a frame; a page too slow to follow is cut off, and reloads its snapshot when it comes back."""
    if queue.full():
        while not queue.empty():
            queue.get_nowait()
        text = None
    queue.put_nowait(text)


def _file(body: bytes, suffix: str, request: web.Request) -> web.Response:
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


def _json(value: Any, status: int = 200) -> web.Response:
    return web.json_response(value, status=status, headers={"Cache-Control": "no-store"})


def _error(status: int, sentence: str) -> web.Response:
    return _json({"error": sentence}, status)


async def _body(request: web.Request) -> Payload:
    if request.content_type != "application/json":
        raise ActionRefusedError("The request needs the content type application/json.", 415)
    try:
        body = json.loads(await request.text())
    except ValueError as error:
        raise ActionRefusedError("The request's body isn't JSON.") from error
    if not isinstance(body, dict):
        raise ActionRefusedError("The request's body must be a JSON object.")
    return body


def _files(body: Payload) -> list[tuple[str, bytes]]:
    """The files of a message, each {"name", "data" in base64}."""
    given = body.get("files") or []
    if not isinstance(given, list) or len(given) > MAX_FILES:
        raise ActionRefusedError(f"A message takes at most {MAX_FILES} files.")
    return [_file_of(each) for each in given]


def _options(body: Payload) -> Payload:
    """A command's options; one that takes a file has it as {"name", "data" in base64}."""
    given = _object(body, "options")
    return {key: _file_of(value) if isinstance(value, dict) else value for key, value in given.items()}


def _file_of(given: Any) -> tuple[str, bytes]:
    name = given.get("name") if isinstance(given, dict) else None
    try:
        data = base64.b64decode(given["data"], validate=True) if isinstance(given, dict) else b""
    except (KeyError, TypeError, ValueError) as error:
        raise ActionRefusedError("A file needs “data” in base64.") from error
    if not isinstance(name, str) or not 0 < len(name) <= 200 or not _FILE_NAME.fullmatch(name):
        raise ActionRefusedError("A file needs a name without a path.")
    if len(data) > MAX_FILE_BYTES:
        raise ActionRefusedError("A file holds at most 10 MB.", 413)
    return name, data


def _id(body: Payload, key: str) -> int:
    value = body.get(key)
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).isdecimal():
        raise ActionRefusedError(f"“{key}” must be an id.")
    if int(value) >= 1 << 63:
        raise ActionRefusedError(f"“{key}” must be an id.")
    return int(value)


def _text(body: Payload, key: str, default: str | None = None) -> str:
    value = body.get(key)
    value = default if value is None else value
    if not isinstance(value, str):
        raise ActionRefusedError(f"“{key}” must be a text.")
    return value


def _object(body: Payload, key: str) -> Payload:
    value = body.get(key) or {}
    if not isinstance(value, dict):
        raise ActionRefusedError(f"“{key}” must be an object.")
    return value


def _cast(body: Payload) -> Cast:
    """Who rehearses, and what is said; what the body doesn't name is as usual."""
    usual = Cast()
    prompts = body.get("prompts") or usual.prompts
    if not isinstance(prompts, list | tuple) or not all(isinstance(each, str) for each in prompts):
        raise ActionRefusedError("“prompts” must be a list of texts.")
    noise = body.get("noise", usual.noise)
    if isinstance(noise, bool) or not isinstance(noise, int | float):
        raise ActionRefusedError("“noise” must be a number.")
    counts = [body.get(name, getattr(usual, name)) for name in ("members", "trolls", "voters")]
    if any(isinstance(each, bool) or not isinstance(each, int) for each in counts):
        raise ActionRefusedError("“members”, “trolls” and “voters” must be whole numbers.")
    members, trolls, voters = counts
    return Cast(tuple(prompts), members, float(noise), trolls, voters)


def _path_ids(request: web.Request) -> tuple[int, int]:
    return _id(dict(request.match_info), "channel_id"), _id(dict(request.match_info), "message_id")
