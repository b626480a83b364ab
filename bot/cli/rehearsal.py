"""`strop sample` and `strop rehearse`: they press the buttons of the running playground's page."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeVar

import aiohttp
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bot.cli.announce import visible
from bot.cli.errors import CommandError, UsageError
from bot.cli.runs import duration
from bot.cli.session import ConfigOption, JsonOption, load
from bot.cli.startup import read_process_file
from storage.config import Config

T = TypeVar("T")
POLL_S = 1.0
REQUEST_TIMEOUT_S = 60.0
BOT_WAIT_S = 120.0


def sample(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Load the sample community into the running playground: rated replies, enough to retrain at once.

    Examples:

        strop sample && strop retrain --wait
    """
    answer = _run(_sample(_settings(config)))
    if as_json:
        typer.echo(json.dumps(answer, ensure_ascii=False))
        return
    counts = ", ".join(f"{value} {name}" for name, value in answer.items() if isinstance(value, int))
    typer.echo(
        f"The sample community is loaded{f' ({counts})' if counts else ''}: try `strop retrain --wait`."
    )


def rehearse(
    config: ConfigOption = None,
    taste: Annotated[str | None, typer.Option("--taste", help="What the simulated members like.")] = None,
    rounds: Annotated[
        int | None,
        typer.Option("--rounds", min=0, help="How many questions (default: until enough is liked)."),
    ] = None,
    show: Annotated[bool, typer.Option("--list", help="List the tastes.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Stop the running rehearsal.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Let simulated members chat with the real bot in the running playground and rate by a taste.

    Ctrl-C stops the rehearsal; what was rated stays rated.

    Examples:

        strop rehearse --list

        strop rehearse --taste short_question && strop retrain --wait
    """
    settings = _settings(config)
    if show:
        _show_tastes(_run(_get(settings, "/playground/tastes")), as_json=as_json)
        return
    if stop:
        state = _run(_stop(settings))
    elif taste is None:
        raise UsageError("Choose a taste with --taste; `strop rehearse --list` shows them.")
    else:
        state = _run(_rehearse(settings, taste, rounds, quiet=as_json))
    if as_json:
        typer.echo(json.dumps(state, ensure_ascii=False))
    else:
        typer.echo(str((state or {}).get("message") or "No rehearsal is running."))


def _show_tastes(tastes: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(tastes, ensure_ascii=False))
        return
    for taste in tastes:
        typer.echo(
            f"{taste['key']}: {taste['title']}\n    {taste['description']}\n    e.g. {taste['example']}"
        )


def _settings(config: ConfigOption) -> Config:
    settings, _ = load(config)
    if not settings.playground:
        raise CommandError("A Discord token is set: rehearsals and samples exist only in the playground.")
    return settings


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(work)
    except aiohttp.ClientError as error:
        raise CommandError("The playground doesn't answer: is `strop up` running?") from error
    except TimeoutError as error:
        raise CommandError("The playground didn't answer in time; try again.") from error


@asynccontextmanager
async def _page(settings: Config) -> AsyncIterator[aiohttp.ClientSession]:
    record = await asyncio.to_thread(read_process_file, settings.run / "playground.json")
    if record is None or "url" not in record:
        raise CommandError("The playground isn't running: start it with `strop up`.")
    async with aiohttp.ClientSession(
        base_url=str(record["url"]),
        headers={"X-Playground-Secret": str(record.get("secret", ""))},
        timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S),
    ) as http:
        yield http


async def _call(http: aiohttp.ClientSession, method: str, path: str, body: Any = None) -> Any:
    """One request to the page's API; its one-sentence errors become ours."""
    async with http.request(method, path, json=body) as response:
        try:
            answer = await response.json(content_type=None)
        except ValueError:
            answer = None
        if response.status >= 400:
            said = answer.get("error") if isinstance(answer, dict) else None
            raise CommandError(visible(str(said or f"The playground answered {response.status}.")))
        return answer


async def _get(settings: Config, path: str) -> Any:
    async with _page(settings) as http:
        return await _call(http, "GET", path)


async def _sample(settings: Config) -> dict[str, Any]:
    async with _page(settings) as http:
        answer = await _call(http, "POST", "/playground/sample", {})
    return answer if isinstance(answer, dict) else {}


async def _stop(settings: Config) -> dict[str, Any] | None:
    async with _page(settings) as http:
        await _call(http, "DELETE", "/playground/rehearsal", {})
        return await _state(http)


async def _state(http: aiohttp.ClientSession) -> dict[str, Any] | None:
    loop = await _call(http, "GET", "/playground/loop")
    state = loop.get("rehearsal") if isinstance(loop, dict) else None
    return state if isinstance(state, dict) else None


async def _rehearse(
    settings: Config, taste: str, rounds: int | None, *, quiet: bool
) -> dict[str, Any] | None:
    console = Console(stderr=True, quiet=quiet, highlight=False)
    async with _page(settings) as http:
        await _wait_for_model(http, console)
        body = {"taste": taste} if rounds is None else {"taste": taste, "rounds": rounds}
        await _call(http, "POST", "/playground/rehearsal", body)
        try:
            return await _follow(http, console, quiet=quiet)
        except asyncio.CancelledError:
            await asyncio.shield(_call(http, "DELETE", "/playground/rehearsal", {}))
            raise


async def _wait_for_model(http: aiohttp.ClientSession, console: Console) -> None:
    """A rehearsal needs the model: wait a while for one that is still loading."""
    ends_s = time.monotonic() + BOT_WAIT_S
    told = False
    while True:
        loop = await _call(http, "GET", "/playground/loop")
        server = (loop or {}).get("server") or {}
        if server.get("status") in (None, "ok"):
            return
        if time.monotonic() > ends_s:
            raise CommandError(
                f"The model server isn't ready: {visible(str(server.get('detail') or 'it is down'))}."
            )
        if not told:
            console.print("Waiting for the model to load.")
            told = True
        await asyncio.sleep(POLL_S)


async def _follow(http: aiohttp.ClientSession, console: Console, *, quiet: bool) -> dict[str, Any] | None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=console, disable=quiet) as bar:
        task = bar.add_task("rehearsing", total=None, left="")
        while True:
            state = await _state(http)
            if state is not None:
                left = "" if state.get("eta_s") is None else f"about {duration(float(state['eta_s']))} left"
                text = f"👍 {state.get('liked', 0)}  👎 {state.get('disliked', 0)}"
                bar.update(
                    task,
                    description=text,
                    total=state.get("total"),
                    completed=state.get("done", 0),
                    left=left,
                )
            if state is None or not state.get("running"):
                return state
            await asyncio.sleep(POLL_S)


def register(app: typer.Typer) -> None:
    """Add this topic's commands."""
    for command in (rehearse, sample):
        app.command(rich_help_panel="Playground")(command)
