"""`strop sample` and `strop rehearse`: they press the buttons of the running playground's page.

`strop rehearse --apart` brings processes and a home of its own instead.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bot.cli.errors import CommandError, UsageError
from bot.cli.launch.console import LOUD_LEVELS, visible
from bot.cli.playground import isolated_rehearsal
from bot.cli.playground.isolated_rehearsal import Request
from bot.cli.session import ConfigOption, JsonOption, load, session
from bot.cli.transfer.prompt_files import prompts_in
from bot.language.durations import duration
from bot.playground.errors import RehearsalError
from bot.playground.page.client import PageClient, read_run_file, run_rehearsal
from bot.playground.simulation.custom_tastes import SWITCHES, VALUES, parse_wishes, read_description, wish
from bot.playground.simulation.prompts import REHEARSAL_PROMPTS
from bot.playground.simulation.rehearsal import Cast
from bot.playground.simulation.tastes import TASTES
from storage.config import Config
from storage.process.locks import ProcessLock

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
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            "-p",
            help="Your own prompts: a text file with one per line, or what `strop import` reads.",
        ),
    ] = None,
    want: Annotated[
        list[str] | None,
        typer.Option("--want", "-w", help="A taste of your own, a feature each: see --list."),
    ] = None,
    members: Annotated[
        int | None, typer.Option("--members", min=3, help="How many members rate.", show_default="10")
    ] = None,
    noise: Annotated[
        float | None,
        typer.Option(
            "--noise", min=0.0, max=1.0, help="How much one opinion wavers, of 1.", show_default="0.12"
        ),
    ] = None,
    trolls: Annotated[
        int | None,
        typer.Option(
            "--trolls", min=0, help="Members who rate everything, and the wrong way.", show_default="0"
        ),
    ] = None,
    is_apart: Annotated[
        bool,
        typer.Option(
            "--apart", help="From the first question to the verdict, with processes and a home of its own."
        ),
    ] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="With --apart: a setting of its own, as trainer.epochs=2.", metavar="KEY=VALUE"
        ),
    ] = None,
    into: Annotated[
        Path | None,
        typer.Option(
            "--into", help="With --apart: where to.", show_default="a new folder in STROP_HOME/rehearsals"
        ),
    ] = None,
    show: Annotated[bool, typer.Option("--list", help="List the tastes, and what --want takes.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Stop the running rehearsal.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Let simulated members chat with the real bot in the running playground and rate by a taste.

    Ctrl-C stops the rehearsal; what was rated stays rated. --taste takes a key or a TOML file that describes
    your own. With --apart, nothing has to run: a rehearsal has processes and a folder of its own, from which
    nothing reaches your deployment; it retrains, and says by the taste what the loop made of it, on prompts
    that it kept back. That takes minutes on a CPU.

    Examples:

        strop rehearse --list

        strop rehearse --taste short-question && strop retrain --wait

        strop rehearse --apart --prompts ours.txt --want question --want words=20 --want avoid=certainly

        strop rehearse --apart --taste warm --members 20 --trolls 4 --set trainer.epochs=2 --json
    """
    if show:
        _show_tastes(as_json=as_json)
        return
    if (settings or into) and not is_apart:
        raise UsageError("--set and --into need --apart: the running playground has settings of its own.")
    cast = _cast(members, noise, trolls)
    if is_apart:
        chosen = _chosen(taste, want)
        own = _own_prompts(config, prompts) if prompts else REHEARSAL_PROMPTS
        _apart(config, Request(chosen, own, cast, rounds, tuple(settings or ())), into, as_json=as_json)
        return
    if stop:
        state = _run(_stop(*_playground(config)))
    else:
        chosen = _chosen(taste, want)
        if prompts:
            cast["prompts"] = _own_prompts(config, prompts)
        state = _run(_rehearse(*_playground(config), chosen, rounds, cast, quiet=as_json))
    if as_json:
        typer.echo(json.dumps(state, ensure_ascii=False))
    else:
        typer.echo(visible(str((state or {}).get("message") or "No rehearsal has run.")))


def _chosen(taste: str | None, want: list[str] | None) -> str | dict[str, Any]:
    """The key of a taste, or the description of one's own; raises UsageError with what can't be."""
    if (taste is None) == (want is None):
        raise UsageError("Choose a taste with --taste or --want; `strop rehearse --list` shows them.")
    if taste in TASTES:
        return taste
    try:
        if want is None and taste is not None and not Path(taste).suffix:
            raise UsageError(f"There is no taste {taste!r}; there are {', '.join(TASTES)}, or a TOML file.")
        described = parse_wishes(want or ()) if taste is None else read_description(Path(taste))
        wish(described)
    except RehearsalError as error:
        raise UsageError(visible(str(error))) from error
    return described


