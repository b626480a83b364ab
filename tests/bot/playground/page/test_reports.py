"""The report of a run, opened from the playground's page."""

import sys
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web

from bot.dashboard.errors import RequestRefusedError
from bot.dashboard.reports import Reports

PROGRAM = """
import sys
run = sys.argv[sys.argv.index("--run") + 1]
if run == "r0":
    sys.exit("There is no run 'r0'.")
print(f"<!doctype html><p>report of {run}</p>")
"""


@pytest.fixture
async def url() -> AsyncIterator[str]:
    reports = Reports((sys.executable, "-c", PROGRAM))

    async def make(request: web.Request) -> web.Response:
        try:
            return await reports.make(request)
        except RequestRefusedError as error:
            return web.json_response({"error": str(error)}, status=error.status)

    app = web.Application()
    app.router.add_post("/playground/reports/{run_id}", make)
    app.router.add_get("/playground/reports/{token}", reports.show)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def test_a_report_is_shown_at_a_path_that_nobody_can_guess_and_may_run_nothing(url: str) -> None:
    async with aiohttp.ClientSession(url) as http:
        async with http.post("/playground/reports/rabc123") as made:
            path = (await made.json())["path"]
        async with http.get(path) as shown:
            assert "report of rabc123" in await shown.text()
            assert shown.headers["Content-Security-Policy"].startswith("default-src 'none'")
        async with http.get("/playground/reports/guessed") as guessed:
            assert guessed.status == 404


@pytest.mark.parametrize(("run_id", "said"), [("r0", "There is no run"), ("..%2Fetc", "That is no run")])
async def test_what_is_no_run_is_refused_with_a_sentence(url: str, run_id: str, said: str) -> None:
    async with aiohttp.ClientSession(url) as http, http.post(f"/playground/reports/{run_id}") as made:
        assert made.status == 404
        assert said in (await made.json())["error"]
