"""`strop models`: bases that are known to work, for this machine, and how to have one."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from bot.cli.errors import EXIT_INTERRUPTED, CommandError
from bot.cli.session import ConfigOption, JsonOption, load
from bot.diagnostics.machine import size_text, this_machine
from bot.diagnostics.run_estimate import workload
from bot.serving.model import catalogue
from bot.serving.model.catalogue import Choice, Entry, Machine, Needs, Workload
from bot.serving.model.sources import BaseSource, automatic, prepared_hashes, resolve
from storage.config import Config
from storage.db.database import Database
from storage.errors import StorageError
from storage.learning import bases
from storage.learning.bases import Measured

POLL_S = 0.2
UNMEASURED = "not measured"


@dataclass(frozen=True)
class Row:
    """A base of the catalogue on this machine."""

    entry: Entry
    needs: Needs
    measured: Measured
    fits: str

    @property
    def speed(self) -> str:
        """Tokens a second, and whether that was measured."""
        return _figure(self.measured.tokens_per_s, self.needs.tokens_per_s)

    @property
    def minutes(self) -> str:
        """Minutes a run, likewise."""
        return _figure(self.measured.run_minutes, self.needs.run_minutes)


def models(ctx: typer.Context, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List bases that are known to work, with what each takes on this machine.

    Memory is estimated from the base's shape, by the rules by which server and trainer refuse what doesn't
    fit. Speed and minutes are measured where this deployment has answered and trained with a base, else
    estimated (with a ~); nothing was measured on a GPU.

    Examples:

        strop models

        strop models get Qwen3-4B-Instruct-2507

        strop models --json
    """
    if ctx.invoked_subcommand is not None:
        return
    settings, _ = load(config)
    machine = this_machine(settings.model.device)
    choice = automatic(machine, settings.models, playground=settings.playground)
    rows = _rows(settings, machine)
    if as_json:
        typer.echo(json.dumps([_record(row, choice, settings) for row in rows], ensure_ascii=False))
        return
    _print(rows, choice, settings)
    typer.echo(f'"auto" takes {choice.entry.id}: {choice.why}.')
    typer.echo("Any other Hugging Face id or folder of a supported architecture works too (model.base).")


def get(
    name: Annotated[str, typer.Argument(help="A base of `strop models`, or any Hugging Face id.")],
    config: ConfigOption = None,
) -> None:
    """Download a base now, so that the next start needn't. An interrupted download goes on where it was.

    Its architecture is checked before its weights are asked for, and memory and disk before anything large.

    Examples:

        strop models get SmolLM2-360M-Instruct

        strop models get Qwen/Qwen3-8B
    """
    settings, _ = load(config)
    source = _source(name, settings)
    if source.kind != "hub":
        typer.echo(f"{source.id} came with the installation: nothing has to be downloaded.")
        return
    found = _download(source, settings)
    typer.echo(f"{source.id} is here ({found.revision[:12]}). To use it, set in strop.toml:")
    typer.echo(f'  [model]\n  base = "{source.id}"\n  revision = "{found.revision}"')


def _source(name: str, settings: Config) -> BaseSource:
    if name == "auto":
        machine = this_machine(settings.model.device)
        chosen = automatic(machine, settings.models, playground=settings.playground).entry
    else:
        chosen = catalogue.find(name) or catalogue.BUNDLED
        if chosen.is_bundled and name.lower() != chosen.id.lower():
            if "/" not in name or Path(name).exists():
                raise CommandError(
                    f"{name} is no base of `strop models` and no Hugging Face id (owner/name)."
                )
            revision = settings.model.revision if name == settings.model.base else ""
            return resolve(name, revision, automatic=chosen)
    return resolve("auto", "", automatic=chosen)


