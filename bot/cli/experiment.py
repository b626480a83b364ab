"""`strop experiment`: several settings, of the trainer or another base, trained and judged side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from bot.cli.errors import CommandError, UsageError
from bot.cli.runs import BAD_OUTCOMES, actor, follow, print_run, run_record
from bot.cli.session import ConfigOption, JsonOption, ScopeOption, Session, choose_scope, session
from bot.serving.errors import BaseRefusedError
from bot.serving.model import sources
from bot.serving.model.sources import BaseSource
from storage import config_edit, experiments
from storage.config import Config
from storage.experiments import Asked, Changes
from storage.learning import run_summary, runs
from storage.learning.runs import Run

MINUTES = 60.0
PAGE = "experiment.html"
# In columns; longer lines wrap.
WIDEST = 240


def experiment(
    tried: Annotated[
        list[str] | None,
        typer.Option(
            "--try",
            metavar="SETTINGS",
            help='A setting beside the configured ones: "rank=8", "epochs=2 rank=32", "base=NAME"; '
            "may be repeated.",
        ),
    ] = None,
    config: ConfigOption = None,
    scope: ScopeOption = None,
    minutes: Annotated[
        float, typer.Option("--minutes", min=1, help="Begin no other setting that would end later than this.")
    ] = MINUTES,
    resume: Annotated[
        str | None,
        typer.Option(
            "--resume", metavar="RUN", help="Go on with an experiment that was left or ran out of time."
        ),
    ] = None,
    show: Annotated[
        str | None, typer.Option("--show", metavar="RUN", help="Only show an experiment that is over.")
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Write the winner into strop.toml, if it is more than noise.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train several settings from the same ratings and judge them side by side. Nothing is promoted.

    They are judged on the development split; the conversations that the gate judges by are not looked at.
    The configured settings are always among them. To see how much is noise, try another seed.

    base=NAME trains on another base of `strop models`, Hugging Face id or folder that is on this machine. It
    is served beside the one that answers for as long as it is tried, and judged on the same prompts by the
    same judge; the base as it is stands in the table too. Needs Strop's own model server and the memory.

    Examples:

        strop experiment --try rank=8 --try rank=32 --try seed=1

        strop experiment --try "epochs=2 sft_learning_rate=3e-4" --minutes 30

        strop experiment --try base=SmolLM2-360M-Instruct --try "base=SmolLM2-360M-Instruct rank=32"

        strop experiment --resume r4fab88d73ac6 --minutes 60

        strop experiment --show r4fab88d73ac6 --write
    """
    if sum(map(bool, (tried, resume, show))) != 1:
        raise UsageError("Give settings with --try, or one experiment with --resume or --show.")
    with session(config) as opened:
        if show:
            run = _finished(opened, show)
        else:
            run = follow(opened, _queued(opened, scope, tried or [], minutes, resume), quiet=as_json)
        _tell(opened, run, as_json=as_json)
        if write:
            _write(opened, run, quiet=as_json)
    if run.outcome in BAD_OUTCOMES:
        raise typer.Exit(1)


def _queued(
    opened: Session, scope: str | None, tried: Sequence[str], minutes: float, resume: str | None
) -> Run:
    if resume is not None:
        earlier = _named(opened, resume)
        if not earlier.repeatable or earlier.snapshot_hash is None:
            raise CommandError(f"Experiment {earlier.id} can't be resumed: its snapshot is gone.")
        asked = Asked(Asked.of(earlier.settings).changes, minutes, earlier.id)
        chosen = earlier.scope
    else:
        changes = experiments.parse_changes(opened.config.trainer, tried)
        asked = Asked(tuple(_with_base(each, opened.config) for each in changes), minutes)
        chosen = opened.database.read(lambda db: choose_scope(db, opened.config, scope))
    run = opened.database.write(
        lambda db: runs.enqueue(
            db, scope=chosen, trigger="manual", requested_by=actor(), settings=asked.as_settings()
        )
    )
    if run.settings != asked.as_settings():
        raise CommandError(f"Run {run.id} of {run.scope} is {run.state}: begin the experiment after it.")
    return run


def _with_base(changes: Changes, config: Config) -> Changes:
    """Return a setting with its base as the trainer will look for it; say now what stands against it."""
    name = experiments.base_of(changes)
    if not name:
        return changes
    if config.server.base_url:
        raise CommandError(
            "A base can be tried only beside Strop's own model server: server.base_url names another one."
        )
    if name == "auto":
        raise CommandError("auto is no base of its own: `strop models` lists those that can be tried.")
    try:
        source = sources.named(name)
    except BaseRefusedError as error:
        raise CommandError(str(error)) from error
    if not _is_here(source, config):
        raise CommandError(f"{name} is not on this machine: `strop models get {name}` brings it.")
    return {**changes, experiments.BASE: source.setting}


