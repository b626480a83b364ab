"""What most commands need: the configuration, the database, one scope, one base."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from bot.cli.errors import CommandError, UsageError
from bot.playground.discord.community import GUILD_ID as PLAYGROUND_GUILD_ID
from bot.serving.client import ModelClient
from bot.serving.errors import RequestRejectedError, ServingError
from bot.serving.protocol import Health
from storage.chat.conversations import scope_of
from storage.config import Config, load_config
from storage.db.database import Connection, Database
from storage.process import home

DEFAULT_CONFIG = Path("strop.toml")
HEALTH_TIMEOUT_S = 3.0

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        envvar="STROP_CONFIG",
        help="The configuration file (default: strop.toml in this folder, if there is one).",
        show_default=False,
    ),
]
ScopeOption = Annotated[
    str | None,
    typer.Option("--scope", help="Whose adapter: guild:ID or deployment (default: the only one there is)."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


@dataclass(frozen=True)
class Session:
    """An open database with the configuration that led to it."""

    config: Config
    config_path: Path
    database: Database


def config_path(option: Path | None) -> Path:
    """The absolute path of the configuration file; a default one need not exist, a named one must.

    Raises UsageError where it does not.
    """
    path = (option or DEFAULT_CONFIG).expanduser().absolute()
    if option is not None and not path.is_file():
        raise UsageError(f"There is no configuration file at {path}: `strop init` writes one.")
    return path


def load(option: Path | None) -> tuple[Config, Path]:
    """Load the configuration; raises ConfigError with every problem at once."""
    path = config_path(option)
    return load_config(path, os.environ), path


@contextmanager
def session(option: Path | None) -> Iterator[Session]:
    """Open the database of this configuration, which must exist already.

    Raises CommandError where it does not.
    """
    config, path = load(option)
    if not config.database.is_file():
        if home.unusable(config.data):
            raise CommandError(home.fault(config.data))
        where = "The playground" if config.playground else "This deployment"
        raise CommandError(f"{where} has no data at {config.data} yet: start it once with `strop up`.")
    database = Database.open(config.database)
    try:
        yield Session(config, path, database)
    finally:
        database.close()


def list_scopes(db: Connection, config: Config) -> list[str]:
    """The scopes that can have an adapter of their own here, in a stable order."""
    if config.trainer.scope == "deployment":
        return ["deployment"]
    rows = db.query(
        "select scope from conversations union select scope from runs"
        " union select scope from champions order by 1"
    )
    # In a deployment where each guild trains its own adapter, "deployment" only collects direct messages.
    return [str(row["scope"]) for row in rows if str(row["scope"]).startswith("guild:")]


def choose_scope(db: Connection, config: Config, option: str | None) -> str:
    """The scope that was asked for, or the only one; raises UsageError naming the choices."""
    scopes = list_scopes(db, config)
    if not scopes:
        raise CommandError("Nobody has talked to the bot yet, so there is nothing to train or show.")
    listed = f"there {'is' if len(scopes) == 1 else 'are'}: {', '.join(scopes)}."
    if option is None and len(scopes) > 1:
        raise UsageError(f"Say which scope with --scope; {listed}")
    if option is not None and option not in scopes:
        raise UsageError(f"There is no scope {option!r}; {listed}")
    return option or scopes[0]


def import_scope(opened: Session, option: str | None) -> str:
    """The scope to import for: as `choose_scope`, or any server's that is named, or the playground's.

    What is brought in may come before anybody has talked to the bot.

    Raises UsageError where no server is named and none is known.
    """
    if (
        option is not None
        and re.fullmatch(r"guild:\d{1,20}", option)
        and opened.config.trainer.scope == "guild"
    ):
        return option
    scopes = opened.database.read(lambda db: list_scopes(db, opened.config))
    if not scopes and option is None and opened.config.playground:
        return scope_of(opened.config.trainer.scope, PLAYGROUND_GUILD_ID)
    if not scopes:
        raise UsageError("Say for which server with --scope guild:ID (in Discord: Copy Server ID).")
    return opened.database.read(lambda db: choose_scope(db, opened.config, option))


def read_server_health(config: Config) -> Health | None:
    """What the model server says, or None if it doesn't answer quickly."""
    return ask_server(config)[0]


def ask_server(config: Config) -> tuple[Health | None, str]:
    """What the model server says, and its state in a few words: "down" if it doesn't answer quickly."""

    async def ask() -> Health:
        async with model_client(config) as client, asyncio.timeout(HEALTH_TIMEOUT_S):
            return await client.health()

    try:
        found = asyncio.run(ask())
    except RequestRejectedError as error:
        return None, f"refuses the request ({error})"
    except (ServingError, TimeoutError):
        return None, "down"
    return found, found.status


def model_client(config: Config) -> ModelClient:
    """A client for the configured model server: an external one, or ours through its run folder."""
    server = config.server
    return ModelClient.connect(server.base_url, config.run, server.key, config.server_proxy, server.model)


def base_hash(db: Connection, scope: str, health: Health | None) -> str:
    """The base that is served now, else the one that this scope used last; empty if there was none."""
    if health is not None and health.base is not None and health.base.hash:
        return health.base.hash
    row = next(
        db.query(
            "select base_hash from promotions where scope = ? order by created_ms desc, id desc limit 1",
            [scope],
        ),
        None,
    )
    if row is None:
        row = next(db.query("select base_hash from champions where scope = ? limit 1", [scope]), None)
    return str(row["base_hash"]) if row else ""
