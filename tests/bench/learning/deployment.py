"""One deployment of the product for one simulated history: a home, a database, a model server, real runs."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import structlog

from bot.serving.client import SERVER_FILE, ModelClient
from bot.serving.errors import ServingError
from bot.serving.model.catalogue import BUNDLED
from storage.config import Config
from storage.config_sections import SamplingKeys
from storage.db.database import Database
from storage.learning import adapters, runs
from storage.learning.runs import Run
from storage.process import locks
from storage.sentences import Sentence
from tests.bench.learning.errors import BenchError
from tests.bench.learning.profile import Profile
from trainer import model_server
from trainer.schedule.queue import RunQueue

T = TypeVar("T")

log = structlog.get_logger()

GUILD = 9_000_000
CHANNEL = 9_000_100
SCOPE = f"guild:{GUILD}"
START_S = 600.0
STOP_S = 20.0
TICK_S = 0.5
NICE = 10


class World:
    """An open deployment; use `opened`."""

    def __init__(self, config: Config, config_path: Path, database: Database) -> None:
        self.config = config
        self.database = database
        self._config_path = config_path

    @property
    def sampling(self) -> SamplingKeys:
        """Return how the bundled base chooses its tokens in the chat."""
        return self.config.chat.for_base(BUNDLED.shape.parameters).sampling

    def ask(self, work: Callable[[ModelClient], Awaitable[T]]) -> T:
        """Do some work with a client of the model server."""

        async def connected() -> T:
            async with model_server.client_for(self.config) as client:
                return await work(client)

        return asyncio.run(connected())

    @property
    def base(self) -> tuple[str, str]:
        """Return the served base's id and hash."""
        described = self.ask(lambda client: client.health()).base
        if described is None:
            raise BenchError("The model server does not say which base it serves.")
        return described.id, described.hash

    @property
    def base_folder(self) -> str:
        """Return the folder of the served base."""
        described = self.ask(lambda client: client.health()).base
        if described is None:
            raise BenchError("The model server does not say which base it serves.")
        return described.folder

    def champion(self) -> str | None:
        """Return who answers; None is the base."""
        base_hash = self.base[1]
        return self.database.read(lambda db: adapters.champion(db, SCOPE, base_hash))

    def crown(self, adapter_id: str | None, reason: str) -> None:
        """Put an adapter (or the base) in service by hand, as an operator can."""
        base_hash = self.base[1]
        self.database.write(
            lambda db: adapters.promote(
                db, scope=SCOPE, base_hash=base_hash, adapter_id=adapter_id, actor="bench", reason=reason
            )
        )

    def model_name(self, adapter_id: str | None) -> str:
        """Return the model's name for requests, the adapter loaded if it was not."""
        if adapter_id is None:
            return self.base[0]
        self.ask(lambda client: model_server.ensure_listed(client, self.config, adapter_id))
        return adapter_id

    def run(self, module: str, arguments: Sequence[str], settings: Mapping[str, Any]) -> Run:
        """Run one training run through the product's queue, in its child process, to its end.

        A run that an earlier attempt left behind goes back into the queue and is taken up again.
        """

        def command(run: Run) -> list[str]:
            where = ["--config", str(self._config_path), "--run", run.id]
            return [sys.executable, "-m", module, *where, *arguments]

        queued = self.database.write(lambda db: _queued(db, settings))
        queue = RunQueue(
            self.database,
            command,
            owner=f"bench-{os.getpid()}",
            environment=self.environment(),
        )
        try:
            while (run := self.database.read(lambda db: runs.expect(db, queued.id))).state in _ACTIVE:
                queue.tick()
                time.sleep(TICK_S)
            while queue.busy:
                queue.tick()
                time.sleep(TICK_S)
        finally:
            queue.stop()
        return run

    def reread(self, run: Run) -> Run:
        """Return the run as it is now."""
        return self.database.read(lambda db: runs.expect(db, run.id))

    def environment(self) -> dict[str, str]:
        """Return what the deployment's processes see: this home, and no token of a real one."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("DISCORD_", "STROP_"))}
        return kept | {"STROP_HOME": str(self.config.home)}


_ACTIVE = ("queued", "running")


def _queued(db: Any, settings: Mapping[str, Any]) -> Run:
    left = runs.active(db, SCOPE)
    if left is not None and left.state == "running":
        return runs.requeue(db, left.id, Sentence("the benchmark was interrupted"))
    return runs.enqueue(db, scope=SCOPE, trigger="manual", requested_by="bench", settings=settings)


@contextmanager
def opened(home: Path, models: Path, profile: Profile) -> Iterator[World]:
    """Start a deployment in `home` with the models cached in `models`; stop it at the end."""
    home.mkdir(parents=True, exist_ok=True)
    models.mkdir(parents=True, exist_ok=True)
    if not (home / "models").exists():
        (home / "models").symlink_to(models.absolute(), target_is_directory=True)
    path = home / "strop.toml"
    settings = _settings(profile)
    path.write_text(_toml(settings), encoding="utf-8")
    config = Config.model_validate({"home": home.absolute(), **settings})
    config.run.mkdir(parents=True, exist_ok=True)
    with Database.open(config.database) as database:
        world = World(config, path.absolute(), database)
        server = _serve(config, world.environment())
        try:
            _await(world, server)
            yield world
        finally:
            locks.end(server, STOP_S)


def _settings(profile: Profile) -> dict[str, dict[str, Any]]:
    """Return what differs from the product's defaults, and why nothing else does."""
    return {
        "discord": {},
        "server": {"port": 0},
        "model": {"base": "SmolLM2-135M-Instruct", "device": "cpu"},
        "chat": {"max_new_tokens": profile.max_new_tokens},
        "trainer": {"max_train_minutes": profile.train_minutes},
        "gate": {
            "generation_minutes": profile.generation_minutes,
            "max_new_tokens": profile.max_new_tokens,
        },
    }


def _toml(settings: Mapping[str, Mapping[str, Any]]) -> str:
    """Write tables of plain values; JSON's forms of them are TOML's."""
    lines = []
    for section, values in settings.items():
        lines += [f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items()), ""]
    return "\n".join(lines)


def _serve(config: Config, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    (config.run / SERVER_FILE).unlink(missing_ok=True)
    process = subprocess.Popen(
        locks.die_with_parent([sys.executable, "-m", "bot.serving"]),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=(config.run / "server.log").open("ab"),
        env=dict(environment),
        preexec_fn=lambda: os.nice(NICE),
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(config.server_slice()).encode())
    process.stdin.close()
    return process


def _await(world: World, server: subprocess.Popen[bytes]) -> None:
    """Wait until the base is loaded. Raises BenchError."""
    ends_at = time.monotonic() + START_S
    while time.monotonic() < ends_at:
        if server.poll() is not None:
            raise BenchError(f"The model server ended at its start; see {world.config.run / 'server.log'}.")
        if (world.config.run / SERVER_FILE).exists() and _is_ready(world):
            return
        time.sleep(TICK_S)
    raise BenchError(f"The model server did not get ready; see {world.config.run / 'server.log'}.")


def _is_ready(world: World) -> bool:
    try:
        return world.ask(lambda client: client.health()).status == "ok"
    except ServingError:
        return False
