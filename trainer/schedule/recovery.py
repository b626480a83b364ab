"""Puts right what an interruption left behind, and keeps what answers loaded in the model server.

Nothing is deleted: what nobody knows is listed. A champion whose files are damaged (missing, or another hash)
gives way to an earlier one; any other failed check is reported and tried again, for it may be our fault.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import sqlite_utils
import structlog

from bot.serving.client import ModelClient
from bot.serving.errors import (
    AdapterDamagedError,
    AdapterRefusedError,
    ServingError,
)
from bot.serving.model import adapter_files
from storage.admin import audit
from storage.config import Config
from storage.db.database import Database
from storage.errors import NothingToRollBackError
from storage.learning import adapters, runs, trials, wrongly_rejected
from storage.learning.adapters import Adapter
from storage.learning.runs import Run
from storage.sentences import Sentence

log = structlog.get_logger()

ACTOR = "trainer"


@dataclass
class Findings:
    """What `reconcile` found: ids and folder names."""

    interrupted_runs: list[str] = field(default_factory=list)
    unknown_run_folders: list[str] = field(default_factory=list)
    unknown_adapter_folders: list[str] = field(default_factory=list)
    refused_adapters: dict[str, Sentence] = field(default_factory=dict)
    unchecked_adapters: dict[str, str] = field(default_factory=dict)
    restored_adapters: list[str] = field(default_factory=list)
    restored_champions: list[str] = field(default_factory=list)
    replaced_champions: dict[str, str | None] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return any(vars(self).values())


def reconcile(database: Database, config: Config) -> Findings:
    """Compare database and folders; call it while holding the trainer's lock, before the first run.

    Runs of a trainer that died go back into the queue. Adapters whose files are missing or changed are set
    aside, and a champion among them makes way for the newest sound one before it (else for the base model).
    Adapters that an earlier version set aside for a reason of its own come back.
    """
    found = Findings()
    found.interrupted_runs = [run.id for run in database.write(_requeue_interrupted)]
    known_runs = database.read(lambda db: {str(row["id"]) for row in db.query("select id from runs")})
    found.unknown_run_folders = _unknown(config.runs, known_runs)
    known = database.read(lambda db: {str(row["id"]) for row in db.query("select id from adapters")})
    found.unknown_adapter_folders = _unknown(config.adapters, known)
    _restore(database, config, found)
    _check_adapters(database, config, found)
    if found:
        log.warning(
            "put right what an interruption left",
            **{name: value for name, value in vars(found).items() if value},
        )
        database.write(lambda db: audit.record(db, ACTOR, "trainer.reconcile", vars(found)))
    return found


def _requeue_interrupted(db: sqlite_utils.Database) -> list[Run]:
    # The lock says that no other trainer lives, so a running run is nobody's, whatever its lease says.
    ids = [str(row["id"]) for row in db.query("select id from runs where state = 'running'")]
    return [runs.requeue(db, run_id, runs.INTERRUPTED) for run_id in ids]


def _unknown(folder: Path, known: set[str]) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if entry.name not in known)


def _restore(database: Database, config: Config, found: Findings) -> None:
    """Give back what was rejected because a relative home made its path wrong, if its files are sound."""
    suspects = database.read(wrongly_rejected.find)
    sound = [adapter.id for adapter in suspects if flaw(adapter, config.adapters) is None]
    for adapter_id in sound:
        if database.write(partial(wrongly_rejected.restore, adapter_id=adapter_id, actor=ACTOR)):
            found.restored_champions.append(adapter_id)
        found.restored_adapters.append(adapter_id)


def _check_adapters(database: Database, config: Config, found: Findings) -> None:
    """Check whatever answers or may be promoted next; of those retired, only whether they are there.

    Reading them all takes minutes where there are thousands. One that comes back is checked then.
    """
    answering = {each[2] for each in (*database.read(_champions), *database.read(_on_trial))}
    for adapter in database.read(_usable):
        retired = adapter.state == "retired" and adapter.id not in answering
        if not (retired and _is_there(config.adapters / adapter.id)):
            _check(adapter, config, found)
    for scope, base_hash, adapter_id in database.read(_champions):
        if adapter_id in found.refused_adapters:
            found.replaced_champions[adapter_id] = _sound_successor(
                database, config, found, scope, base_hash, adapter_id
            )
    database.write(lambda db: _set_aside(db, found.refused_adapters))


def _check(adapter: Adapter, config: Config, found: Findings) -> None:
    error = flaw(adapter, config.adapters)
    if isinstance(error, AdapterDamagedError):
        found.refused_adapters[adapter.id] = Sentence.of(error)
    elif error is not None:
        found.unchecked_adapters[adapter.id] = str(error)


def _is_there(folder: Path) -> bool:
    return all((folder / name).is_file() for name in (adapter_files.MANIFEST, adapter_files.WEIGHTS))


def _sound_successor(
    database: Database, config: Config, found: Findings, scope: str, base_hash: str, refused: str
) -> str | None:
    """Go back from a champion that is damaged until one is found that isn't; return it."""
    reason = found.refused_adapters[refused]
    while True:
        successor = replace_champion(database, scope, base_hash, set(found.refused_adapters), reason)
        adapter = database.read(lambda db, wanted=successor: adapters.get(db, wanted or ""))  # type: ignore[misc]
        if adapter is not None:
            _check(adapter, config, found)
        if successor not in found.refused_adapters:
            return successor


