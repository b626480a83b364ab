"""A run's report for a page: made on demand by the trainer's own program, opened in a tab of its own."""

import asyncio
import re
import secrets
from collections import OrderedDict
from collections.abc import Sequence

from aiohttp import web

from bot.dashboard.errors import RequestRefusedError

DEADLINE_S = 15.0
KEPT = 8
#: The report brings its styles along; nothing in it may run or be fetched.
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_RUN_ID = re.compile(r"r[0-9a-f]{1,24}")


class Reports:
    """Runs `command` with a run's id. A tab can't send the page's secret: each report gets a secret path.

    `under` is the path at which `show` is mounted.
    """

    def __init__(self, command: Sequence[str], under: str = "/playground/reports") -> None:
        self._command = tuple(command)
        self._under = under
        self._pages: OrderedDict[str, bytes] = OrderedDict()

    async def make(self, request: web.Request) -> web.Response:
        """Make the report of a run and answer with the path that shows it. Raises RequestRefusedError."""
        run_id = request.match_info["run_id"]
        if not _RUN_ID.fullmatch(run_id):
            raise RequestRefusedError("That is no run.", status=404)
        page = await self._rendered(run_id)
        token = secrets.token_urlsafe(24)
        self._pages[token] = page
        while len(self._pages) > KEPT:
            self._pages.popitem(last=False)
        return web.json_response({"path": f"{self._under}/{token}"})

    async def show(self, request: web.Request) -> web.Response:
        """Show a report that was made."""
        page = self._pages.get(request.match_info["token"])
        if page is None:
            raise web.HTTPNotFound(text="This report is gone: open it again from the page.")
        headers = {
            "Content-Security-Policy": POLICY,
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",
        }
        return web.Response(body=page, content_type="text/html", charset="utf-8", headers=headers)

    async def _rendered(self, run_id: str) -> bytes:
        process = await asyncio.create_subprocess_exec(
            *self._command,
            "--run",
            run_id,
            "--stdout",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(DEADLINE_S):
                page, said = await process.communicate()
        except TimeoutError as error:
            raise RequestRefusedError("The report takes too long; try `strop report`.", status=503) from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            lines = said.decode(errors="replace").strip().splitlines()
            raise RequestRefusedError(lines[-1] if lines else "The report could not be made.", status=404)
        return page