def _is_here(source: BaseSource, config: Config) -> bool:
    if source.kind != "hub" or sources.prepared_hashes(config.models, source.id):
        return True
    # Imported here: the hub's client takes as long to load as the rest of the command.
    from bot.serving.model.hub import find_downloaded

    return find_downloaded(source) is not None


def _named(opened: Session, beginning: str) -> Run:
    run = opened.database.read(lambda db: run_summary.find_by_prefix(db, beginning))
    if "experiment" not in run.settings:
        raise CommandError(f"Run {run.id} is no experiment: `strop report {run.id}` shows it.")
    return run


def _finished(opened: Session, beginning: str) -> Run:
    run = _named(opened, beginning)
    if run.state in ("queued", "running"):
        raise CommandError(f"Experiment {run.id} is {run.state}: it has nothing to show yet.")
    return run


def _tell(opened: Session, run: Run, *, as_json: bool) -> None:
    found = run.metrics.experiment
    page = opened.config.runs / run.id / PAGE
    if as_json:
        shown = {**run_record(run), "experiment": found, "page": str(page) if page.exists() else None}
        typer.echo(json.dumps(shown, ensure_ascii=False))
        return
    if found:
        _print_whole(table(found["standings"]))
        if any(each.get("base") for each in found["standings"]):
            typer.echo("* in the tokens of another base: compare it only with the rows of that base.")
    print_run(opened, run)
    for name in (found or {}).get("left_out", []):
        typer.echo(f"Left out for want of time: {name}. `strop experiment --resume {run.id}` goes on.")
    for name, why in (found or {}).get("not_tried", {}).items():
        typer.echo(f"Not tried: {name}. {why}")
    if found and page.exists():
        typer.echo(f"The page with curves and intervals: {page}")


def _print_whole(shown: Table) -> None:
    """Print a table as wide as it is: in 80 columns, as in a pipe, its headings would be cut."""
    console = Console(highlight=False)
    needed = console.measure(shown, options=console.options.update(max_width=WIDEST)).maximum
    console.width = max(console.width, needed)
    console.print(shown)


def table(standings: Sequence[Mapping[str, Any]]) -> Table:
    """The settings under each other, the best first."""
    shown = Table(box=None, pad_edge=False)
    shown.add_column("setting")
    for name in ("P(liked)", "beside configured", "", "perplexity", "accuracy", "general loss", "min", "MiB"):
        shown.add_column(name, justify="right")
    for each in standings:
        shown.add_row(*_cells(each))
    return shown


def _cells(standing: Mapping[str, Any]) -> list[str]:
    difference = standing["difference"]
    beside = (
        ""
        if difference is None
        else (f"{difference['value']:+.3f} ({difference['low']:+.3f} to {difference['high']:+.3f})")
    )
    says = "" if difference is None else standing["surely"] or "noise"
    return [
        standing["name"],
        _figure(standing["liked"], ".3f"),
        beside,
        "forgets" if standing["forgetful"] else says,
        _figure(standing["perplexity"], ".2f") + ("*" if standing.get("base") else ""),
        _figure(standing["accuracy"], ".2f"),
        f"{standing['general_rise']:+.1%}",
        _figure(standing["minutes"] or None, ".1f"),
        _figure(standing["peak_mib"] or None, "d"),
    ]


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _write(opened: Session, run: Run, *, quiet: bool) -> None:
    """Put the winner into the configuration file; say why not where there is none."""
    found = run.metrics.experiment or {}
    winner = found.get("winner")
    if not winner:
        typer.echo(
            "Nothing was written: no setting is better than the configured ones by more than noise.", err=True
        )
        return
    base = experiments.base_of(winner)
    model = {"base": base, "revision": found["winner_revision"]} if base else {}
    config_edit.write_sections(
        opened.config_path, {"model": model, "trainer": experiments.of_trainer(winner)}
    )
    if not quiet:
        typer.echo(
            f"{experiments.name_of(winner)}: written into {opened.config_path}, in force from the next start."
        )
        if base:
            typer.echo(
                f"Adapters belong to a base: from then on {base} itself answers, until a run on it brings "
                "its first champion. With the former model.base the former champions answer again."
            )


def register(app: typer.Typer) -> None:
    """Add this topic's command."""
    app.command(rich_help_panel="Learn")(experiment)
