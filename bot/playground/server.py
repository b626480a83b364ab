"""The playground as one server on one loopback port: REST, gateway, attachments and the page."""

import asyncio
import errno
import secrets
from dataclasses import dataclass, field
from urllib.parse import unquote

import discord
from aiohttp import web

from bot.dashboard.guards import only_from_this_machine
from bot.dashboard.loop_view import LoopSources, LoopView
from bot.dashboard.reports import Reports
from bot.playground.discord import picture_files
from bot.playground.discord.backend import DiscordBackend
from bot.playground.discord.gateway import GATEWAY_PATH, Gateway
from bot.playground.discord.ratelimit import RateLimiter, Rule
from bot.playground.discord.rest import API_PREFIX, MAX_REQUEST_BYTES, RestFront
from bot.playground.errors import PortInUseError
from bot.playground.page.api import LoopParts, PageApi
from bot.playground.page.imports import ImportSettings
from bot.playground.simulation.rehearsal import Rehearsal, RehearsalSettings

#: Tokens of the playground start with this; the bot sends no other token to a local address.
TOKEN_PREFIX = "playground."


def new_token() -> str:
    """A dummy bot token that no one could mistake for Discord's."""
    return TOKEN_PREFIX + secrets.token_urlsafe(24)


@dataclass(frozen=True)
class PlaygroundSettings:
    """How the stand-in behaves. Tests change the pace and the limits; the product takes the defaults."""

    host: str = "127.0.0.1"
    port: int = 0
    token: str = field(default_factory=new_token, repr=False)
    secret: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    rate_limits: tuple[Rule, ...] | None = None
    global_per_s: int = 50
    heartbeat_ms: int = 41_250
    approved_intents: discord.Intents = field(default_factory=discord.Intents.all)


@dataclass(frozen=True)
class PlaygroundLoop:
    """What turns the stand-in into the product: where the loop's state is, how rehearsals behave.

    `report_command` is the trainer's program that prints a run's report, `reply_buttons` whether a finished
    answer has buttons (None: the page goes by what it sees).
    """

    sources: LoopSources
    rehearsal: RehearsalSettings
    report_command: tuple[str, ...] = ()
    imports: ImportSettings | None = None
    reply_buttons: bool | None = None


class Playground:
    """A running stand-in. `start`, then connect a bot to `api_url` and `gateway_url` with `token`.

    Without a `loop` it is Discord and nothing more. Its `gateway` has the hooks that tests need: drop
    connections, invalidate sessions, ask to reconnect, send anything; its `limiter` counts what it refused.
    They are methods, for whoever runs the stand-in in their own process: no request reaches them.
    """

    def __init__(
        self, settings: PlaygroundSettings | None = None, loop: PlaygroundLoop | None = None
    ) -> None:
        self.settings = settings or PlaygroundSettings()
        self.token = self.settings.token
        self.secret = self.settings.secret
        self.backend = DiscordBackend(approved_intents=self.settings.approved_intents)
        self.gateway = Gateway(self.backend, self.token, heartbeat_ms=self.settings.heartbeat_ms)
        self.limiter = RateLimiter(self.settings.rate_limits, global_per_s=self.settings.global_per_s)
        self.app = web.Application(client_max_size=MAX_REQUEST_BYTES, middlewares=[only_from_this_machine])
        self.gateway.add_routes(self.app)
        RestFront(self.backend, self.gateway, self.limiter, self.token).add_routes(self.app)
        self.app.router.add_get("/attachments/{path:.*}", self._attachment)
        self.rehearsal: Rehearsal | None = None
        self._view: LoopView | None = None
        self._watch: asyncio.Task[None] | None = None
        self.page = PageApi(self.backend, self.gateway, self.secret, self._loop_parts(loop))
        self.page.add_routes(self.app)
        self._runner = web.AppRunner(self.app, access_log=None, shutdown_timeout=2.0)
        self.base_url = ""

    def _loop_parts(self, loop: PlaygroundLoop | None) -> LoopParts | None:
        if loop is None:
            return None
        self.rehearsal = Rehearsal(self.backend, loop.sources.database, loop.rehearsal)
        self._view = LoopView(loop.sources)
        self._view.show_rehearsal(self.rehearsal.state)
        reports = Reports(loop.report_command) if loop.report_command else None
        return LoopParts(
            loop.sources.database,
            self._view,
            self.rehearsal,
            loop.sources.scope,
            reports,
            loop.imports,
            loop.reply_buttons,
        )

    @property
    def api_url(self) -> str:
        """What takes the place of https://discord.com/api/v10."""
        return self.base_url + API_PREFIX

    @property
    def gateway_url(self) -> str:
        """What takes the place of wss://gateway.discord.gg."""
        return self.base_url.replace("http://", "ws://", 1) + GATEWAY_PATH

    async def start(self) -> None:
        """Bind and serve. Raises PortInUseError with a way out."""
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.settings.host, self.settings.port)
        try:
            await site.start()
        except OSError as error:
            await self._runner.cleanup()
            if error.errno != errno.EADDRINUSE:
                raise
            raise PortInUseError(
                f"Port {self.settings.port} on {self.settings.host} is in use: stop the other program or set "
                "another [playground] port in strop.toml."
            ) from error
        port = self._runner.addresses[0][1]
        host = f"[{self.settings.host}]" if ":" in self.settings.host else self.settings.host
        self.base_url = f"http://{host}:{port}"
        self.gateway.url = self.gateway_url
        self.backend.attachment_base_url = self.base_url
        if self._view is not None:
            self._watch = asyncio.create_task(self._view.watch(self.page.publish_loop))

    async def stop(self) -> None:
        """End a rehearsal, close every connection and the port."""
        if self.rehearsal is not None:
            await self.rehearsal.cancel()
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        self.page.close_pages()
        await self.gateway.close()
        await self._runner.cleanup()

    async def __aenter__(self) -> "Playground":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _attachment(self, request: web.Request) -> web.Response:
        blob = self.backend.attachment(unquote(request.rel_url.raw_path))
        if blob is None:
            raise web.HTTPNotFound(text="There is no such attachment (any more).")
        # A file from a chat must not run on the page's origin: what isn't a picture is never shown in place.
        headers = {"Content-Disposition": "attachment", "X-Content-Type-Options": "nosniff"}
        picture = picture_files.look(blob)
        content_type = "application/octet-stream" if picture is None else picture.content_type
        return web.Response(body=blob, content_type=content_type, headers=headers)
