"""`python -m bot.playground --config PATH`: the local stand-in for Discord, with its page."""

import argparse
import asyncio
import functools
import os
import signal
import sys
from pathlib import Path

import structlog

from bot.dashboard.loop_view import LoopSources
from bot.delivery.reply_controls import FINISHED
from bot.playground.discord import community
from bot.playground.discord.backend import Payload
from bot.playground.errors import PortInUseError
from bot.playground.page.client import RUN_FILE
from bot.playground.page.imports import ImportSettings
from bot.playground.saved_state import LastingState, read_chat, read_state, write_private, write_state
from bot.playground.server import Playground, PlaygroundLoop, PlaygroundSettings
from bot.playground.simulation.rehearsal import RehearsalSettings
from bot.serving.client import ModelClient
from storage.chat.conversations import scope_of
from storage.config import Config, load_config
from storage.db.database import Database
from storage.errors import StorageError
from storage.process import logs
from storage.process.locks import ProcessLock, trainer_is_running

log = structlog.get_logger(__name__)

# As many messages of the chat are shown again after a restart as a page can hold at ease.
SHOWN_AGAIN = 1000


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
            asyncio.run(_serve(config, arguments.config))
    except (StorageError, PortInUseError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


async def _serve(config: Config, config_path: Path | None) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    database = await asyncio.to_thread(Database.open_patiently, config.database, stopping.is_set)
    try:
        state = await asyncio.to_thread(read_state, config.run)
        server = config.server
        async with (
            ModelClient.connect(
                server.base_url, config.run, server.key, config.server_proxy, server.model
            ) as client,
            _playground(config, config_path, database, client, state) as playground,
        ):
            await asyncio.to_thread(write_state, config.run, state)
            scope = scope_of(config.trainer.scope, community.GUILD_ID)
            shown = await database.aread(lambda db: read_chat(db, scope, SHOWN_AGAIN))
            restored = playground.backend.restore(shown, config.replies.buttons)
            log.info("playground.restored", messages=restored)
            writing = _keep_commands(playground, config.run)
            run_file = config.run / RUN_FILE
            await asyncio.to_thread(write_private, run_file, _run_record(playground))
            log.info("playground.started", url=playground.base_url)
            try:
                await stopping.wait()
            finally:
                await asyncio.to_thread(run_file.unlink, missing_ok=True)
                await asyncio.gather(*writing)
    finally:
        await asyncio.to_thread(database.close)


def _playground(
    config: Config, config_path: Path | None, database: Database, client: ModelClient, state: LastingState
) -> Playground:
    scope = scope_of(config.trainer.scope, community.GUILD_ID)
    page = config.playground_page
    sources = LoopSources(
        database,
        client,
        scope,
        trainer_is_running=functools.partial(trainer_is_running, config),
        min_liked=config.trainer.min_liked,
        min_raters=config.trainer.min_raters,
        min_votes=config.gate.min_votes,
        min_new_ratings=config.trainer.min_new_ratings,
    )
    rehearsal = RehearsalSettings(
        up=config.discord.rating_up[0],
        down=config.discord.rating_down[0],
        scope=scope,
        min_liked=config.trainer.min_liked,
    )
    where = [] if config_path is None else ["--config", str(config_path.absolute())]
    report = (sys.executable, "-m", "trainer.report", *where)
    imports = ImportSettings(
        database,
        client,
        scope,
        config.data,
        tuple(config.discord.rating_up),
        tuple(config.discord.rating_down),
        config.discord.training_permission_reference,
    )
    buttons = bool(set(FINISHED) & set(config.replies.buttons))
    loop = PlaygroundLoop(sources, rehearsal, report, imports, buttons)
    playground = Playground(PlaygroundSettings(host=page.host, port=page.port, token=state.token), loop)
    playground.backend.restore_commands(state.commands)
    return playground


def _run_record(playground: Playground) -> dict[str, str | int]:
    """Tells the bot and the command line where the playground is."""
    return {
        "url": playground.base_url,
        "api": playground.api_url,
        "gateway": playground.gateway_url,
        "token": playground.token,
        "secret": playground.secret,
        "pid": os.getpid(),
    }


def _keep_commands(playground: Playground, run_dir: Path) -> "set[asyncio.Task[None]]":
    """Store the bot's commands whenever it registers them; the tasks that write are in the returned set."""
    writing: set[asyncio.Task[None]] = set()

    def keep(event: str, data: Payload) -> None:
        if event == "COMMANDS_CHANGED":
            state = LastingState(playground.token, data["commands"])
            task = asyncio.create_task(asyncio.to_thread(write_state, run_dir, state))
            writing.add(task)
            task.add_done_callback(writing.discard)

    playground.backend.on_page_event(keep)
    return writing


if __name__ == "__main__":
    sys.exit(main())
