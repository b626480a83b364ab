"""`strop datasette`: look at a copy of the database in Datasette, with dates and ready queries."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from bot.cli.errors import CommandError
from bot.cli.session import ConfigOption, session
from storage.process.locks import ProcessLock
from storage.telemetry import readable_copy

METADATA = Path(__file__).parents[3] / "deploy/datasette.yaml"
# The longest that a ready query may take.
QUERY_MS = 10_000


def datasette(
    config: ConfigOption = None,
    port: Annotated[
        int, typer.Option(help="Where it listens, on this machine only.", min=0, max=65535)
    ] = 8001,
    open_browser: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Look at the database in Datasette: a copy of now, which is deleted when it ends.

    It shows members' words, so it listens on 127.0.0.1 alone. What is erased meanwhile stays in the copy
    until you end it with Ctrl-C. Datasette is an extra: pip install "strop[datasette]".

    Examples:

        strop datasette --open
    """
    program = _program()
    with session(config) as opened:
        folder = opened.config.run / "datasette"
        lock = ProcessLock(opened.config.run / "datasette.lock")
        with lock.acquire("`strop datasette` (process {pid}) is open already: end it first."):
            # A copy that a killed process left behind goes first.
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700)
            try:
                readable_copy.write(opened.database, folder / "strop.db")
                code = _serve(program, folder / "strop.db", port, open_browser=open_browser)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    if code:
        raise CommandError(
            f"Datasette ended with code {code}, as it says above. Is port {port} in use? Try another --port."
        )


def _program() -> list[str]:
    """Return how Datasette is started: as a package of this environment, or as a program of its own."""
    if importlib.util.find_spec("datasette") is not None:
        return [sys.executable, "-m", "datasette"]
    if (found := shutil.which("datasette")) is not None:
        return [found]
    raise CommandError(
        f"Datasette is not installed: run `{sys.executable} -m pip install datasette`, "
        "or `pipx install datasette`."
    )


def _serve(program: list[str], file: Path, port: int, *, open_browser: bool) -> int:
    command = [*program, "serve", str(file), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--setting", "sql_time_limit_ms", str(QUERY_MS)]
    if METADATA.is_file():
        command += ["--metadata", str(METADATA)]
    else:
        typer.echo("deploy/datasette.yaml is not here: no descriptions and ready queries.", err=True)
    if open_browser:
        command.append("--open")
    try:
        with subprocess.Popen(command) as child:
            try:
                return child.wait()
            except KeyboardInterrupt:
                child.terminate()
                child.wait()
                return 0
    except OSError as error:
        raise CommandError(f"Datasette can't be started ({error.strerror}).") from error


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Learn")(datasette)
