"""`python -m bot.playground --config PATH`: the local stand-in for Discord, with its page."""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
from pathlib import Path

import structlog

from bot.playground import community
from bot.playground.errors import PortInUseError
from bot.playground.loop_view import LoopSources
from bot.playground.page_client import RUN_FILE
from bot.playground.rehearsal import RehearsalSettings
from bot.playground.server import Playground, PlaygroundLoop, PlaygroundSettings
from bot.serving.client import ModelClient
from storage import logs
from storage.config import Config, load_config
from storage.conversations import scope_of
from storage.database import Database
from storage.errors import StorageError
from storage.processes import ProcessLock

log = structlog.get_logger(__name__)


def main() -> int:
    """Run until SIGTERM or SIGINT; 2 for a problem that a restart can't cure."""
    parser = argparse.ArgumentParser(
        prog="python -m bot.playground", description="The local stand-in for Discord."
    )
    parser.add_argument("--config", type=Path, default=None, help="strop.toml (default: ./strop.toml)")
    arguments = parser.parse_args()
    logs.configure("playground")
    try:
        config = load_config(arguments.config, os.environ)
        if not config.playground:
            print("A Discord token is set, so there is no playground: unset DISCORD_TOKEN.", file=sys.stderr)
            return 2
        lock = ProcessLock(config.run / "playground.lock")
        with lock.acquire("Another playground (process {pid}) already uses this folder: stop it first."):
            asyncio.run(_serve(config))
    except (StorageError, PortInUseError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


async def _serve(config: Config) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    database = await asyncio.to_thread(Database.open, config.database)
    try:
        async with _model_client(config) as client, _playground(config, database, client) as playground:
            run_file = config.run / RUN_FILE
            await asyncio.to_thread(write_run_file, run_file, playground)
            log.info("playground.started", url=playground.base_url)
            try:
                await stopping.wait()
            finally:
                await asyncio.to_thread(run_file.unlink, missing_ok=True)
    finally:
        await asyncio.to_thread(database.close)


def _model_client(config: Config) -> ModelClient:
    key = config.server.api_key.get_secret_value() if config.server.api_key else None
    if config.server.base_url:
        return ModelClient(config.server.base_url, api_key=key)
    return ModelClient.from_run_dir(config.run, api_key=key)


def _playground(config: Config, database: Database, client: ModelClient) -> Playground:
    scope = scope_of(config.trainer.scope, community.GUILD_ID)
    page = config.playground_page
    sources = LoopSources(
        database,
        client,
        scope,
        trainer_lock=config.run / "trainer.lock",
        min_liked=config.trainer.min_liked,
        min_raters=config.trainer.min_raters,
        min_votes=config.gate.min_votes,
    )
    rehearsal = RehearsalSettings(
        up=config.discord.rating_up[0],
        down=config.discord.rating_down[0],
        scope=scope,
        min_liked=config.trainer.min_liked,
    )
    loop = PlaygroundLoop(sources, rehearsal)
    return Playground(PlaygroundSettings(host=page.host, port=page.port), loop)


def write_run_file(path: Path, playground: Playground) -> None:
    """Tell the bot and the command line where the playground is, readable by this user only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "url": playground.base_url,
        "api": playground.api_url,
        "gateway": playground.gateway_url,
        "token": playground.token,
        "secret": playground.secret,
        "pid": os.getpid(),
    }
    half = path.with_suffix(".tmp")
    with contextlib.suppress(FileNotFoundError):
        half.unlink()
    with os.fdopen(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump(record, file)
    half.replace(path)


if __name__ == "__main__":
    sys.exit(main())
