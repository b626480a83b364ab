"""`strop retrain` and `strop status`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from bot.cli.errors import EXIT_INTERRUPTED, CommandError
from bot.cli.launch.console import visible
from bot.cli.session import (
    ConfigOption,
    JsonOption,
    ScopeOption,
    Session,
    ask_server,
    base_hash,
    choose_scope,
    list_scopes,
    read_server_health,
    session,
)
from bot.diagnostics.run_estimate import run_estimate
from bot.language.durations import duration
from bot.learning.next_run import Outlook, next_run
from bot.serving.protocol import Health
from storage.db import key_values
from storage.learning import dry_run, loop_status, run_summary, run_times, runs
from storage.learning.loop_status import LoopStatus
from storage.learning.runs import Run
from storage.process import memory as memory_use
from storage.process.locks import trainer_is_running

POLL_S = 0.5
PHASES = {
    "snapshot": "collecting the rated replies",
    "train": "training the challenger",
    "evaluate": "comparing it with the champion",
    "decide": "deciding",
    "swap": "swapping",
    "votes": "waiting for blind votes",
}
BAD_OUTCOMES = frozenset({"failed", "cancelled"})


def retrain(
    config: ConfigOption = None,
    scope: ScopeOption = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the run and exit 1 if it fails.")] = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="Cancel the run that is queued or on.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what a run would use; nothing changes.")
    ] = False,
    objective: Annotated[
        str | None, typer.Option("--objective", help=f"For this run: {', '.join(dry_run.OBJECTIVES)}.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", min=1, max=20, help="For this run, instead of trainer.epochs.")
    ] = None,
    repeat: Annotated[
        str | None,
        typer.Option(
            "--repeat",
            metavar="RUN",
            help="Train this run's adapter again from its snapshot, to compare; promotes nothing.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a challenger now; it replaces the champion only if it proves itself.

    A run that is queued or on already is followed instead of queueing a second one. With --wait the exit code
    is 1 if the run failed or was cancelled; a refused challenger or too little data is an ordinary result.

    Examples:

        strop retrain --wait

        strop retrain --scope guild:123456789012345678 --json

        strop retrain --cancel

        strop retrain --dry-run

        strop retrain --repeat r4fab88d73ac6 --wait
    """
    own = _own_settings(objective, epochs)
    if repeat is not None:
        if own or scope or cancel or dry_run:
            raise CommandError("--repeat takes everything from the run that it repeats: give it alone.")
        _repeat(config, repeat, wait=wait, as_json=as_json)
        return
    with session(config) as opened:
        chosen = opened.database.read(lambda db: choose_scope(db, opened.config, scope))
        if dry_run:
            typer.echo(_prospect(opened, chosen, as_json=as_json))
            return
        if cancel:
            run = _cancel(opened, chosen)
        else:
            run = opened.database.write(
                lambda db: runs.enqueue(
                    db, scope=chosen, trigger="manual", requested_by=actor(), settings=own
                )
            )
            if wait:
                run = follow(opened, run, quiet=as_json)
        _report(opened, run, as_json=as_json)
    if wait and run.outcome in BAD_OUTCOMES:
        raise typer.Exit(1)


def _repeat(config: Path | None, beginning: str, *, wait: bool, as_json: bool) -> None:
    """Queue the repeat of a run, and with `wait` exit 1 if another adapter came out."""
    with session(config) as opened:
        original = opened.database.read(lambda db: run_summary.find_by_prefix(db, beginning))
        if not original.repeatable:
            raise CommandError(f"Run {original.id} can't be repeated: a member erased their data.")
        if original.adapter_id is None or original.snapshot_hash is None or "judge" in original.settings:
            raise CommandError(f"Run {original.id} can't be repeated: it trained no adapter.")
        run = opened.database.write(
            lambda db: runs.enqueue(
                db,
                scope=original.scope,
                trigger="manual",
                requested_by=actor(),
                settings={"repeat": original.id},
            )
        )
        if run.settings.get("repeat") != original.id:
            raise CommandError(f"Run {run.id} of {run.scope} is {run.state}: repeat the other one after it.")
        if wait:
            run = follow(opened, run, quiet=as_json)
        _report(opened, run, as_json=as_json)
    if wait and run.outcome in BAD_OUTCOMES:
        raise typer.Exit(1)


