"""`strop export`, `strop track`, `strop audit`, `strop backup` and `strop restore`."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from bot.cli.errors import CommandError
from bot.cli.session import (
    ConfigOption,
    JsonOption,
    ScopeOption,
    choose_scope,
    list_scopes,
    load,
    session,
)
from bot.telemetry import tracker
from storage.admin import audit as audits
from storage.learning import eligibility, runs
from storage.learning.export import Shape, as_jsonl
from storage.learning.export import lines as lines_of
from storage.privacy import backup as backups
from storage.privacy import restore as restoring
from storage.process.locks import TRAINER_LOCK, is_locked

# So many of the latest runs of a scope are written into a tracker.
MOST_RUNS = 1_000


def export(
    output: Annotated[Path, typer.Argument(help="The file to write; - is standard output.")] = Path("-"),
    config: ConfigOption = None,
    scope: ScopeOption = None,
    shape: Annotated[
        Shape,
        typer.Option(
            "--format",
            help="chat: messages and counts; kto: labels; dpo: pairs (as TRL's trainers take them).",
        ),
    ] = Shape.CHAT,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:
    """Write the rated replies that may be trained on, one JSON object a line.

    Only what consent and provenance allow, without anybody's id. What was left out, and why, goes to stderr.

    Examples:

        strop export ratings.jsonl

        strop export --format kto - | head
    """
    with session(config) as opened:
        chosen = opened.database.read(lambda db: choose_scope(db, opened.config, scope))
        reference = opened.config.discord.training_permission_reference
        found = opened.database.read(
            lambda db: eligibility.eligible_rows(db, chosen, permission_reference=reference)
        )
    lines = lines_of(found.rows, shape)
    if str(output) == "-":
        _write(sys.stdout, lines)
    else:
        _write_file(output, lines, force=force)
    typer.echo(f"{len(lines)} lines from {len(found.rows)} rated replies of {chosen}.", err=True)
    for reason, count in found.excluded.items():
        typer.echo(f"Left out: {count} because {eligibility.reason(reason)}.", err=True)


def _write(stream: IO[str], lines: list[dict[str, Any]]) -> None:
    stream.write(as_jsonl(lines))
    stream.flush()


def _write_file(path: Path, lines: list[dict[str, Any]], *, force: bool) -> None:
    """Whole or not at all, and readable only by this user: these are people's words."""
    if path.exists() and not force:
        raise CommandError(f"{path} exists already: pass --force to replace it.")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            _write(file, lines)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise CommandError(f"{path} can't be written: {error.strerror}.") from error


def audit(
    config: ConfigOption = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="How many lines.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """Show who changed what, the newest first: promotions, runs, exports, settings, erasures.

    Examples:

        strop audit

        strop audit --limit 1000 --json
    """
    with session(config) as opened:
        entries = opened.database.read(lambda db: audits.latest(db, limit))
    if as_json:
        typer.echo(json.dumps([asdict(entry) for entry in entries], ensure_ascii=False))
        return
    for entry in entries:
        when = datetime.fromtimestamp(entry.created_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
        detail = " ".join(f"{key}={value}" for key, value in entry.detail.items() if value is not None)
        typer.echo(f"{when} {entry.actor} {entry.action} {detail}".rstrip())


def backup(
    dest: Annotated[
        Path | None, typer.Argument(help="A new folder (default: backups/<time> in the data folder).")
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy the database and the adapters, consistently and while Strop runs.

    Examples:

        strop backup

        strop backup /mnt/backups/strop-monday
    """
    with session(config) as opened:
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        made = backups.backup(opened.database, dest or opened.config.backups / now)
    if as_json:
        record = {"path": str(made.path), "files": made.files, "size_bytes": made.size_bytes}
        record["damaged_adapters"] = list(made.damaged)
        typer.echo(json.dumps({**record, "created_ms": made.created_ms}))
    else:
        size = f"{made.size_bytes / 1024**2:.1f} MiB"
        typer.echo(f"Backed up to {made.path}: {made.files} files, {size}, verified.")
    if made.damaged:
        names = ", ".join(made.damaged)
        typer.echo(f"Left out, because their files are damaged: {names}.", err=True)


def restore(
    source: Annotated[Path, typer.Argument(help="A folder that `strop backup` made.")],
    config: ConfigOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Put a backup in the place of the database. Stop Strop first; the former database is kept.

    Members who erased their data after the backup was made are erased again.

    Examples:

        strop restore data/backups/20260101T040000Z
    """
    settings, _ = load(config)
    for lock, what in (("strop.lock", "Strop"), (TRAINER_LOCK, "A trainer")):
        if is_locked(settings.run / lock):
            raise CommandError(f"{what} is running on {settings.data}: stop it first, then restore.")
    backups.verify(source)
    if settings.database.exists() and not yes:
        typer.confirm(f"Replace the database in {settings.data} by {source}?", abort=True, err=True)
    done = restoring.restore(source, settings.data)
    if as_json:
        kept = None if done.replaced is None else str(done.replaced)
        typer.echo(
            json.dumps(
                {
                    "database": str(done.database),
                    "replaced": kept,
                    "erased": list(done.erased),
                    "healed_adapters": list(done.healed),
                }
            )
        )
        return
    typer.echo(f"Restored {done.database} from {source}.")
    if done.replaced is not None:
        typer.echo(f"The former database is in {done.replaced}.")
    if done.healed:
        typer.echo(f"Adapters that were missing or damaged: {', '.join(done.healed)} came back.")
    if done.erased:
        count = len(done.erased)
        typer.echo(f"{count} member{'s' if count != 1 else ''} who erased their data since then stay erased.")


def track(
    config: ConfigOption = None,
    project: Annotated[str, typer.Option(help="The project in Trackio.")] = "strop",
) -> None:
    """Write finished runs into Trackio, with their curves, figures and cards; those it has are skipped.

    Trackio keeps them on this machine (`trackio show` opens them). Members' words are not among them. It is
    an extra: pip install "strop[trackio]", or pipx install trackio.

    Examples:

        strop track

        strop track --project my-server
    """
    python = tracker.interpreter()
    with session(config) as opened:
        settings = opened.config
        scopes = opened.database.read(lambda db: list_scopes(db, settings))
        found = opened.database.read(
            lambda db: [run for scope in scopes for run in runs.list_finished(db, scope, MOST_RUNS)]
        )
        folder = settings.runs
    new = tracker.send(python, project, [tracker.record(run, _card(folder / run.id)) for run in found])
    typer.echo(f"{new} of {len(found)} runs are new in Trackio's project {project}: `trackio show` opens it.")


def _card(folder: Path) -> str:
    """Return the card of a run's adapter, which an erasure may have taken."""
    file = folder / "card.md"
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def register(app: typer.Typer) -> None:
    """Add this topic's commands."""
    for command in (export, track, audit, backup, restore):
        app.command(rich_help_panel="Data")(command)
