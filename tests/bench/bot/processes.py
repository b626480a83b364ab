"""The real processes of a measurement: model server, bot and training; Discord's stand-in is in this one."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bot.playground.discord import community
from bot.playground.server import Playground, PlaygroundSettings
from bot.serving.client import ModelClient
from bot.serving.errors import ServingError
from storage.config import Config, load_config
from storage.process import locks
from tests.bench.bot.relay import Relay

START_S = 600.0
NICE = 19


class BenchError(Exception):
    """The measurement can't be made."""


@dataclass
class Stage:
    """What a measurement acts on. ``shown`` has the moment of the bot's first words to each message.

    ``writing`` are the bot's unfinished messages, ``answered`` counts the finished ones; ``bot_id`` is the
    bot's process.
    """

    home: Path
    playground: Playground
    relay: Relay
    bot_id: int
    shown: dict[int, float] = field(default_factory=dict)
    answered: int = 0
    writing: dict[int, dict[str, Any]] = field(default_factory=dict)
    _askers: dict[int, int] = field(default_factory=dict)
    _stopped: set[int] = field(default_factory=set)

    def ask(self, text: str, who: int, channel_id: int) -> tuple[int, float]:
        """Ask the bot something; return the message and the moment."""
        now = time.monotonic()
        mention = f"<@{community.BOT_ID}> {text}"
        message_id = int(self.playground.backend.send_message(channel_id, who, mention)["id"])
        self._askers[message_id] = who
        return message_id, now

    def hear(self, event: str, data: dict[str, Any]) -> None:
        """Note the bot's answers; what stands below one tells whether it is finished."""
        reference = (data.get("message_reference") or {}).get("message_id")
        if event not in ("MESSAGE_CREATE", "MESSAGE_UPDATE") or reference is None:
            return
        message_id = int(data["id"])
        if event == "MESSAGE_CREATE":
            self.shown.setdefault(int(reference), time.monotonic())
        if _button(data, "stop") is not None:
            self.writing[message_id] = data
        elif _button(data, "regenerate") is not None:
            self.writing.pop(message_id, None)
            self.answered += 1

    def stop_all(self) -> None:
        """Press the button below each reply that is being written, once."""
        for message_id, data in self.writing.items():
            if message_id in self._stopped:
                continue
            self._stopped.add(message_id)
            who = self._askers[int(data["message_reference"]["message_id"])]
            button = _button(data, "stop")
            if button is not None:
                self.playground.backend.press_component(int(data["channel_id"]), message_id, who, button)


def _button(message: dict[str, Any], action: str) -> str | None:
    """Return the custom id of a button of this kind below a message."""
    found = (button["custom_id"] for row in message.get("components") or [] for button in row["components"])
    return next((each for each in found if f":{action}" in each), None)


@asynccontextmanager
async def set_up(home: Path, models: Path, streams: int, say: Callable[[str], None]) -> AsyncIterator[Stage]:
    """Start everything but the training; whatever was started ends with the block."""
    async with AsyncExitStack() as stack:
        _link_models(home, models)
        config = _configure(home, streams, "")
        say("the model server starts")
        stack.enter_context(_ending(_start_serving(config)))
        target = await _served_at(config)
        relay = await stack.enter_async_context(Relay(target))
        playground = await stack.enter_async_context(Playground(PlaygroundSettings()))
        _configure(home, streams, relay.base_url)
        _announce(config, playground)
        say("the bot starts")
        bot = stack.enter_context(_ending(_start_bot(home)))
        made = Stage(home, playground, relay, bot.pid)
        playground.backend.on_page_event(made.hear)
        await _until(lambda: playground.gateway.online and len(playground.backend.commands()) > 0, "the bot")
        yield made


def _link_models(home: Path, models: Path) -> None:
    models.mkdir(parents=True, exist_ok=True)
    (home / "models").symlink_to(models.absolute(), target_is_directory=True)


