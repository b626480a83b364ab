"""Drive a running playground from another process through its page's API (for `strop rehearse`)."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from bot.playground.errors import RehearsalError

RUN_FILE = "playground.json"
SECRET_HEADER = "X-Playground-Secret"
_TIMEOUT_S = 30.0


class PageClient:
    """The page's API. Raises RehearsalError with the playground's own sentence."""

    def __init__(self, base_url: str, secret: str) -> None:
        self._http = aiohttp.ClientSession(
            base_url,
            headers={SECRET_HEADER: secret},
            timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.close()

    async def tastes(self) -> list[dict[str, Any]]:
        """The tastes to choose from."""
        found: list[dict[str, Any]] = await self._call("GET", "/playground/tastes")
        return found

    async def loop(self) -> dict[str, Any]:
        """The loop's state."""
        state: dict[str, Any] = await self._call("GET", "/playground/loop")
        return state

    async def load_sample(self) -> dict[str, Any]:
        """Load the sample community; loading it again changes nothing."""
        loaded: dict[str, Any] = await self._call("POST", "/playground/sample", {})
        return loaded

    async def start_rehearsal(
        self, taste: str | Mapping[str, Any], rounds: int | None, cast: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Begin a rehearsal and return its state. A taste is a key or a description (`custom_tastes.wish`).

        `cast` has what `rehearsal.Cast` has, as far as it differs from the usual.
        """
        body = {"taste": taste, **(cast or {})} | ({} if rounds is None else {"rounds": rounds})
        started = await self._call("POST", "/playground/rehearsal", body)
        state: dict[str, Any] = started["rehearsal"]
        return state

    async def rehearsal(self) -> dict[str, Any] | None:
        """The state of the running or latest rehearsal, or None."""
        state: dict[str, Any] | None = (await self._call("GET", "/playground/rehearsal"))["rehearsal"]
        return state

    async def bot_online(self) -> bool:
        """Whether the bot is connected, so that it would answer."""
        return bool((await self._call("GET", "/playground/rehearsal"))["bot_online"])

    async def stop_rehearsal(self) -> None:
        """Stop the running rehearsal."""
        await self._call("DELETE", "/playground/rehearsal")

    async def _call(self, method: str, path: str, body: Any = None) -> Any:
        try:
            async with self._http.request(method, path, json=body) as response:
                answer = json.loads(await response.text())
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise RehearsalError("The playground doesn't answer: start it with `strop up`.") from error
        if response.status >= 400:
            raise RehearsalError(str(answer.get("error", f"The playground answered {response.status}.")))
        return answer


def read_run_file(run_dir: Path) -> tuple[str, str]:
    """The address and the secret of the running playground. Raises RehearsalError if there is none."""
    try:
        found = json.loads((run_dir / RUN_FILE).read_text(encoding="utf-8"))
        return str(found["url"]), str(found["secret"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RehearsalError("No playground is running here: start it with `strop up`.") from error


async def run_rehearsal(
    base_url: str,
    secret: str,
    taste: str | Mapping[str, Any],
    rounds: int | None = None,
    *,
    cast: Mapping[str, Any] | None = None,
    poll_s: float = 1.0,
) -> AsyncIterator[dict[str, Any]]:
    """Start a rehearsal and yield its state until it ends; leaving early stops it.

    Raises RehearsalError with the playground's sentence.
    """
    async with PageClient(base_url, secret) as page:
        state: dict[str, Any] | None = await page.start_rehearsal(taste, rounds, cast)
        try:
            while state is not None and state["running"]:
                yield state
                await asyncio.sleep(poll_s)
                state = await page.rehearsal()
        except (GeneratorExit, asyncio.CancelledError):
            await page.stop_rehearsal()
            raise
        if state is not None:
            yield state
