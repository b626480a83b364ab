"""`strop dashboard`: the operators' page."""

from __future__ import annotations

import asyncio
import functools
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from bot.cli.errors import CommandError, UsageError
from bot.cli.runs import actor
from bot.cli.session import ConfigOption, Session, list_scopes, model_client, session
from bot.dashboard.guards import is_loopback
from bot.dashboard.loop_view import LoopSources
from bot.dashboard.server import Dashboard, DashboardSettings
from storage.process.locks import trainer_is_running

PORT = 8610
LEAST_TOKEN = 16


def dashboard(
    config: ConfigOption = None,
    host: Annotated[str, typer.Option("--host", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes any that is free.")] = PORT,
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", help="A file with the token that opens the page; it may also write."),
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Let the page leave rated replies out of training.")
    ] = False,
) -> None:
    """Show operators a page of this deployment: runs, reports, weekly ratings, what would train next, alarms.

    It only shows, and only on this machine. With --token-file whoever knows the token may use it, from
    elsewhere too: put a proxy with TLS before it. With --write, or the token, a rated reply can be left out
    of the next training and put back; the audit log says by whom. Ctrl-C ends it.

    Examples:

        strop dashboard

        strop dashboard --write

        strop dashboard --host 0.0.0.0 --token-file /etc/strop/dashboard.token
    """
    token = _token(token_file)
    if not token and not is_loopback(f"[{host}]" if ":" in host else host):
        raise UsageError(f"{host} is reached from other machines: give --token-file, or leave out --host.")
    with session(config) as opened:
        settings = DashboardSettings(
            host=host,
            port=port,
            token=token,
            write=write or bool(token),
            actor="dashboard:token" if token else actor(),
            reference="" if opened.config.playground else opened.config.discord.training_permission_reference,
        )
        asyncio.run(_serve(opened, settings))


def _token(path: Path | None) -> str:
    """Return the token; raises CommandError where the file can't be read or holds none that is safe."""
    if path is None:
        return ""
    try:
        token = path.expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"The token in {path} can't be read: {error}") from error
    if len(token) < LEAST_TOKEN:
        raise CommandError(f"The token in {path} is too short: take {LEAST_TOKEN} characters or more.")
    return token


async def _serve(opened: Session, settings: DashboardSettings) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    config, database = opened.config, opened.database
    where = ["--config", str(opened.config_path)] if opened.config_path.is_file() else []
    async with model_client(config) as client:
        sources = LoopSources(
            database,
            client,
            scope="",
            trainer_is_running=functools.partial(trainer_is_running, config),
            min_liked=config.trainer.min_liked,
            min_raters=config.trainer.min_raters,
            min_votes=config.gate.min_votes,
            min_new_ratings=config.trainer.min_new_ratings,
        )
        command = (sys.executable, "-m", "trainer.report", *where)
        async with Dashboard(
            settings,
            sources,
            lambda: database.read(lambda db: list_scopes(db, config)),
            config.data,
            command,
        ) as page:
            typer.echo(f"Dashboard: {page.url} ({'may write' if settings.write else 'read-only'})")
            await stopping.wait()


def register(app: typer.Typer) -> None:
    """Add this topic's command."""
    app.command(rich_help_panel="Learn")(dashboard)