def _download(source: BaseSource, settings: Config) -> BaseSource:
    from bot.serving.model import hub

    room = catalogue.room_bytes(this_machine(settings.model.device))
    console = Console(stderr=True, highlight=False)
    try:
        with _shown(source, console):
            return hub.download(source, room_bytes=room, progress=lambda said: console.print(str(said)))
    except KeyboardInterrupt:
        typer.echo("Interrupted: what came is kept, and the same command goes on from there.", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None


@contextmanager
def _shown(source: BaseSource, console: Console) -> Iterator[None]:
    """Show how much of a base has come, as the files on the disk say it."""
    from bot.serving.model import hub

    known = catalogue.find(source.id)
    done = threading.Event()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(source.id, total=known.download_bytes if known else None)

        def follow() -> None:
            while not done.wait(POLL_S):
                bar.update(task, completed=hub.downloaded_bytes(source))

        following = threading.Thread(target=follow, daemon=True)
        following.start()
        try:
            yield
        finally:
            done.set()
            following.join()
            bar.update(task, completed=hub.downloaded_bytes(source))


def _rows(config: Config, machine: Machine) -> list[Row]:
    reached = _measured(config)
    work = workload(config)
    speed = _speed(reached, machine, work)
    rows = []
    for entry in catalogue.CATALOGUE:
        found = catalogue.needs(entry.shape, machine, work, speed=speed)
        rows.append(Row(entry, found, reached.get(entry.id, Measured()), _fits(found, machine)))
    return rows


def _measured(config: Config) -> dict[str, Measured]:
    """Return what each base reached here; nothing where this deployment has no readable database yet."""
    if not config.database.is_file():
        return {}
    try:
        if Database.is_outdated(config.database):
            return {}
        with Database.open(config.database) as database:
            hashes = {entry.id: prepared_hashes(config.models, entry.id) for entry in catalogue.CATALOGUE}
            return database.read(
                lambda db: {name: bases.read_measured(db, found) for name, found in hashes.items()}
            )
    except StorageError:
        return {}


def _speed(reached: dict[str, Measured], machine: Machine, work: Workload) -> float:
    """Return how quick this machine is beside the estimate, by the largest base that was measured."""
    ratios = [
        found.tokens_per_s / expected
        for entry in catalogue.CATALOGUE
        if (found := reached.get(entry.id)) and found.tokens_per_s
        if (expected := catalogue.needs(entry.shape, machine, work).tokens_per_s)
    ]
    return ratios[-1] if ratios else 1.0


def _fits(found: Needs, machine: Machine) -> str:
    if not catalogue.serves(found, machine):
        return "too large"
    return "serves and trains" if catalogue.trains_beside(found, machine) else "serves only"


def _figure(found: float | None, estimated: float | None) -> str:
    if found is not None:
        return f"{found:.0f}" if found >= 10 else f"{found:.1f}"
    if estimated is None:
        return UNMEASURED
    return f"~{estimated:.0f}" if estimated >= 10 else f"~{estimated:.1f}"


def _print(rows: list[Row], choice: Choice, config: Config) -> None:
    lines = [("", "base", "licence", "download", "to serve", "to train", "here", "tokens/s", "minutes a run")]
    for row in rows:
        entry = row.entry
        lines.append(
            (
                _mark(entry, choice, config),
                entry.id,
                entry.licence,
                "none" if entry.is_bundled else f"{entry.download_bytes / 1e9:.1f} GB",
                size_text(row.needs.serve_bytes),
                size_text(row.needs.train_bytes),
                row.fits,
                row.speed,
                row.minutes,
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        typer.echo("  ".join(cells).rstrip())


def _mark(entry: Entry, choice: Choice, config: Config) -> str:
    marks = (entry == choice.entry, "auto"), (catalogue.find(config.model.base) == entry, "set")
    return ", ".join(word for there, word in marks if there)


def _record(row: Row, choice: Choice, config: Config) -> dict[str, Any]:
    entry = row.entry
    return {
        "id": entry.id,
        "revision": entry.revision,
        "licence": entry.licence,
        "parameters": entry.shape.parameters,
        "download_bytes": entry.download_bytes,
        "serve_bytes": row.needs.serve_bytes,
        "train_bytes": row.needs.train_bytes,
        "fits": row.fits,
        "tokens_per_s": {"measured": row.measured.tokens_per_s, "estimated": row.needs.tokens_per_s},
        "run_minutes": {"measured": row.measured.run_minutes, "estimated": row.needs.run_minutes},
        "auto": choice.why if entry == choice.entry else None,
        "configured": catalogue.find(config.model.base) == entry,
    }


def register(app: typer.Typer) -> None:
    """Add this topic's commands."""
    group = typer.Typer(invoke_without_command=True, help=models.__doc__)
    group.callback()(models)
    group.command()(get)
    app.add_typer(group, name="models", rich_help_panel="Set up")