def _usable(db: sqlite_utils.Database) -> list[Adapter]:
    ids = [
        row["id"] for row in db.query("select id from adapters where state not in ('rejected', 'tainted')")
    ]
    return [adapter for adapter_id in ids if (adapter := adapters.get(db, str(adapter_id))) is not None]


def _set_aside(db: sqlite_utils.Database, refused: Iterable[str]) -> None:
    for adapter_id in refused:
        adapters.set_state(db, adapter_id, "rejected")


def _end_trials(db: sqlite_utils.Database, adapter_id: str, reason: Sentence) -> None:
    adapters.set_state(db, adapter_id, "rejected")
    trials.end_with(db, [adapter_id], reason, actor=ACTOR)


def flaw(adapter: Adapter, adapters_dir: Path) -> AdapterRefusedError | None:
    """Return why this adapter's files failed a check; None if they are just as they were trained.

    Only an AdapterDamagedError is proof against the adapter.
    """
    try:
        adapter_files.verify(
            adapters_dir / adapter.id, adapters_dir=adapters_dir, base_hash=adapter.base_hash
        )
    except AdapterRefusedError as error:
        return error
    return None


def replace_champion(
    database: Database, scope: str, base_hash: str, refused: set[str], reason: Sentence
) -> str | None:
    """Go back to the newest earlier champion that isn't refused; returns it (None: the base model)."""

    def work(db: sqlite_utils.Database) -> str | None:
        why = Sentence("its files can't be trusted: {reason}", reason=reason)
        while (present := adapters.champion(db, scope, base_hash)) in refused:
            try:
                adapters.rollback(db, scope=scope, base_hash=base_hash, actor=ACTOR, reason=why)
            except NothingToRollBackError:
                adapters.promote(
                    db, scope=scope, base_hash=base_hash, adapter_id=None, actor=ACTOR, reason=why
                )
        return present

    successor = database.write(work)
    log.error(
        "champion replaced: its files can't be trusted",
        scope=scope,
        champion=successor or "base",
        reason=reason,
    )
    return successor


def _champions(db: sqlite_utils.Database) -> list[tuple[str, str, str]]:
    rows = db.query(
        "select scope, base_hash, adapter_id from champions where adapter_id is not null order by scope"
    )
    return [(str(row["scope"]), str(row["base_hash"]), str(row["adapter_id"])) for row in rows]


