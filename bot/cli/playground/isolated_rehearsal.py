"""A rehearsal from the first question to the verdict, in a home of its own.

It starts the same processes as `strop up`, on a folder that no deployment reads, lets simulated members chat
and rate, retrains, lets them vote where the gate asks for it, and measures by the taste what came of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bot.cli.errors import CommandError, UsageError
from bot.cli.launch.children import SECRET_VARIABLES, children
from bot.cli.launch.supervisor import Announcer, Supervisor
from bot.cli.session import model_client
from bot.learning.status_text import PHASES
from bot.playground.discord import community
from bot.playground.errors import RehearsalError
from bot.playground.page.client import PageClient, read_run_file, run_rehearsal
from bot.playground.simulation import measuring
from bot.playground.simulation.custom_tastes import wish
from bot.playground.simulation.tastes import TASTES
from bot.serving.client import ModelClient
from storage.chat.conversations import scope_of
from storage.config import Config, load_config
from storage.db.database import Database
from storage.learning import adapters, runs
from storage.learning.runs import Run

FOLDER = "rehearsals"
#: What a rehearsal takes over from the operator's own configuration, and what may be set for it.
SECTIONS = ("chat", "replies", "model", "trainer", "gate")
#: The only run is ours, and any free port will do beside a deployment that uses its own.
FIXED: Mapping[str, Mapping[str, Any]] = {
    "trainer": {"cron": "", "interval_hours": 0.0, "min_new_ratings": 0},
    "gate": {"policy": "auto"},
    "server": {"port": 0},
    "playground": {"port": 0},
}
START_S = 600.0
POLL_S = 1.0
#: How long the trainer may take to count votes that were cast.
VOTES_SETTLE_S = 30.0
SEED = 20_000

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What to rehearse. `taste` is a key or a description, `settings` are dotted keys with TOML values."""

    taste: str | Mapping[str, Any]
    prompts: tuple[str, ...]
    cast: Mapping[str, Any] = field(default_factory=dict)
    rounds: int | None = None
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What came of it: the last state of the chat, the run, and what the taste says of the result."""

    home: Path
    chat: dict[str, Any]
    run: Run
    worth: measuring.Worth | None
    samples: list[dict[str, Any]]

    @property
    def verdict(self) -> str:
        """One sentence that sets the gate's decision beside what the taste says."""
        if self.worth is None:
            return "No challenger was made, so there is nothing to compare."
        if self.run.outcome == "votes":
            return "Undecided: the gate wants more votes than were cast."
        promoted, worth = self.run.outcome == "promoted", self.worth
        if worth.low > 0:
            return "Promoted, and rightly: it is better." if promoted else "Refused, although it is better."
        if worth.high < 0:
            return "Promoted, although it is worse." if promoted else "Refused, and rightly: it is worse."
        return f"{'Promoted' if promoted else 'Refused'}; by the taste the difference is not certain."

    def as_json(self) -> dict[str, Any]:
        """The whole result for scripts."""
        return {
            "home": str(self.home),
            "rehearsal": self.chat,
            "run": {
                "run_id": self.run.id,
                "outcome": self.run.outcome,
                "message": self.run.message,
                "adapter_id": self.run.adapter_id,
                "headline": self.run.metrics.as_json().get("headline"),
            },
            "utility": self.worth.as_json() if self.worth else None,
            "verdict": self.verdict,
            "samples": self.samples,
        }


def prepare(base: Config, request: Request, home: Path) -> tuple[Config, Path]:
    """Lay out the home of a rehearsal and return its configuration with the file's path.

    Raises UsageError, or ConfigError with every setting that can't be.
    """
    if home.exists() and any(home.iterdir()) and not (home / "strop.toml").is_file():
        raise UsageError(f"{home} holds something else: choose an empty folder, or an earlier rehearsal's.")
    if home.resolve() in (base.home.resolve(), base.data.resolve()):
        raise UsageError("A rehearsal needs a home of its own: choose another folder than STROP_HOME.")
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    base.models.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        (home / "models").symlink_to(base.models.resolve(), target_is_directory=True)
    path = home / "strop.toml"
    path.write_text(_toml(_tables(base, request.settings)), encoding="utf-8")
    return load_config(path, environment(home)), path


