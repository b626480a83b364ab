"""The command `strop`: one module a topic. It starts processes and writes rows; it never loads a model."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from bot.cli import (
    adapters,
    data,
    experiment,
    imports,
    members,
    processes,
    run_history,
    runs,
    settings,
    stats,
    tasting,
)
from bot.cli.browser import dashboard, datasette
from bot.cli.first_start import models, setup
from bot.cli.playground import rehearsal
from bot.cli.transfer import adapter_export, adapter_import
from bot.errors import BotError
from bot.serving.errors import ServingError
from storage.errors import ConfigError, StorageError
from storage.process.locks import AlreadyRunningError

EXIT_ERROR = 1
EXIT_CONFIGURATION = 2


class _Group(TyperGroup):
    """Turns every foreseeable fault into its sentence on stderr and an exit code, never a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            typer.echo(f"The configuration has {_problems(error)}:", err=True)
            for problem in error.problems:
                typer.echo(f"  {problem}", err=True)
            raise typer.Exit(EXIT_CONFIGURATION) from error
        except AlreadyRunningError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(EXIT_CONFIGURATION) from error
        except (BotError, StorageError, ServingError) as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(getattr(error, "exit_code", EXIT_ERROR)) from error
        except BrokenPipeError:
            raise
        except OSError as error:
            typer.echo(_trouble(error), err=True)
            raise typer.Exit(EXIT_ERROR) from error


def _trouble(error: OSError) -> str:
    """The sentence for a file, folder or connection that the system refuses."""
    where = f"{error.filename}: " if error.filename is not None else ""
    return f"{where}{error.strerror or error}. Check the path, its permissions and the disk."


def _problems(error: ConfigError) -> str:
    count = len(error.problems)
    return "a problem" if count == 1 else f"{count} problems"


app = typer.Typer(
    cls=_Group,
    name="strop",
    help="A Discord bot that retrains itself from its community's ratings, and only gets sharper.",
    epilog="Start with `strop up`: without a Discord token it opens a playground in your browser.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
)
for topic in (
    processes,
    runs,
    run_history,
    experiment,
    stats,
    datasette,
    tasting,
    adapters,
    adapter_import,
    adapter_export,
    settings,
    members,
    rehearsal,
    dashboard,
    data,
    imports,
    models,
    setup,
):
    topic.register(app)