def _own_settings(objective: str | None, epochs: int | None) -> dict[str, Any]:
    if objective is not None and objective not in dry_run.OBJECTIVES:
        raise CommandError(f"--objective must be one of {', '.join(dry_run.OBJECTIVES)}; got {objective!r}.")
    chosen = {"objective": objective, "epochs": epochs}
    own = {key: value for key, value in chosen.items() if value is not None}
    return {"trainer": own} if own else {}


def _prospect(opened: Session, scope: str, *, as_json: bool) -> str:
    reference, settings = opened.config.discord.training_permission_reference, opened.config.trainer
    alive, health = trainer_is_running(opened.config), read_server_health(opened.config)
    base = health.base.id if health is not None and health.base is not None else ""
    estimate = run_estimate(opened.config, base, opened.config.model.base)
    found = opened.database.read(
        lambda db: dry_run.look(
            db, scope, permission_reference=reference, trainer_alive=alive, estimate=estimate
        )
    )
    if as_json:
        return json.dumps(dry_run.as_json(found, settings), ensure_ascii=False)
    return dry_run.text(found, settings).replace("**", "").replace("`", "")


def _cancel(opened: Session, scope: str) -> Run:
    run = opened.database.read(lambda db: runs.active(db, scope))
    if run is None:
        raise CommandError(f"No run of {scope} is queued or on: there is nothing to cancel.")
    opened.database.write(lambda db: runs.cancel(db, run.id, actor()))
    return opened.database.read(lambda db: runs.expect(db, run.id))


def follow(opened: Session, run: Run, *, quiet: bool) -> Run:
    """Show a run's progress until it is over; Ctrl-C leaves it running and ends the command."""
    try:
        return _until_over(opened, run, quiet=quiet)
    except KeyboardInterrupt:
        typer.echo("The run goes on; `strop status` shows it, `strop retrain --cancel` ends it.", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _until_over(opened: Session, queued: Run, *, quiet: bool) -> Run:
    console = Console(stderr=True, quiet=quiet, highlight=False)
    if not trainer_is_running(opened.config):
        console.print("No trainer is running: the run waits until `strop up` or `strop trainer` starts.")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=console, disable=quiet) as bar:
        task = bar.add_task("waiting for the trainer", total=1.0, left="")
        while True:
            run = opened.database.read(lambda db: runs.expect(db, queued.id))
            _show(bar, task, run)
            if run.state not in ("queued", "running"):
                return run
            time.sleep(POLL_S)


def _show(bar: Progress, task: TaskID, run: Run) -> None:
    text = PHASES.get(run.phase or "", "waiting for the trainer" if run.state == "queued" else "starting")
    note = f" · {visible(run.note)}" if run.note else ""
    left = "" if run.eta_s is None else f"about {duration(run.eta_s)} left"
    bar.update(task, completed=run.progress, description=f"{text}{note}", left=left)


def _report(opened: Session, run: Run, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(run_record(run), ensure_ascii=False))
    else:
        print_run(opened, run)


def print_run(opened: Session, run: Run) -> None:
    """Say how a run ended, or where it is."""
    if run.message:
        typer.echo(run.message)
        return
    waits = (
        ""
        if trainer_is_running(opened.config)
        else " No trainer is running: start `strop up` or `strop trainer`."
    )
    typer.echo(f"Run {run.id} of {run.scope} is {run.state}.{waits}")


def run_record(run: Run) -> dict[str, Any]:
    """A run as JSON for scripts."""
    fields = (
        "id",
        "scope",
        "state",
        "phase",
        "progress",
        "eta_s",
        "outcome",
        "message",
        "error",
        "adapter_id",
    )
    return {"run_id": run.id, **{name: getattr(run, name) for name in fields[1:]}}


