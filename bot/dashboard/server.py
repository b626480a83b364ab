"""`strop dashboard`: the operators' page of a deployment, on loopback or behind a token.

It reads the database and asks the model server how it is. The one thing that it can change is whether a rated
reply may train, where it was started so. Nothing of what it shows is logged.
"""

from __future__ import annotations

import asyncio
import errno
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import structlog
from aiohttp import web

from bot.dashboard import views
from bot.dashboard.errors import RequestRefusedError
from bot.dashboard.guards import Handler, is_secret, only_from_its_own_page, only_from_this_machine
from bot.dashboard.loop_view import LoopSources, LoopView
from bot.dashboard.reports import Reports
from bot.dashboard.responses import SHARED, error_answer, file_answer, json_answer, static_file
from storage.admin import left_out
from storage.errors import StorageError, UnknownRowError
from storage.learning import run_summary

SECRET_HEADER = "X-Dashboard-Secret"
SECRET_PLACEHOLDER = "{{DASHBOARD_SECRET}}"
PAGE = "dashboard.html"
_MOST_SKIPPED = 1_000_000

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class DashboardSettings:
    """Where the page listens and who may use it. `token` is asked of everybody; it is empty on loopback.

    `write` lets rows be left out. `reference` is Discord's recorded permission to train.
    """

    host: str = "127.0.0.1"
    port: int = 0
    token: str = field(default="", repr=False)
    write: bool = False
    actor: str = "dashboard"
    reference: str = ""


class Dashboard:
    """A running page for the scopes of a deployment; each has sources of its own."""

    def __init__(
        self,
        settings: DashboardSettings,
        sources: LoopSources,
        scopes: Callable[[], list[str]],
        home: Path,
        report_command: tuple[str, ...],
    ) -> None:
        self.settings = settings
        self.url = ""
        # Without a token the page carries a secret of this start: another site's page can't read it.
        self._embedded = "" if settings.token else secrets.token_urlsafe(24)
        self._secret = settings.token or self._embedded
        self._sources = sources
        self._scopes = scopes
        self._home = home
        self._views: dict[str, LoopView] = {}
        guard = only_from_its_own_page if settings.token else only_from_this_machine
        app = web.Application(middlewares=[guard], client_max_size=1 << 16)
        reports = Reports(report_command, under="/reports")
        app.router.add_get("/", self._page)
        app.router.add_get("/static/{name}", self._static)
        app.router.add_get("/reports/{token}", reports.show)
        for method, path, handler in (
            ("GET", "/api/loop", self._loop),
            ("GET", "/api/runs", self._runs),
            ("GET", "/api/weeks", self._weeks),
            ("GET", "/api/rows", self._rows),
            ("PUT", "/api/left-out/{reply_id}", self._leave_out),
            ("DELETE", "/api/left-out/{reply_id}", self._put_back),
            ("POST", "/api/reports/{run_id}", reports.make),
        ):
            app.router.add_route(method, path, self._guarded(handler))
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=2.0)

    async def start(self) -> None:
        """Bind and serve. Raises RequestRefusedError where the port is taken."""
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self.settings.host, self.settings.port).start()
        except OSError as error:
            await self._runner.cleanup()
            if error.errno != errno.EADDRINUSE:
                raise
            raise RequestRefusedError(
                f"Port {self.settings.port} on {self.settings.host} is in use: choose another with --port."
            ) from error
        host = f"[{self.settings.host}]" if ":" in self.settings.host else self.settings.host
        self.url = f"http://{host}:{self._runner.addresses[0][1]}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    # ------------------------------------------------------------------ the page and its guard
    def _guarded(self, handler: Handler) -> Handler:
        async def guarded(request: web.Request) -> web.StreamResponse:
            if not is_secret(request.headers.get(SECRET_HEADER, ""), self._secret):
                if self.settings.token:
                    return error_answer(401, "Sign in with the token.")
                return error_answer(403, "This page is out of date: reload it.")
            try:
                return await handler(request)
            except RequestRefusedError as error:
                return error_answer(error.status, str(error))
            except UnknownRowError as error:
                return error_answer(404, str(error))
            except StorageError as error:
                log.warning("dashboard.storage_failed", error=type(error).__name__)
                return error_answer(503, str(error))

        return guarded

    async def _page(self, request: web.Request) -> web.Response:
        html = await asyncio.to_thread((SHARED / PAGE).read_text, "utf-8")
        return file_answer(html.replace(SECRET_PLACEHOLDER, self._embedded).encode(), ".html", request)

    async def _static(self, request: web.Request) -> web.Response:
        return await static_file(request, SHARED)

    async def _scope(self, request: web.Request) -> tuple[str, list[str]]:
        """Return the scope that a call is about, and all that there are."""
        known = await asyncio.to_thread(self._scopes)
        wanted = request.query.get("scope") or (known[0] if known else "")
        if not known:
            raise RequestRefusedError("Nobody has talked to the bot yet: there is nothing to show.", 404)
        if wanted not in known:
            raise RequestRefusedError("There is no such community (yet).", 404)
        return wanted, known

    async def _state(self, scope: str) -> tuple[LoopView, dict[str, Any]]:
        view = self._views.setdefault(scope, LoopView(replace(self._sources, scope=scope)))
        return view, await view.refresh()

    # ------------------------------------------------------------------ what it shows
    async def _loop(self, request: web.Request) -> web.Response:
        scope, known = await self._scope(request)
        _, loop = await self._state(scope)
        last = await self._sources.database.aread(lambda db: run_summary.page(db, scope, limit=1))
        alarms = await asyncio.to_thread(views.alarms, loop, last, self._home)
        answer = {"scope": scope, "scopes": known, "loop": loop, "alarms": alarms}
        return json_answer({**answer, "write": self.settings.write})

    async def _runs(self, request: web.Request) -> web.Response:
        (scope, _), skip = await self._scope(request), _skip(request)
        return json_answer(await self._sources.database.aread(lambda db: views.runs(db, scope, skip)))

    async def _weeks(self, request: web.Request) -> web.Response:
        scope, _ = await self._scope(request)
        view, _ = await self._state(scope)
        return json_answer(
            await self._sources.database.aread(lambda db: views.weeks(db, scope, view.base_hash))
        )

    async def _rows(self, request: web.Request) -> web.Response:
        (scope, _), skip = await self._scope(request), _skip(request)
        reference = self.settings.reference
        return json_answer(
            await self._sources.database.aread(lambda db: views.next_rows(db, scope, reference, skip))
        )

    # ------------------------------------------------------------------ the one thing that it changes
    async def _leave_out(self, request: web.Request) -> web.Response:
        reply_id, actor = self._may_change(request), self.settings.actor
        changed = await self._sources.database.awrite(lambda db: left_out.leave_out(db, reply_id, actor))
        return json_answer({"changed": changed})

    async def _put_back(self, request: web.Request) -> web.Response:
        reply_id, actor = self._may_change(request), self.settings.actor
        changed = await self._sources.database.awrite(lambda db: left_out.put_back(db, reply_id, actor))
        return json_answer({"changed": changed})

    def _may_change(self, request: web.Request) -> str:
        if not self.settings.write:
            raise RequestRefusedError("This page only shows: start it with --write to change something.", 403)
        return request.match_info["reply_id"]


def _skip(request: web.Request) -> int:
    given = request.query.get("skip") or "0"
    if not given.isdecimal() or int(given) > _MOST_SKIPPED:
        raise RequestRefusedError("“skip” must be a whole number.")
    return int(given)