def _own_prompts(config: ConfigOption, path: Path) -> tuple[str, ...]:
    """The prompts of a file; members' consent is that of the deployment, which need not exist."""
    if not load(config)[0].database.is_file():
        return tuple(prompt.text for prompt in prompts_in(path, None).prompts)
    with session(config) as opened:
        return tuple(prompt.text for prompt in prompts_in(path, opened).prompts)


def _cast(members: int | None, noise: float | None, trolls: int | None) -> dict[str, Any]:
    """What differs from the usual; everybody votes where everybody was asked for."""
    given = {"members": members, "noise": noise, "trolls": trolls}
    return {name: value for name, value in given.items() if value is not None}


def _apart(config: ConfigOption, request: Request, into: Path | None, *, as_json: bool) -> None:
    """Rehearse apart, and say what the loop made of it."""
    base, _ = load(config)
    home = (into or isolated_rehearsal.fresh_home(base)).expanduser().absolute()
    request = replace(request, cast={"voters": request.cast.get("members", Cast().members), **request.cast})
    if problem := Cast(**request.cast).problem():
        raise UsageError(problem)
    own, path = isolated_rehearsal.prepare(base, request, home)
    console = Console(stderr=True, quiet=as_json, highlight=False)
    lock = ProcessLock(own.run / "strop.lock")
    with (
        lock.acquire("A rehearsal already runs there (process {pid}): choose another folder with --into."),
        console.status("") as status,
    ):
        work = isolated_rehearsal.rehearse(
            own, path, request, Quiet(console), lambda said: status.update(visible(said))
        )
        outcome = _run(work)
    if as_json:
        typer.echo(json.dumps(outcome.as_json(), ensure_ascii=False))
        return
    _tell_outcome(outcome)


def _tell_outcome(outcome: isolated_rehearsal.Outcome) -> None:
    typer.echo(visible(str(outcome.chat.get("message", ""))))
    typer.echo(f"The run: {visible(outcome.run.message)}")
    if outcome.worth is not None:
        found = outcome.worth
        typer.echo(
            f"By the taste itself, on {found.prompts} prompts that were kept back: {found.before:.2f} "
            f"before, {found.after:.2f} from the challenger, {found.gain:+.2f} (95 % CI {found.low:+.2f} to "
            f"{found.high:+.2f})."
        )
    typer.echo(f"{outcome.verdict}\n")
    for sample in outcome.samples:
        typer.echo(f"> {visible(sample['prompt'])}")
        for side in ("before", "after"):
            typer.echo(f"  {side} ({sample[f'{side}_utility']:.2f}): {visible(sample[side])}")
    typer.echo(
        f"\nIt lies in {outcome.home}; `STROP_HOME={outcome.home} strop up` shows it, `rm -r` forgets it."
    )


class Quiet:
    """Where the processes of a rehearsal tell what happens: only trouble is worth a line."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, process: str, sentence: str, *, level: str = "info", **fields: object) -> None:
        """Tell a warning or an error."""
        if level in LOUD_LEVELS:
            self._console.print(f"{process}: {visible(sentence)}", markup=False)

    def output(self, process: str, line: str) -> None:
        """Leave what a process printed to its log."""


def _show_tastes(*, as_json: bool) -> None:
    tastes = [
        {"key": each.key, "title": each.title, "description": each.description, "example": each.example}
        for each in TASTES.values()
    ]
    features = {name: told for name, (_, told) in SWITCHES.items()} | VALUES
    if as_json:
        typer.echo(json.dumps({"tastes": tastes, "features": features}, ensure_ascii=False))
        return
    for taste in tastes:
        typer.echo(
            f"{taste['key']}: {taste['title']}\n    {taste['description']}\n    e.g. {taste['example']}"
        )
    typer.echo("\nA taste of your own, by --want (question, not:concrete, words=20, warm*2) or in TOML:")
    for name, told in features.items():
        typer.echo(f"    {name}: {told}")


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


async def _stop(url: str, secret: str) -> dict[str, Any] | None:
    async with PageClient(url, secret) as page:
        await page.stop_rehearsal()
        return await page.rehearsal()


async def _rehearse(
    url: str,
    secret: str,
    taste: str | dict[str, Any],
    rounds: int | None,
    cast: dict[str, Any],
    *,
    quiet: bool,
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
        async for state in run_rehearsal(url, secret, taste, rounds, cast=cast, poll_s=POLL_S):
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
