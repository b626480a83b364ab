"""`strop sample` and `strop rehearse`: they press the buttons of the running playground's page."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bot.cli.announce import visible
from bot.cli.errors import CommandError, UsageError
from bot.cli.runs import duration
from bot.cli.session import ConfigOption, JsonOption, load
from bot.playground.errors import RehearsalError
from bot.playground.page_client import PageClient, read_run_file, run_rehearsal
from storage.config import Config

T = TypeVar("T")
POLL_S = 1.0
MODEL_WAIT_S = 180.0


def sample(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Load the sample community into the running playground: rated replies, enough to retrain at once.

    Examples:

        strop sample && strop retrain --wait
    """

    async def load_sample(url: str, secret: str) -> dict[str, Any]:
        async with PageClient(url, secret) as page:
            await _wait_for_model(page, Console(stderr=True, highlight=False))
            return await page.load_sample()

    loaded = _run(load_sample(*_playground(config)))
    if as_json:
        typer.echo(json.dumps(loaded, ensure_ascii=False))
        return
    typer.echo(f"{visible(str(loaded['message']))} Try `strop retrain --wait`.")


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

        strop rehearse --taste short-question && strop retrain --wait
    """
    url, secret = _playground(config)
    if show:
        _show_tastes(_run(_tastes(url, secret)), as_json=as_json)
        return
    if stop:
        state = _run(_stop(url, secret))
    elif taste is None:
        raise UsageError("Choose a taste with --taste; `strop rehearse --list` shows them.")
    else:
        state = _run(_rehearse(url, secret, taste, rounds, quiet=as_json))
    if as_json:
        typer.echo(json.dumps(state, ensure_ascii=False))
    else:
        typer.echo(visible(str((state or {}).get("message") or "No rehearsal has run.")))


def _show_tastes(tastes: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(tastes, ensure_ascii=False))
        return
    for taste in tastes:
        typer.echo(
            f"{taste['key']}: {taste['title']}\n    {taste['description']}\n    e.g. {taste['example']}"
        )


def _playground(config: ConfigOption) -> tuple[str, str]:
    """Address and secret of the running playground."""
    settings: Config
    settings, _ = load(config)
    if not settings.playground:
        raise CommandError("A Discord token is set: rehearsals and samples exist only in the playground.")
    try:
        return read_run_file(settings.run)
    except RehearsalError as error:
        raise CommandError(str(error)) from error


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(work)
    except RehearsalError as error:
        raise CommandError(visible(str(error))) from error


async def _tastes(url: str, secret: str) -> list[dict[str, Any]]:
    async with PageClient(url, secret) as page:
        return await page.tastes()


async def _stop(url: str, secret: str) -> dict[str, Any] | None:
    async with PageClient(url, secret) as page:
        await page.stop_rehearsal()
        return await page.rehearsal()


async def _rehearse(
    url: str, secret: str, taste: str, rounds: int | None, *, quiet: bool
) -> dict[str, Any] | None:
    console = Console(stderr=True, quiet=quiet, highlight=False)
    async with PageClient(url, secret) as page:
        await _wait_for_model(page, console)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    state: dict[str, Any] | None = None
    with Progress(*columns, console=console, disable=quiet) as bar:
        task = bar.add_task("rehearsing", total=None, left="")
        # Ctrl-C cancels the wait inside, which stops the rehearsal before it leaves.
        async for state in run_rehearsal(url, secret, taste, rounds, poll_s=POLL_S):
            left = "" if state.get("eta_s") is None else f"about {duration(float(state['eta_s']))} left"
            text = f"👍 {state['liked']}  👎 {state['disliked']}"
            bar.update(task, description=text, total=state["total"], completed=state["done"], left=left)
    return state


async def _wait_for_model(page: PageClient, console: Console) -> None:
    """Samples and rehearsals need the model: wait a while for one that is still loading."""
    ends_s = time.monotonic() + MODEL_WAIT_S
    told = False
    while (server := (await page.loop()).get("server") or {}).get("status", "ok") != "ok":
        if time.monotonic() > ends_s or server.get("status") == "failed":
            detail = visible(str(server.get("detail") or "it doesn't answer"))
            raise CommandError(f"The model server isn't ready: {detail}")
        if not told:
            console.print("Waiting for the model to load.")
            told = True
        await asyncio.sleep(POLL_S)


def register(app: typer.Typer) -> None:
    """Add this topic's commands."""
    for command in (rehearse, sample):
        app.command(rich_help_panel="Playground")(command)
