"""Run the bot: ``python -m bot [--config strop.toml]``."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import discord
import structlog

from bot.app import make_client
from bot.chat.answerer import Answerer
from bot.client import StropClient
from bot.errors import EXIT_NEEDS_A_PERSON, BotError, IntentsMissingError, StartupError, TokenRefusedError
from bot.gateway.playground_link import (
    PLAYGROUND_VARIABLE,
    PlaygroundLink,
    read_link,
    use_playground,
    wait_for_playground,
)
from bot.language import texts
from bot.services import Services
from bot.serving.client import ModelClient
from bot.telemetry.exporter import MetricsExporter
from storage.config import Config, load_config
from storage.db.database import Database
from storage.errors import ConfigError, CorruptDatabaseError, NewerDatabaseError, StorageError
from storage.process import home, logs
from storage.process.locks import AlreadyRunningError, ProcessLock, bot_lock

EXIT_CONFIG = 2
EXIT_RETRY = 1
LOGIN_RETRY_S = (2.0, 5.0, 15.0, 30.0, 60.0)
PLAYGROUND_WATCH_S = 3.0

_log = structlog.get_logger(__name__)
T = TypeVar("T")


def main() -> int:
    """Run until told to stop; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bot", description="Strop's Discord bot.")
    parser.add_argument("--config", type=Path, default=None, help="path of strop.toml")
    parser.add_argument("--process", type=int, default=0, help="which of discord.processes this is, from 0")
    arguments = parser.parse_args()
    logs.configure("bot")
    texts.load()
    # Strop never speaks; discord.py would warn about missing voice libraries at every start.
    discord.VoiceClient.warn_nacl = discord.VoiceClient.warn_dave = False
    try:
        config = _of_process(load_config(arguments.config, os.environ), arguments.process)
        lock = ProcessLock(config.run / bot_lock(arguments.process))
        with lock.acquire("Another bot (process {pid}) already uses this folder: stop it first."):
            if warning := home.network_warning(config.data):
                _log.warning(warning)
            playground = os.environ.get(PLAYGROUND_VARIABLE) == "1"
            return asyncio.run(run(config, playground=playground, process=arguments.process))
    except (ConfigError, AlreadyRunningError) as error:
        print(error, file=sys.stderr)
        return EXIT_CONFIG
    except StartupError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except (NewerDatabaseError, CorruptDatabaseError) as error:
        print(error, file=sys.stderr)
        return EXIT_NEEDS_A_PERSON
    except (StorageError, BotError) as error:
        print(error, file=sys.stderr)
        return EXIT_RETRY


def _of_process(config: Config, process: int) -> Config:
    """Return the configuration of one of several processes: each has a port for metrics of its own.

    Raises ConfigError for a process that isn't configured.
    """
    if not 0 <= process < config.discord.processes:
        last = config.discord.processes - 1
        raise ConfigError([f"--process: must be from 0 to {last} (discord.processes); got {process}"])
    if not process or not config.metrics.port:
        return config
    port = config.metrics.port + process
    return config.model_copy(update={"metrics": config.metrics.model_copy(update={"port": port})})


async def run(config: Config, *, playground: bool, process: int = 0) -> int:
    """Connect, and stay until a signal or a refusal; returns the exit code."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    link = await _until_stopped(_playground_link(config), stop) if playground else None
    if stop.is_set():
        return 0
    token = _token(config, link)
    database = await asyncio.to_thread(Database.open_patiently, config.database, stop.is_set)
    try:
        server = config.server
        async with ModelClient.connect(
            server.base_url, config.run, server.key, config.server_proxy, server.model
        ) as model:
            if link is not None:
                config = _reading_everything(config)
            client = make_client(
                Services(config, database, model, playground=link is not None, process=process)
            )
            return await _serve(client, token, stop, link, config.run)
    finally:
        await asyncio.to_thread(database.close)


async def _until_stopped(work: Coroutine[Any, Any, T], stop: asyncio.Event) -> T | None:
    """Return the work's result, or None as soon as the process is told to stop."""
    task, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        task.cancel()
        stopping.cancel()


