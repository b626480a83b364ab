"""Backups: a consistent copy of the running database and its adapters, with a hash of every file.

A backup is verified before it gets its name: whatever bears one can be restored.
"""

import contextlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from sqlite_utils.utils import sqlite3

from storage.db.clock import now_ms
from storage.db.database import Database
from storage.db.integrity import find_damage
from storage.errors import BackupError, StorageError
from storage.privacy import backup_erasure
from storage.privacy.backup_files import (
    DATABASE,
    ERASURES_OF,
    MANIFEST,
    PARTIAL,
    copy_durably,
    files_of,
    find_damaged,
    fsync,
    list_erasures,
    open_read_only,
    sha256,
    write_manifest,
)

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Backup:
    """One backup folder; `damaged` are adapters that were left out, because their files are not whole."""

    path: Path
    created_ms: int
    files: int
    size_bytes: int
    damaged: tuple[str, ...] = ()


def backup(database: Database, dest: Path) -> Backup:
    """Copy the database and its adapters into the new folder `dest`, without stopping anybody.

    The folder appears under its name only when it is complete and verified. Raises BackupError if `dest`
    exists, if it can't be written, and if the database itself is damaged.
    """
    if dest.exists():
        raise BackupError(f"{dest} exists already: choose another folder for the backup.")
    partial = dest.with_name(f"{dest.name}{PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True, mode=0o700)
        _copy_database(database, partial / DATABASE)
        damaged = _copy_adapters(database.path.parent / "adapters", partial / "adapters")
        written = write_manifest(partial, now_ms())
        _verified(partial, database.path)
        _erase_latecomers(database, partial)
        partial.rename(dest)
        # Who erased between the last look and the renaming found no backup under this name.
        _erase_latecomers(database, dest)
    except (OSError, sqlite3.Error, StorageError) as error:
        if isinstance(error, BackupError):
            raise
        raise BackupError(f"The backup in {dest} could not be written ({_reason(error)}).") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Backup(dest, written["created_ms"], len(written["files"]), _size_bytes(dest), damaged)


def verify(source: Path) -> dict[str, Any]:
    """Check every file of a backup against its hash, and the database's integrity; return the manifest.

    Raises BackupError naming the first file that is missing or damaged.
    """
    try:
        manifest: dict[str, Any] = json.loads((source / MANIFEST).read_text())
        files: dict[str, str] = manifest["files"]
        int(manifest["created_ms"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BackupError(
            f"{source} is not a complete backup: its {MANIFEST} is missing or damaged."
        ) from error
    for name, expected in files.items():
        file = source / name
        if not file.resolve().is_relative_to(source.resolve()) or not file.is_file():
            raise BackupError(f"{source} is not a complete backup: {name} is missing.")
        if sha256(file) != expected:
            raise BackupError(f"{source} is damaged: {name} is not the file that was backed up.")
    if DATABASE not in files:
        raise BackupError(f"{source} is not a complete backup: {DATABASE} is missing.")
    check_integrity(source / DATABASE)
    return manifest


def check_integrity(path: Path) -> None:
    """Read every page of a database file that nobody writes to. Raises BackupError."""
    try:
        connection = open_read_only(path)
    except OSError as error:
        raise BackupError(f"{path} can't be read ({error.strerror}).") from error
    with contextlib.closing(connection):
        try:
            damage = find_damage(path)
            tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        except sqlite3.DatabaseError as error:
            raise BackupError(f"{path} is not a readable database ({error}).") from error
    if damage:
        raise BackupError(f"{path} is damaged: {damage}")
    if not tables:
        raise BackupError(f"{path} is empty.")


def newest_verified(backups_dir: Path) -> tuple[Path, int] | None:
    """Return the newest backup of a folder that is whole, and when it was made; None where there is none."""
    made: list[tuple[int, Path]] = []
    for file in backups_dir.glob(f"*/{MANIFEST}"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            made.append((int(json.loads(file.read_text())["created_ms"]), file.parent))
    for created_ms, folder in sorted(made, reverse=True):
        try:
            verify(folder)
        except BackupError as error:
            log.warning("backup.damaged", folder=folder.name, reason=str(error))
            continue
        return folder, created_ms
    return None


def _verified(partial: Path, live: Path) -> None:
    try:
        verify(partial)
    except BackupError as error:
        raise BackupError(
            f"No backup was made, because the copy of {live} is damaged: {error} Stop Strop and "
            "`strop restore` an older backup."
        ) from error


def _copy_database(database: Database, dest: Path) -> None:
    os.close(os.open(dest, os.O_WRONLY | os.O_CREAT, 0o600))
    with contextlib.closing(sqlite3.connect(str(dest))) as copy:
        database.read(lambda db: db.conn.backup(copy))
        copy.execute("PRAGMA journal_mode=DELETE")
    fsync(dest)


def _copy_adapters(source: Path, dest: Path) -> tuple[str, ...]:
    """Copy the adapters that are whole; return the names of the others. An adapter's folder never changes."""
    damaged = []
    for folder in sorted(source.iterdir()) if source.is_dir() else []:
        if not folder.is_dir() or folder.name.startswith("."):
            continue
        if find_damaged(folder):
            damaged.append(folder.name)
            log.warning("backup.adapter_left_out", adapter_id=folder.name)
            continue
        dest.mkdir(exist_ok=True, mode=0o700)
        copy_durably(folder, dest / folder.name)
    return tuple(damaged)


def _erase_latecomers(database: Database, folder: Path) -> None:
    """Erase from a copy whoever erased their data while it was being made; later ones find it complete."""
    with contextlib.closing(open_read_only(folder / DATABASE)) as copy:
        known = set(copy.execute(ERASURES_OF).fetchall())
    missing = {user_id for user_id, at in list_erasures(database) if (user_id, at) not in known}
    if missing:
        backup_erasure.erase_from(folder, missing, "backup")


def _size_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in files_of(folder))


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