def _configure(home: Path, streams: int, base_url: str) -> Config:
    """Write the configuration: the defaults, with room for so many replies at once."""
    text = (
        f"[model]\nslots = {streams}\ncontext_tokens = 768\n[chat]\ncontext_tokens = 512\n"
        f'[server]\nport = 0\nbase_url = "{base_url}"\n'
    )
    (home / "strop.toml").write_text(text, encoding="utf-8")
    return load_config(home / "strop.toml", {"STROP_HOME": str(home)})


def _announce(config: Config, playground: Playground) -> None:
    """Tell the bot where Discord's stand-in is, as the playground's own process does."""
    addresses = {"api": playground.api_url, "gateway": playground.gateway_url, "token": playground.token}
    (config.run / "playground.json").write_text(json.dumps(addresses), encoding="utf-8")


def _start_serving(config: Config) -> subprocess.Popen[bytes]:
    process = _start(config.home, "serving", "bot.serving", stdin=subprocess.PIPE)
    if process.stdin is not None:
        process.stdin.write(json.dumps(config.server_slice()).encode())
        process.stdin.close()
    return process


def _start_bot(home: Path) -> subprocess.Popen[bytes]:
    return _start(
        home, "bot", "tests.bench.bot.watched_bot", str(home / "strop.toml"), str(home / "lags.json")
    )


@asynccontextmanager
async def training(stage: Stage) -> AsyncIterator[None]:
    """Let gradient steps of a QLoRA run go on beside, at the trainer's priority."""
    folder = next(path.parent for path in (stage.home / "models").glob("*/model.safetensors"))
    module = "tests.bench.serving.training_child"
    child = _start(stage.home, "training", module, str(folder), nice=NICE, stdout=subprocess.PIPE)
    try:
        if child.stdout is None or not await asyncio.to_thread(child.stdout.readline):
            raise BenchError(f"The training ended at once; see {stage.home / 'training.log'}.")
        yield
    finally:
        child.kill()
        child.wait()


def _start(
    home: Path, name: str, module: str, *arguments: str, nice: int = 0, **pipes: Any
) -> subprocess.Popen[bytes]:
    quiet = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "TOKENIZERS_PARALLELISM": "false"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DISCORD_", "STROP_"))}
    command = ["nice", "-n", str(nice), sys.executable, "-m", module, *arguments]
    with (home / f"{name}.log").open("ab") as log:
        process: subprocess.Popen[bytes] = subprocess.Popen(
            command,
            env={**kept, **quiet, "STROP_HOME": str(home), "STROP_PLAYGROUND": "1"},
            stderr=log,
            **{"stdout": log, **pipes},
        )
    return process


class _ending:
    """Ends a process with the block: asked first, then forced."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def __enter__(self) -> subprocess.Popen[bytes]:
        return self._process

    def __exit__(self, *_: object) -> None:
        locks.end(self._process, 30)


async def _served_at(config: Config) -> str:
    """Return the model server's address once its model is loaded."""
    pointer = config.run / "server.json"
    await _until(pointer.exists, "the model server")
    async with ModelClient.from_run_dir(config.run) as client:
        ends_at = time.monotonic() + START_S
        while True:
            try:
                health = await client.health()
            except ServingError:
                health = None
            if health is not None and health.status == "ok":
                found = json.loads(await asyncio.to_thread(pointer.read_text, "utf-8"))
                return str(found["base_url"])
            if time.monotonic() > ends_at or (health is not None and health.status == "failed"):
                detail = health.detail if health else "no answer"
                raise BenchError(f"The model server has no model: {detail}.")
            await asyncio.sleep(0.5)


async def _until(check: Callable[[], Any], what: str) -> None:
    ends_at = time.monotonic() + START_S
    while not check():
        if time.monotonic() > ends_at:
            raise BenchError(f"Waited {START_S:.0f} s for {what}.")
        await asyncio.sleep(0.1)