async def _playground_link(config: Config) -> PlaygroundLink:
    link = await wait_for_playground(config.run)
    configured = config.discord.token
    use_playground(link, configured.get_secret_value() if configured else None)
    return link


def _token(config: Config, link: PlaygroundLink | None) -> str:
    if link is not None:
        return link.token
    if config.discord.token is None:
        raise StartupError(
            "There is no Discord token: set DISCORD_TOKEN or DISCORD_TOKEN_FILE, or run `strop up`, which "
            "starts the local playground where no token is needed."
        )
    return config.discord.token.get_secret_value()


def _reading_everything(config: Config) -> Config:
    """The playground has no developer portal in which somebody would have to switch message content on."""
    discord_section = config.discord.model_copy(update={"message_content": True})
    return config.model_copy(update={"discord": discord_section})


async def _serve(
    client: StropClient, token: str, stop: asyncio.Event, link: PlaygroundLink | None, run_dir: Path
) -> int:
    """Stay connected until told to stop, until Discord refuses, or until the playground was restarted."""
    waits = {asyncio.create_task(_connect(client, token)), asyncio.create_task(stop.wait())}
    watch = asyncio.create_task(_playground_changed(link, run_dir)) if link is not None else None
    if watch is not None:
        waits.add(watch)
    client.feature(MetricsExporter).start()
    try:
        done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            _log.info("bot.stopping", in_flight=client.feature(Answerer).in_flight)
        for task in done:
            task.result()
        return EXIT_RETRY if watch in done else 0
    finally:
        await client.shutdown()
        for task in waits:
            task.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


async def _connect(client: StropClient, token: str) -> None:
    """Sign in and stay connected; raises StartupError for what a person has to put right."""
    try:
        await _login(client, token)
        await client.connect()
    except discord.LoginFailure as error:
        raise TokenRefusedError(
            "Discord refuses the token: get a new one from Developer Portal > your application > Bot > "
            "Reset Token, and set DISCORD_TOKEN to it."
        ) from error
    except discord.PrivilegedIntentsRequired as error:
        raise IntentsMissingError(
            "Discord refuses the connection: discord.channels and discord.message_content need the switch "
            "Developer Portal > your application > Bot > Message Content Intent. Switch it on, or drop them."
        ) from error
    except discord.ConnectionClosed as error:
        if error.code == 4004:
            raise TokenRefusedError(
                "Discord closed the connection because the token is no longer valid: "
                "set DISCORD_TOKEN to a new one."
            ) from error
        raise BotError(f"Discord closed the connection for good (code {error.code}).") from error


async def _login(client: StropClient, token: str) -> None:
    """Log in; while Discord can't be reached, try again and again, each time after a longer wait."""
    attempt = 0
    while True:
        try:
            return await client.login(token)
        except discord.LoginFailure:
            raise
        except (TimeoutError, OSError, aiohttp.ClientError, discord.HTTPException) as error:
            wait_s = LOGIN_RETRY_S[min(attempt, len(LOGIN_RETRY_S) - 1)]
            _log.warning(
                "Discord can't be reached: trying again.", error=type(error).__name__, retry_s=wait_s
            )
            attempt += 1
            await client.http.close()
            # Closing the session closed its connector, which discord.py would use again.
            client.http.connector = discord.utils.MISSING
            await asyncio.sleep(wait_s)


async def _playground_changed(link: PlaygroundLink, run_dir: Path) -> None:
    """Return when the playground came back at another address or with another token."""
    while True:
        await asyncio.sleep(PLAYGROUND_WATCH_S)
        current = await asyncio.to_thread(read_link, run_dir)
        if current is not None and current != link:
            _log.info("playground.restarted")
            return


if __name__ == "__main__":
    sys.exit(main())
