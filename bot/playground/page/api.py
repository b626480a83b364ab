"""What the playground's page calls: acting as a member, watching events, and steering the loop.

Every call needs the secret that is embedded in the served page. Host and Origin are checked for the whole
server (`server.only_from_this_machine`), so that a web site open in another tab can neither read the secret
nor use it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import structlog
from aiohttp import web

from bot.dashboard.errors import RequestRefusedError
from bot.dashboard.loop_view import LoopView
from bot.dashboard.reports import Reports
from bot.dashboard.responses import SHARED, error_answer, file_answer, json_answer, static_file
from bot.playground.discord import community
from bot.playground.discord.backend import DiscordBackend, Payload
from bot.playground.discord.gateway import Gateway
from bot.playground.errors import ActionRefusedError, RehearsalError, SampleError
from bot.playground.page.client import SECRET_HEADER
from bot.playground.page.events import EventStream
from bot.playground.page.imports import ImportSettings, PageImports
from bot.playground.page.requests import (
    body_of,
    cast_of,
    files_of,
    id_of,
    object_of,
    options_of,
    path_ids,
    text_of,
)
from bot.playground.simulation.custom_tastes import wish
from bot.playground.simulation.rehearsal import Rehearsal
from bot.playground.simulation.sample import load_sample
from bot.playground.simulation.tastes import DEFAULT_TASTE, TASTES
from storage.chat import context_resets
from storage.db import key_values
from storage.db.database import Connection, Database
from storage.errors import StorageError, UnknownRowError
from storage.feedback import duels

PAGE_DIR = Path(__file__).parent / "static"
SECRET_PLACEHOLDER = "{{PLAYGROUND_SECRET}}"
#: Messages a channel in the first snapshot.
SNAPSHOT_MESSAGES = 200
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
    imports: ImportSettings | None = None
    reply_buttons: bool | None = None


class PageApi:
    """The page's HTTP calls and its event stream."""

    def __init__(
        self, backend: DiscordBackend, gateway: Gateway, secret: str, loop: LoopParts | None
    ) -> None:
        self._backend = backend
        self._gateway = gateway
        self._secret = secret
        self._loop = loop
        self._events = EventStream(secret, self._snapshot)
        self._imports = PageImports(None if loop is None else loop.imports)
        backend.on_page_event(
            lambda event, data: self._events.publish({"t": "event", "event": event, "data": data})
        )

    def add_routes(self, app: web.Application) -> None:
        """Mount the page, its files, its calls and its event stream."""
        app.router.add_get("/", self._page)
        app.router.add_get("/static/{name}", self._static)
        app.router.add_get("/playground/events", self._events.serve)
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
            ("POST", "/playground/start-over", self._start_over),
            ("GET", "/playground/tastes", self._tastes),
            ("GET", "/playground/rehearsal", self._rehearsal_state),
            ("POST", "/playground/rehearsal", self._rehearse),
            ("DELETE", "/playground/rehearsal", self._stop_rehearsal),
            ("GET", "/playground/duels", self._duels),
            ("POST", "/playground/duels/{duel_id}/votes", self._vote),
            *self._imports.routes(),
        ):
            app.router.add_route(method, path, self._guarded(handler))
        if self._loop is not None and self._loop.reports is not None:
            reports = self._loop.reports
            app.router.add_post("/playground/reports/{run_id}", self._guarded(reports.make))
            app.router.add_get("/playground/reports/{token}", reports.show)

    def publish_loop(self, state: Payload) -> None:
        """Send the loop's state to every open page."""
        self._events.publish({"t": "loop", "loop": state})

    def close_pages(self) -> None:
        """End every event stream, so that the server can stop; an upload that waits is forgotten."""
        self._events.close()
        self._imports.close()

    # ------------------------------------------------------------------ guard and answers

    def _guarded(self, handler: Handler) -> Handler:
        async def guarded(request: web.Request) -> web.StreamResponse:
            if not self._events.knows_secret(request.headers.get(SECRET_HEADER, "")):
                return error_answer(403, "This page is out of date: reload it.")
            try:
                return await handler(request)
            except (ActionRefusedError, RequestRefusedError) as error:
                return error_answer(error.status, str(error))
            except UnknownRowError as error:
                return error_answer(404, str(error))
            except (RehearsalError, SampleError) as error:
                return error_answer(409, str(error))
            except StorageError as error:
                log.warning("playground.storage_failed", error=str(error))
                return error_answer(503, str(error))

        return guarded

    def _parts(self) -> LoopParts:
        if self._loop is None:
            raise ActionRefusedError("This playground runs without a database.", 503)
        return self._loop

    # ------------------------------------------------------------------ the page itself

    async def _page(self, request: web.Request) -> web.Response:
        html = await asyncio.to_thread((PAGE_DIR / "index.html").read_text, "utf-8")
        return file_answer(html.replace(SECRET_PLACEHOLDER, self._secret).encode(), ".html", request)

    async def _static(self, request: web.Request) -> web.Response:
        return await static_file(request, PAGE_DIR, SHARED)

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
            "reply_buttons": None if self._loop is None else self._loop.reply_buttons,
        }

    # ------------------------------------------------------------------ acting as a member

    async def _send(self, request: web.Request) -> web.Response:
        body = await body_of(request)
        reply_to = body.get("reply_to")
        message = self._backend.send_message(
            id_of(body, "channel_id"),
            id_of(body, "author_id"),
            text_of(body, "content", "" if body.get("files") else None),
            reply_to=None if reply_to is None else id_of(body, "reply_to"),
            files=files_of(body),
        )
        return json_answer(message)

    async def _edit(self, request: web.Request) -> web.Response:
        body = await body_of(request)
        channel_id, message_id = path_ids(request)
        return json_answer(
            self._backend.edit_message(
                channel_id, message_id, id_of(body, "user_id"), text_of(body, "content")
            )
        )

    async def _delete(self, request: web.Request) -> web.Response:
        body = await body_of(request)
        channel_id, message_id = path_ids(request)
        self._backend.delete_message(channel_id, message_id, id_of(body, "user_id"))
        return json_answer({"ok": True})

    async def _react(self, request: web.Request) -> web.Response:
        return await self._set_reaction(request, reacted=True)

    async def _unreact(self, request: web.Request) -> web.Response:
        return await self._set_reaction(request, reacted=False)

    async def _set_reaction(self, request: web.Request, *, reacted: bool) -> web.Response:
        body = await body_of(request)
        ids = (id_of(body, "channel_id"), id_of(body, "message_id"), id_of(body, "user_id"))
        self._backend.set_reaction(*ids, text_of(body, "emoji"), reacted=reacted)
        return json_answer({"ok": True})

    async def _command(self, request: web.Request) -> web.Response:
        body = await body_of(request)
        interaction_id = self._backend.run_command(
            id_of(body, "channel_id"),
            id_of(body, "user_id"),
            text_of(body, "name"),
            subcommand=text_of(body, "subcommand", ""),
            options=options_of(body),
            target_id=None if body.get("target_id") is None else id_of(body, "target_id"),
        )
        return json_answer({"interaction_id": str(interaction_id)})

    async def _autocomplete(self, request: web.Request) -> web.Response:
        body = await body_of(request)
        choices = await self._backend.autocomplete(
            id_of(body, "channel_id"),
            id_of(body, "user_id"),
            text_of(body, "name"),
            subcommand=text_of(body, "subcommand", ""),
            option=text_of(body, "option"),
            value=text_of(body, "value", ""),
        )
        return json_answer({"choices": choices})

    async def _component(self, request: web.Request) -> web.Response:
        body = await body_of(request)
        values = body.get("values") or []
        if not isinstance(values, list):
            raise ActionRefusedError("“values” must be a list.")
        interaction_id = self._backend.press_component(
            id_of(body, "channel_id"),
            id_of(body, "message_id"),
            id_of(body, "user_id"),
            text_of(body, "custom_id"),
            [str(value) for value in values],
        )
        return json_answer({"interaction_id": str(interaction_id)})

    async def _modal(self, request: web.Request) -> web.Response:
        body = await body_of(request)
        interaction_id = self._backend.submit_modal(
            id_of(body, "user_id"), id_of(body, "modal_id"), object_of(body, "values")
        )
        return json_answer({"interaction_id": str(interaction_id)})

    # ------------------------------------------------------------------ the loop

    async def _loop_state(self, request: web.Request) -> web.Response:
        return json_answer(await self._parts().view.refresh())

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
        return json_answer(loaded.as_json())

    async def _start_over(self, request: web.Request) -> web.Response:
        """Empty the channels and let the bot begin afresh in them; what was rated and learned stays."""
        await body_of(request)
        parts = self._parts()
        if (parts.rehearsal.state() or {}).get("running"):
            raise RehearsalError("A rehearsal is on: stop it first.")
        channels, last = self._backend.clear()

        def work(db: Connection) -> None:
            key_values.put(db, key_values.SHOWN_AFTER, str(last))
            for channel_id in channels:
                context_resets.start(db, channel_id, "playground")

        if last:
            await parts.database.awrite(work)
        self._events.publish(self._snapshot())
        return json_answer({"ok": True})

    async def _tastes(self, request: web.Request) -> web.Response:
        return json_answer(
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
        return json_answer({"rehearsal": state, "bot_online": self._gateway.online})

    async def _rehearse(self, request: web.Request) -> web.Response:
        body = await body_of(request)
        rounds = body.get("rounds")
        if rounds is not None and (isinstance(rounds, bool) or not isinstance(rounds, int)):
            raise ActionRefusedError("“rounds” must be a whole number.")
        described = body.get("taste")
        taste = wish(described) if isinstance(described, dict) else text_of(body, "taste", DEFAULT_TASTE)
        state = await self._parts().rehearsal.start(
            taste, rounds, bot_online=self._gateway.online, cast=cast_of(body)
        )
        return json_answer({"rehearsal": state})

    async def _stop_rehearsal(self, request: web.Request) -> web.Response:
        return json_answer({"rehearsal": await self._parts().rehearsal.cancel()})

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
        return json_answer({"duels": shown, "open": len(shown)})

    async def _vote(self, request: web.Request) -> web.Response:
        body = await body_of(request)
        choice = _CHOICES.get(str(body.get("choice")), body.get("choice"))
        if isinstance(choice, bool) or choice not in (1, 0, -1):
            raise ActionRefusedError("Choose “first”, “second” or “tie”.")
        duel_id, user_id, parts = request.match_info["duel_id"], id_of(body, "user_id"), self._parts()
        duel = await parts.database.aread(lambda db: duels.get(db, duel_id))
        changed = await parts.database.awrite(
            lambda db: duels.vote(db, duel_id=duel_id, user_id=user_id, choice=choice, source="playground")
        )
        if duel is not None and duel.closed_ms is not None and not changed:
            raise ActionRefusedError("Voting on this pair is over, so your vote was not counted.", 409)
        return json_answer({"ok": True, "changed": changed})
