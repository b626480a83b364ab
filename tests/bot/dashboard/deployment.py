"""A deployment with ratings, runs and a champion for the operators' page to show, over real sockets."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import sqlite_utils
from aiohttp import web

from bot.dashboard.loop_view import LoopSources
from bot.dashboard.server import Dashboard, DashboardSettings
from bot.serving.client import ModelClient
from storage.chat import members
from storage.db.database import Database
from storage.learning import adapters
from tests.bot.cli.test_run_history import METRICS, a_finished_run
from tests.storage.conftest import SCOPE, Community, thumb

BASE_HASH = "f" * 64
REPORT = "import sys; print('<!doctype html><p>report of ' + sys.argv[sys.argv.index('--run') + 1] + '</p>')"


def lived_in(db: sqlite_utils.Database) -> tuple[list[str], str]:
    """Three rated replies, a run that lost, and an adapter that answers; return the replies and the run."""
    community = Community(source="playground")
    members.ensure(db, 2, "rater", community.source)
    replies = [community.asks(db, 1, f"Question {number}: why does rye bread keep?") for number in range(3)]
    for reply_id, value in zip(replies, (1, 1, -1), strict=True):
        thumb(db, reply_id, 2, value)
    run_id = a_finished_run(db, "refused", METRICS)
    db.execute("UPDATE runs SET scope = ?", (SCOPE,))
    adapters.insert_candidate(db, adapter_id="a1", scope=SCOPE, base_hash=BASE_HASH, path="adapters/a1")
    adapters.promote(db, scope=SCOPE, base_hash=BASE_HASH, adapter_id="a1", actor="test", reason="it won")
    return replies, run_id


@asynccontextmanager
async def model_server() -> AsyncIterator[str]:
    """The model server's health answer; nothing here needs its model."""

    async def health(_: web.Request) -> web.Response:
        base = {"id": "tiny", "hash": BASE_HASH}
        return web.json_response({"status": "ok", "detail": "", "base": base, "adapters": []})

    app = web.Application()
    app.router.add_get("/health", health)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@asynccontextmanager
async def dashboard(
    database: Database, home: Path, scopes: Sequence[str] = (SCOPE, "guild:9"), **settings: Any
) -> AsyncIterator[Dashboard]:
    """Serve the page of a deployment."""
    async with model_server() as url, ModelClient(url) as client:
        sources = LoopSources(database, client, "", lambda: True, 20, 3, 10, 25)
        command = (sys.executable, "-c", REPORT)
        page = Dashboard(DashboardSettings(**settings), sources, lambda: list(scopes), home, command)
        async with page:
            yield page
