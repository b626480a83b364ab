"""What `strop up` starts, and how it tells that each part is ready."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp

from bot.cli.launch.console import Stage
from bot.cli.launch.supervisor import ChildSpec, python
from bot.cli.session import model_client
from bot.serving.client import ModelClient
from bot.serving.errors import ServingError, UnknownModelError
from bot.serving.model.capabilities import ServerCapabilities
from bot.serving.protocol import Health
from storage.config import Config

POLL_S = 0.5
WITHHELD = "withheld"
"""Stands for the token where a process needs to know that there is one, not which."""
SECRET_VARIABLES = ("DISCORD_TOKEN", "DISCORD_TOKEN_FILE", "STROP_API_KEY", "STROP_ALERTS_WEBHOOK")


def children(config: Config, config_path: Path, environment: Mapping[str, str]) -> list[ChildSpec]:
    """The processes of this deployment in the order in which they stop: the bot first, the model server last.

    Secrets travel in the environment of those who need them and on the model server's stdin, never as
    arguments. The token is the bot's alone.
    """
    arguments = ("--config", str(config_path))
    environment = {**environment, **config.network.environment()}
    playground = config.playground
    bot_environment = {**environment, "STROP_PLAYGROUND": "1"} if playground else dict(environment)
    specs = [
        *(bot(number, arguments, bot_environment) for number in range(config.discord.processes)),
        ChildSpec("trainer", python("trainer", *arguments), env=without_token(environment)),
    ]
    if playground:
        specs.append(ChildSpec("playground", python("bot.playground", *arguments), env=dict(environment)))
    if not config.server.base_url:
        specs.append(serving(config, environment))
    return specs


def bot(number: int, arguments: tuple[str, ...], environment: Mapping[str, str]) -> ChildSpec:
    """One of the bot's processes, numbered from 0; each runs its part of the shards."""
    name, more = (f"bot-{number}", ("--process", str(number))) if number else ("bot", ())
    return ChildSpec(name, python("bot", *arguments, *more), env=environment)


def without_token(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment that says whether there is a token, and not more."""
    token = {name: value for name, value in environment.items() if name.startswith("DISCORD_TOKEN") and value}
    kept = {name: value for name, value in environment.items() if not name.startswith("DISCORD_TOKEN")}
    return {**kept, "DISCORD_TOKEN": WITHHELD} if token else kept


def serving(config: Config, environment: Mapping[str, str]) -> ChildSpec:
    """The model server: its slice of the configuration on stdin, and no token in its environment."""
    return ChildSpec(
        "serving",
        python("bot.serving"),
        stdin=json.dumps(config.server_slice()).encode(),
        env={
            name: value
            for name, value in {**environment, **config.network.environment()}.items()
            if name not in SECRET_VARIABLES
        },
    )


def forget_stale(run_dir: Path) -> None:
    """Remove the process files of an earlier start whose process is gone."""
    for name in ("server.json", "playground.json"):
        path = run_dir / name
        if path.exists() and not _alive(read_process_file(path)):
            path.unlink(missing_ok=True)


def read_process_file(path: Path) -> dict[str, Any] | None:
    """What a process left in `run/` about itself, or None while it isn't there (or half written)."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def _alive(record: Mapping[str, Any] | None) -> bool:
    try:
        os.kill(int((record or {})["pid"]), 0)
    except (KeyError, ValueError, TypeError, ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


async def watch(config: Config, stage: Stage) -> None:
    """Tell when the page can be opened and when the model is loaded; ends when both are."""
    async with asyncio.TaskGroup() as tasks:
        if config.playground:
            tasks.create_task(_watch_page(config.run / "playground.json", stage))
        tasks.create_task(_watch_model(config, stage))


async def _watch_page(path: Path, stage: Stage) -> None:
    stage.progress("page", "starting")
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=3)) as http:
        while True:
            record = await asyncio.to_thread(read_process_file, path)
            url = str((record or {}).get("url", ""))
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, ValueError):
                if url and _alive(record):
                    async with http.get(url) as answer:
                        if answer.status < 500:
                            break
            await asyncio.sleep(POLL_S)
    stage.progress("page", "")
    stage.announce_page(url)


async def _watch_model(config: Config, stage: Stage) -> None:
    told = ""
    stage.progress("model", "starting")
    async with model_client(config) as client:
        while True:
            with contextlib.suppress(ServingError):
                health = await client.health()
                if health.is_ready:
                    break
                if health.detail and health.detail != told:
                    told = health.detail
                    stage.progress("model", told)
            await asyncio.sleep(POLL_S)
        try:
            offered = await _offered(client, health)
        except UnknownModelError as error:
            stage.progress("model", "")
            stage.say("model", f"{error} Name one of them as server.model in strop.toml.", level="error")
            return
    stage.progress("model", "")
    base = health.base
    what = f"{base.id} on {base.device or 'an unknown device'}" if base else "the model"
    stage.say("model", f"{what} is loaded: the bot can answer.", level="good")
    if base is not None:
        stage.say("model", f"{base.id}: {base.capabilities.sentence()}.")
    if base is not None and base.stands_in_for:
        stage.say("model", health.detail, level="warning")
    if offered is not None and offered.missing():
        stage.say("model", offered.sentence(), level="warning")


async def _offered(client: ModelClient, health: Health) -> ServerCapabilities | None:
    """Ask a server that isn't ours what it offers; raises UnknownModelError where it lacks `server.model`."""
    if health.base is not None:
        return None
    try:
        await client.models()
        return await client.capabilities()
    except UnknownModelError:
        raise
    except ServingError:
        return None
