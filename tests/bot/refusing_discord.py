"""A Discord that says no: it refuses the token, or the intents."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from aiohttp import web

TOKEN = "playground.dummy.token"
USER = {"id": "10", "username": "strop", "discriminator": "0", "avatar": None, "bot": True}
APPLICATION = {
    "id": "10",
    "name": "strop",
    "icon": None,
    "description": "",
    "bot_public": True,
    "bot_require_code_grant": False,
    "verify_key": "0" * 64,
    "owner": USER,
    "flags": 0,
}


class RefusingDiscord:
    """REST and gateway on a free port; ``identifies`` counts the sign-ins."""

    def __init__(self, *, token_works: bool, close_code: int = 4014) -> None:
        self.token_works = token_works
        self.close_code = close_code
        self.identifies = 0
        self._runner: web.AppRunner | None = None

    async def start(self, run_dir: Path) -> None:
        """Listen, and write ``playground.json`` as the playground does."""
        app = web.Application()
        app.router.add_get("/gateway", self._gateway)
        app.router.add_route("*", "/api/v10/{path:.*}", self._rest)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        port = self._runner.addresses[0][1]
        link = {
            "api": f"http://127.0.0.1:{port}/api/v10",
            "gateway": f"ws://127.0.0.1:{port}/gateway",
            "token": TOKEN,
        }
        await asyncio.to_thread(_write, run_dir, link)

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _rest(self, request: web.Request) -> web.Response:
        if not self.token_works:
            return _json({"message": "401: Unauthorized", "code": 0}, status=401)
        path = request.match_info["path"]
        if path == "users/@me":
            return _json(USER)
        if path == "oauth2/applications/@me":
            return _json(APPLICATION)
        return _json([])

    async def _gateway(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_json({"op": 10, "d": {"heartbeat_interval": 40000}, "t": None, "s": None})
        async for message in socket:
            if json.loads(message.data)["op"] == 2:
                self.identifies += 1
                await socket.close(code=self.close_code)
        return socket


def _write(run_dir: Path, link: dict[str, str]) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "playground.json").write_text(json.dumps(link))


def _json(value: Any, status: int = 200) -> web.Response:
    # Without a charset: discord.py parses a body only where the type is exactly this.
    return web.Response(body=json.dumps(value).encode(), content_type="application/json", status=status)