def _on_trial(db: sqlite_utils.Database) -> list[tuple[str, str, str]]:
    """Return the other sides of the trials that are on: (scope, base hash, adapter)."""
    where = sorted({(trial.scope, trial.base_hash) for trial in trials.open_trials(db)})
    return [
        (scope, base_hash, trial.exception_id)
        for scope, base_hash in where
        for trial in trials.active(db, scope, base_hash)
        if trial.exception_id is not None
    ]


class ChampionKeeper:
    """Sees to it that the model server has every champion loaded, also after the server restarted.

    Replies load an unknown champion themselves; this spares the first one after a restart the wait. For an
    adapter that is on trial nobody waits: it answers once it is loaded here.
    """

    def __init__(self, database: Database, config: Config) -> None:
        self._database = database
        self._config = config
        self._told = ""
        self._refused: dict[str, str] = {}

    async def check(self, client: ModelClient) -> bool:
        """Load the champions that the server lacks; False if it isn't there or not ready yet."""
        try:
            health = await client.health()
            health.require_ready()
            base_hash = health.base.hash if health.base else ""
            for scope, trained_for, adapter_id in await self._database.aread(_champions):
                if adapter_id not in health.adapters and base_hash in ("", trained_for):
                    await self._load(client, scope, trained_for, adapter_id)
            for scope, trained_for, adapter_id in await self._database.aread(_on_trial):
                if adapter_id not in health.adapters and base_hash in ("", trained_for):
                    await self._load_on_trial(client, scope, adapter_id)
        except ServingError as error:
            self._tell(f"The model server isn't ready ({error}) Trying again every few seconds.")
            return False
        self._tell("The model server is ready.")
        return True

    async def _load(self, client: ModelClient, scope: str, base_hash: str, adapter_id: str) -> None:
        if await self._loaded(client, adapter_id):
            log.info("champion.loaded", scope=scope, adapter_id=adapter_id)
        elif (damage := await self._damage(adapter_id)) is not None:
            await asyncio.to_thread(self._give_up, scope, base_hash, adapter_id, damage)

    async def _load_on_trial(self, client: ModelClient, scope: str, adapter_id: str) -> None:
        if await self._loaded(client, adapter_id):
            log.info("trial.loaded", scope=scope, adapter_id=adapter_id)
        elif (damage := await self._damage(adapter_id)) is not None:
            reason = Sentence("its files can't be trusted: {reason}", reason=damage)
            await self._database.awrite(lambda db: _end_trials(db, adapter_id, reason))

    async def _loaded(self, client: ModelClient, adapter_id: str) -> bool:
        try:
            await client.load_adapter(adapter_id, str((self._config.adapters / adapter_id).absolute()))
        except AdapterRefusedError as error:
            if self._refused.get(adapter_id) != str(error):
                self._refused[adapter_id] = str(error)
                log.error("the model server refuses an adapter", adapter_id=adapter_id, reason=str(error))
            return False
        self._refused.pop(adapter_id, None)
        return True

    async def _damage(self, adapter_id: str) -> Sentence | None:
        """Return the proof that a refused adapter's files are damaged; None leaves it for the next check."""
        adapter = await self._database.aread(lambda db: adapters.get(db, adapter_id))
        if adapter is None:
            return None
        error = await asyncio.to_thread(flaw, adapter, self._config.adapters)
        return Sentence.of(error) if isinstance(error, AdapterDamagedError) else None

    def _give_up(self, scope: str, base_hash: str, adapter_id: str, reason: Sentence) -> None:
        replace_champion(self._database, scope, base_hash, {adapter_id}, reason)
        self._database.write(lambda db: _set_aside(db, [adapter_id]))

    def _tell(self, sentence: str) -> None:
        """Say a new state once instead of every few seconds."""
        if sentence != self._told:
            self._told = sentence
            log.info(sentence)