def status(config: ConfigOption = None, scope: ScopeOption = None, as_json: JsonOption = False) -> None:
    """Show where the loop stands: ratings, what is missing, the run, the champion.

    Without --scope every scope is shown.

    Examples:

        strop status

        strop status --scope deployment --json
    """
    with session(config) as opened:
        health, server = ask_server(opened.config)
        settings = opened.config
        scopes = opened.database.read(
            lambda db: [choose_scope(db, settings, scope)] if scope else list_scopes(db, settings)
        )
        found = [_read(opened, one, health) for one in scopes]
        alive = trainer_is_running(opened.config)
        memory = memory_use.read_by_process(opened.config)
        recovered = opened.database.read(lambda db: key_values.get(db, key_values.RECOVERED_RATINGS))
        due_ms = opened.database.read(lambda db: key_values.get(db, key_values.NEXT_RUN))
        times = opened.database.read(
            lambda db: run_times.list_upcoming(db, settings.trainer, datetime.now(UTC))
        )
    if as_json:
        queue = None if health is None else {"running": health.running, **asdict(health.queue)}
        answer = {
            "server": server,
            "queue": queue,
            "trainer_alive": alive,
            "memory": memory,
            "next_run_ms": int(due_ms) if due_ms else None,
            "recovered_ratings": int(recovered or 0),
            "scopes": [each.as_json() for each in found],
        }
        typer.echo(json.dumps(answer, ensure_ascii=False))
        return
    typer.echo(f"Model server: {server}{_served_base(health)}")
    typer.echo(f"Trainer: {'running' if alive else 'not running'}")
    if times and alive:
        typer.echo(
            f"By the clock: {', '.join(run_times.format_time(each, settings.trainer) for each in times)}"
        )
    if memory:
        typer.echo(memory_use.sentence(memory))
    if recovered:
        typer.echo(f"Recovered: {recovered} ratings that were given while the bot was away")
    if not found:
        typer.echo("Nobody has talked to the bot yet.")
    for each in found:
        typer.echo(f"\n{each.scope}\n{loop_status.status_text(each)}")
        outlook = Outlook(each, int(due_ms) if due_ms else None, settings.trainer.min_new_ratings, alive)
        typer.echo(f"Next run: {next_run(outlook)}")


def _served_base(health: Health | None) -> str:
    """Say which base answers, for whom it stands in, and how much there is to do."""
    if health is None:
        return ""
    name = health.base.id if health.base else ""
    said = [name, health.detail or (health.traffic() if health.is_ready else "")]
    detail = ", ".join(filter(None, said))
    return f" ({detail})" if detail else ""


def _read(opened: Session, scope: str, health: Any) -> LoopStatus:
    trainer, gate = opened.config.trainer, opened.config.gate
    reference = opened.config.discord.training_permission_reference
    return opened.database.read(
        lambda db: loop_status.read(
            db,
            scope,
            base_hash(db, scope, health),
            min_liked=trainer.min_liked,
            min_raters=trainer.min_raters,
            min_votes=gate.min_votes,
            permission_reference=reference,
        )
    )


def actor() -> str:
    """Who acts, for the audit log: the user of this machine."""
    return f"cli:{os.environ.get('USER') or os.environ.get('LOGNAME') or os.getuid()}"


def report(
    run: Annotated[
        str, typer.Argument(help="A run's id (its beginning is enough).", show_default="newest")
    ] = "",
    config: ConfigOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Where to write it.", show_default="report.html in the run's folder"
        ),
    ] = None,
) -> None:
    """Write a run's report: one HTML page with curves, scores, samples, influence and the decision.

    The page needs no network and holds what members asked: treat it like the database. In its usual place an
    erasure removes it with the run.

    Examples:

        strop report

        strop report r4fab88d73ac6 --out report.html
    """
    with session(config) as opened:
        command = [sys.executable, "-m", "trainer.report", "--run", run]
        command += ["--config", str(opened.config_path)] if opened.config_path.is_file() else []
        command += ["--out", str(out.expanduser().absolute())] if out else []
    # The trainer's own program: the command line never imports it.
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        lines = ended.stderr.strip().splitlines()
        raise CommandError(lines[-1] if lines else "The report could not be written.")
    typer.echo(ended.stdout.strip())


def register(app: typer.Typer) -> None:
    """Add this topic's commands."""
    for command in (retrain, status, report):
        app.command(rich_help_panel="Learn")(command)