def environment(home: Path) -> dict[str, str]:
    """The environment of the rehearsal's processes: its own home, and none of the deployment's secrets."""
    hidden = (*SECRET_VARIABLES, "STROP_CONFIG")
    return {name: value for name, value in os.environ.items() if name not in hidden} | {
        "STROP_HOME": str(home)
    }


def fresh_home(base: Config) -> Path:
    """A folder for a rehearsal that was given none."""
    return base.home / FOLDER / datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")


def _tables(base: Config, settings: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    tables = {name: getattr(base, name).model_dump(mode="json", exclude_unset=True) for name in SECTIONS}
    for name, fixed in FIXED.items():
        tables.setdefault(name, {}).update(fixed)
    for setting in settings:
        key, equals, value = setting.partition("=")
        section, _, name = key.strip().partition(".")
        if not equals or section not in SECTIONS or not name:
            raise UsageError(
                f"--set takes SECTION.KEY=VALUE with a section of {', '.join(SECTIONS)}; got {setting!r}."
            )
        tables[section][name] = _value(value.strip())
    return tables


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _toml(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Write flat tables; JSON's texts, numbers, booleans and lists are TOML's too."""
    lines: list[str] = []
    for name, table in tables.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in table.items()]
    return "\n".join([*lines, ""])


async def rehearse(config: Config, path: Path, request: Request, announcer: Announcer, tell: Tell) -> Outcome:
    """Do it all; raises CommandError, RehearsalError or ServingError where it can't go on."""
    rehearsed, kept = measuring.split_prompts(request.prompts)
    specs = children(config, path, environment(config.home))
    supervisor = Supervisor(specs, announcer=announcer, log_dir=config.data / "logs")
    running = asyncio.create_task(supervisor.run())
    work = asyncio.create_task(_work(config, request, rehearsed, kept, tell))
    try:
        # A signal, or a process that can't go on, ends the supervisor first.
        await asyncio.wait({running, work}, return_when=asyncio.FIRST_COMPLETED)
        # What a stop takes away fails in the work as well, and is not what the person wants to hear of.
        if not work.done() or (supervisor.stopping and work.exception() is not None):
            raise CommandError(f"Stopped before the end; the logs are in {config.data / 'logs'}.")
        return work.result()
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        tell("Stopping")
        supervisor.stop()
        await running


async def _work(
    config: Config, request: Request, rehearsed: tuple[str, ...], kept: tuple[str, ...], tell: Tell
) -> Outcome:
    tell("Starting, and loading the model")
    try:
        async with asyncio.timeout(START_S):
            url, secret = await _ready(config)
    except TimeoutError as error:
        raise CommandError(f"It did not start in time; the logs are in {config.data / 'logs'}.") from error
    database = await asyncio.to_thread(Database.open, config.database)
    try:
        async with model_client(config) as client:
            stage = _Stage(config, database, client, tell, url, secret, request, rehearsed)
            champion = await stage.champion()
            chat = await stage.chat(request.rounds)
            run = await stage.retrain()
            if run.outcome == "votes":
                tell("Blind votes, as the gate asks for them")
                await stage.chat(0)
                run = await stage.wait_until_decided(run.id)
            tell("Measuring by the taste")
            return Outcome(config.home, chat, run, *await stage.measure(run, champion, kept))
    finally:
        await asyncio.to_thread(database.close)


@dataclass(frozen=True)
class _Stage:
    """The running processes of one rehearsal, and what is done with them."""

    config: Config
    database: Database
    client: ModelClient
    tell: Tell
    url: str
    secret: str
    request: Request
    rehearsed: tuple[str, ...]

    @property
    def scope(self) -> str:
        return scope_of(self.config.trainer.scope, community.GUILD_ID)

    async def champion(self) -> str | None:
        """Who answers before anything was learned: the base model, in a new home."""
        base_hash = await self._base_hash()
        return await self.database.aread(lambda db: adapters.champion(db, self.scope, base_hash))

    async def chat(self, rounds: int | None) -> dict[str, Any]:
        """Let the members chat and rate, or with 0 rounds only vote; return the last state."""
        cast = {**self.request.cast, "prompts": self.rehearsed}
        state: dict[str, Any] = {}
        async for state in run_rehearsal(
            self.url, self.secret, self.request.taste, rounds, cast=cast, poll_s=POLL_S
        ):
            if rounds != 0:
                told = f"{state['done']} of {state['total']} questions"
                self.tell(f"Rehearsing: {told}, 👍 {state['liked']}, 👎 {state['disliked']}")
        return state

    async def retrain(self) -> Run:
        """Queue the run and follow it until it has an outcome."""
        queued = await self.database.awrite(
            lambda db: runs.enqueue(db, scope=self.scope, trigger="manual", requested_by="rehearsal")
        )
        while (run := await self._run(queued.id)).state in ("queued", "running"):
            phase = PHASES.get(run.phase or "", "waiting for the trainer")
            self.tell(f"Retraining: {phase}, {run.progress:.0%} {run.note}".strip())
            await asyncio.sleep(POLL_S)
        return run

    async def wait_until_decided(self, run_id: str) -> Run:
        """Return the run once the votes have decided it, or as it is where they are too few."""
        for _ in range(round(VOTES_SETTLE_S / POLL_S)):
            if (await self._run(run_id)).outcome != "votes":
                break
            await asyncio.sleep(POLL_S)
        return await self._run(run_id)

    async def _run(self, run_id: str) -> Run:
        return await self.database.aread(lambda db: runs.expect(db, run_id))

    async def measure(
        self, run: Run, champion: str | None, prompts: tuple[str, ...]
    ) -> tuple[measuring.Worth | None, list[dict[str, Any]]]:
        """Let who answered before and the challenger answer the prompts that were kept back."""
        if run.adapter_id is None:
            return None, []
        asked = measuring.repeat_prompts(prompts)
        before = await self._answers(champion, asked)
        after = await self._answers(run.adapter_id, asked)
        taste = self.request.taste
        judge = TASTES[taste] if isinstance(taste, str) else wish(taste)
        found = measuring.measure_worth(judge, before, after, len(prompts))
        return found, measuring.samples(judge, prompts, before, after)

    async def _answers(self, adapter_id: str | None, prompts: tuple[str, ...]) -> list[str]:
        health = await self.client.health()
        if health.base is None:
            raise RehearsalError("The model server has no model any more; its log says why.")
        if adapter_id is not None and adapter_id not in health.adapters:
            adapter = await self.database.aread(lambda db: adapters.get(db, adapter_id))
            if adapter is None:
                raise RehearsalError(f"There is no adapter {adapter_id} any more.")
            await self.client.load_adapter(adapter_id, (self.config.data / adapter.path).absolute())
        model = adapter_id or health.base.id
        chat = self.config.chat.for_base(health.base.parameters)
        return await measuring.answers(self.client, model, prompts, chat, SEED)

    async def _base_hash(self) -> str:
        health = await self.client.health()
        return health.base.hash if health.base else ""


async def _ready(config: Config) -> tuple[str, str]:
    """Return the page's address and secret once the bot is connected and the model is loaded."""
    while True:
        with contextlib.suppress(RehearsalError):
            url, secret = await asyncio.to_thread(read_run_file, config.run)
            async with PageClient(url, secret) as page:
                while (server := (await page.loop()).get("server") or {}).get("status") != "ok":
                    if server.get("status") == "failed":
                        raise CommandError(f"The model server isn't ready: {server.get('detail')}")
                    await asyncio.sleep(POLL_S)
                if await page.bot_online():
                    return url, secret
        await asyncio.sleep(POLL_S)
