"""Reads the figures of one moment, off the event loop; what takes long is read seldom."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from importlib import metadata
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from bot.client import StropClient
from bot.gateway.state import gateway_state
from bot.services import Services
from bot.serving.errors import ServingError
from bot.telemetry.snapshot import DiskState, ServerState, Snapshot
from storage.config import Config
from storage.db import key_values
from storage.db.clock import now_ms
from storage.db.database import Connection
from storage.errors import StorageError
from storage.privacy import backup
from storage.process import memory
from storage.process.locks import trainer_is_running
from storage.telemetry import counts
from storage.telemetry.counts import Counts
from storage.telemetry.reply_totals import ReplyTotals

# Rates over weeks change slowly, folders are walked, and a backup is read whole to be verified.
TRENDS_S = 300.0
SIZES_S = 600.0
BACKUP_S = 6 * 3600.0
# So long a scrape waits for each of these, and for the model server.
PATIENCE_S = 0.5
SERVER_S = 3.0

_log = structlog.get_logger(__name__)
T = TypeVar("T")


class Refreshed(Generic[T]):
    """A value that takes long to read: it is read behind the scrapes, and the last one is shown meanwhile."""

    def __init__(self, seconds: float, read: Callable[[], Awaitable[T]]) -> None:
        self._seconds = seconds
        self._read = read
        self._value: T | None = None
        self._key: object = None
        self._due_s = 0.0
        self._task: asyncio.Task[None] | None = None

    async def latest(self, key: object = None) -> T | None:
        """Return the value, None if not known yet; it is read anew when old, or when its `key` changed."""
        now_s = asyncio.get_running_loop().time()
        if (self._task is None or self._task.done()) and (now_s >= self._due_s or key != self._key):
            self._key, self._due_s = key, now_s + self._seconds
            self._task = asyncio.create_task(self._refresh())
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=PATIENCE_S)
        return self._value

    async def stop(self) -> None:
        """Leave nothing behind."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _refresh(self) -> None:
        try:
            self._value = await self._read()
        except (OSError, StorageError) as error:
            _log.warning("metrics.unreadable", error=str(error))


class Reader:
    """Reads snapshots of one deployment, one at a time."""

    def __init__(self, services: Services, client: StropClient) -> None:
        self._services = services
        self._client = client
        self._started_ms = now_ms()
        # Looks through every package: too long for the event loop at each scrape.
        self._version = metadata.version("strop")
        self._replies = ReplyTotals(self._started_ms)
        config = services.config
        self._trends = Refreshed(TRENDS_S, lambda: services.database.aread(counts.trends))
        self._sizes = Refreshed(SIZES_S, lambda: asyncio.to_thread(_sizes, config))
        self._backup = Refreshed(BACKUP_S, lambda: asyncio.to_thread(_backup_ms, config))

    async def read(self) -> Snapshot:
        """Return the figures of now; a part that can't be read is missing, and the rest is there."""
        return Snapshot(
            version=self._version,
            started_ms=self._started_ms,
            gateway=gateway_state(self._client),
            replies=self._replies,
            server=await self._server(),
            trainer_up=await asyncio.to_thread(trainer_is_running, self._services.config),
            counts=await self._counts(),
            trends=await self._trends.latest() or {},
            disk=await self._disk(),
            memory=await asyncio.to_thread(_memory, self._services.config),
        )

    async def stop(self) -> None:
        """Stop what is read behind the scrapes."""
        for each in (self._trends, self._sizes, self._backup):
            await each.stop()

    async def _counts(self) -> Counts | None:
        try:
            return await self._services.database.aread(self._counted)
        except StorageError as error:
            _log.warning("metrics.database_unreadable", error=str(error))
            return None

    def _counted(self, db: Connection) -> Counts:
        self._replies.update(db)
        return counts.read(db, key_values.get(db, key_values.SERVED_BASE) or "")

    async def _server(self) -> ServerState:
        try:
            async with asyncio.timeout(SERVER_S):
                health = await self._services.model.health()
                exposition = await self._services.model.metrics() if health.is_ready else ""
        except (ServingError, TimeoutError):
            return ServerState(up=False)
        return ServerState(health.is_ready, health.running, health.waiting, exposition)

    async def _disk(self) -> DiskState | None:
        config = self._services.config
        try:
            usage = await asyncio.to_thread(shutil.disk_usage, config.data)
            changed = await asyncio.to_thread(_newest_change, config.backups)
        except OSError as error:
            _log.warning("metrics.disk_unreadable", error=error.strerror)
            return None
        sizes, backup_ms = await self._sizes.latest() or {}, await self._backup.latest(changed)
        return DiskState(usage.total, usage.free, sizes, backup_ms)


def _memory(config: Config) -> dict[str, int]:
    own = memory.read_own()
    return {**({"bot": own} if own is not None else {}), **memory.read_by_process(config)}


def _sizes(config: Config) -> dict[str, int]:
    database = [config.database.with_name(config.database.name + end) for end in ("", "-wal", "-shm")]
    folders = {
        "adapters": config.adapters,
        "runs": config.runs,
        "models": config.models,
        "backups": config.backups,
    }
    return {
        "database": sum(_size(file) for file in database),
        **{name: sum(_size(file) for file in folder.rglob("*")) for name, folder in folders.items()},
    }


def _size(file: Path) -> int:
    """Return a file's size; 0 for a folder, a link, and what is gone meanwhile."""
    try:
        return 0 if file.is_symlink() or not file.is_file() else file.stat().st_size
    except OSError:
        return 0


def _newest_change(backups: Path) -> float:
    """Return when a backup last appeared or went: then the newest is looked for again."""
    return backups.stat().st_mtime if backups.is_dir() else 0.0


def _backup_ms(config: Config) -> int | None:
    found = backup.newest_verified(config.backups)
    return None if found is None else found[1]
