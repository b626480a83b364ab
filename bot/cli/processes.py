"""`strop up` and the commands that run one process alone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from bot.cli.errors import CommandError
from bot.cli.launch.children import children, forget_stale, serving, watch
from bot.cli.launch.console import Stage, stage_for
from bot.cli.launch.supervisor import ChildSpec, Supervisor, python
from bot.cli.session import ConfigOption, load, read_server_health
from storage.config import Config
from storage.process.locks import ProcessLock

ONE_AT_A_TIME = (
    "Strop already runs on this data folder (process {pid}): "
    "stop it first, or set STROP_HOME to another folder."
)


def up(config: ConfigOption = None) -> None:
    """Start everything on this machine: bot, model server, trainer, and without a token the playground.

    Ctrl-C drains: replies in flight finish. A second Ctrl-C stops at once.

    Examples:

        strop up

        DISCORD_TOKEN_FILE=/run/secrets/token strop up --config /etc/strop/strop.toml
    """
    settings, path = load(config)
    lock = ProcessLock(settings.run / "strop.lock")
    with lock.acquire(ONE_AT_A_TIME):
        forget_stale(settings.run)
        stage = stage_for()
        where = "Playground" if settings.playground else "Discord"
        stage.say("strop", f"{where}, data in {settings.data}, logs in {settings.data / 'logs'}")
        try:
            code = asyncio.run(_run(settings, children(settings, path, os.environ), stage))
        finally:
            stage.close()
    raise typer.Exit(code)


async def _run(config: Config, specs: list[ChildSpec], stage: Stage) -> int:
    supervisor = Supervisor(specs, announcer=stage, log_dir=config.data / "logs")
    watching = asyncio.create_task(watch(config, stage))
    try:
        return await supervisor.run()
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching


def bot(
    config: ConfigOption = None,
    process: Annotated[
        int, typer.Option("--process", help="Which of several processes this is (discord.processes), from 0.")
    ] = 0,
) -> None:
    """Run only the Discord bot. It needs a model server and, for retraining, a trainer.

    Examples:

        DISCORD_TOKEN=… strop bot

        DISCORD_TOKEN=… strop bot --process 1
    """
    settings, path = load(config)
    if settings.playground:
        os.environ["STROP_PLAYGROUND"] = "1"
    _become(python("bot", "--config", str(path), "--process", str(process)))


def serve(config: ConfigOption = None) -> None:
    """Run only the model server (an OpenAI-compatible HTTP server).

    Examples:

        strop serve

        STROP_API_KEY=… strop serve --config strop.toml
    """
    settings, _ = load(config)
    if settings.server.base_url:
        raise CommandError(
            f"server.base_url names another model server ({settings.server.base_url}): nothing to run here."
        )
    spec = serving(settings, os.environ)
    _feed_stdin(spec.stdin or b"")
    _become(spec.argv, dict(spec.env or {}))


def trainer(config: ConfigOption = None) -> None:
    """Run only the trainer: its schedule and the queue of runs.

    Examples:

        strop trainer
    """
    _, path = load(config)
    _become(python("trainer", "--config", str(path)))


def playground(config: ConfigOption = None) -> None:
    """Run only the local Discord stand-in and its page.

    Examples:

        strop playground
    """
    settings, path = load(config)
    if not settings.playground:
        raise CommandError(
            "A Discord token is set, so there is no playground: unset DISCORD_TOKEN to use it."
        )
    _become(python("bot.playground", "--config", str(path)))


def health(config: ConfigOption = None) -> None:
    """Ask the model server of this configuration whether it answers: exit code 0 or 1, for health checks.

    Examples:

        strop health --config /etc/strop/strop.toml
    """
    settings, _ = load(config)
    found = read_server_health(settings)
    if found is None:
        raise CommandError("The model server doesn't answer.")
    typer.echo(found.status)


def _feed_stdin(data: bytes) -> None:
    # A pipe holds 64 KiB and the slice is far smaller, so this doesn't block.
    reading, writing = os.pipe()
    os.write(writing, data)
    os.close(writing)
    os.dup2(reading, 0)
    os.close(reading)


def _become(argv: tuple[str, ...], environment: dict[str, str] | None = None) -> NoReturn:
    """Turn this process into the program: its signals, exit code and terminal are then the caller's own."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(Path(argv[0]), argv, environment if environment is not None else dict(os.environ))


def register(app: typer.Typer) -> None:
    """Add this topic's commands."""
    for command in (up, bot, serve, trainer, playground, health):
        app.command(rich_help_panel="Run")(command)
