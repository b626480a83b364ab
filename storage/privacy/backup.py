"""Backups: a consistent copy of the running database and its adapters, with a hash of every file."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from sqlite_utils.utils import sqlite3

from storage.db import sql
from storage.db.clock import now_ms
from storage.db.database import Database
from storage.errors import BackupError, CorruptDatabaseError, DatabaseError
from storage.privacy import decisions_after_backup
from storage.privacy import erasure as privacy

logger = structlog.get_logger()

MANIFEST = "manifest.json"
DATABASE = "strop.db"
ERASURES = "erasures.json"
PARTIAL = ".partial"
_ERASURES_OF = "SELECT user_id, requested_ms FROM erasures"


@dataclass(frozen=True, slots=True)
class Backup:
    """One backup folder."""

    path: Path
    created_ms: int
    files: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did: `replaced` holds the former database, `erased` the members erased once more."""

    database: Path
    replaced: Path | None
    erased: tuple[int, ...]


def backup(database: Database, dest: Path) -> Backup:
    """Copy the database and its adapters into the new folder `dest`, without stopping anybody.

    The folder appears under its name only when it is complete. Raises BackupError if `dest` exists.
    """
    if dest.exists():
        raise BackupError(f"{dest} exists already: choose another folder for the backup.")
    partial = dest.with_name(f"{dest.name}{PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True, mode=0o700)
        _copy_database(database, partial / DATABASE)
        _copy_adapters(database.path.parent / "adapters", partial / "adapters")
        written = _write_manifest(partial, now_ms())
        partial.rename(dest)
        _erase_latecomers(database, dest)
    except OSError as error:
        raise BackupError(f"The backup in {dest} could not be written ({error.strerror}).") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Backup(dest, written["created_ms"], len(written["files"]), _size_bytes(dest))


def verify(source: Path) -> dict[str, Any]:
    """Check every file of a backup against its hash, and the database's integrity; return the manifest.

    Raises BackupError naming the first file that is missing or damaged.
    """
    try:
        manifest: dict[str, Any] = json.loads((source / MANIFEST).read_text())
        files: dict[str, str] = manifest["files"]
    except (OSError, ValueError, KeyError) as error:
        raise BackupError(
            f"{source} is not a complete backup: its {MANIFEST} is missing or damaged."
        ) from error
    for name, expected in files.items():
        file = source / name
        if not file.resolve().is_relative_to(source.resolve()) or not file.is_file():
            raise BackupError(f"{source} is not a complete backup: {name} is missing.")
        if _sha256(file) != expected:
            raise BackupError(f"{source} is damaged: {name} is not the file that was backed up.")
    _check_integrity(source / DATABASE)
    return manifest


def restore(source: Path, data_dir: Path) -> Restored:
    """Put a backup in the place of the database; Strop must be stopped.

    The former database is kept under backups/. Members who erased their data after the backup was made are
    erased again; who opted out stays out, and what was deleted stays deleted. Raises BackupError.
    """
    created_ms = int(verify(source)["created_ms"])
    target = data_dir / DATABASE
    erasures = _erasures(target)
    decisions = decisions_after_backup.read(target, created_ms)
    _require_unused(target)
    data_dir.mkdir(parents=True, exist_ok=True)
    incoming = data_dir / f"{DATABASE}.incoming"
    shutil.copyfile(source / DATABASE, incoming)
    _copy_adapters(source / "adapters", data_dir / "adapters")
    replaced = _set_aside(target, data_dir / "backups" / f"replaced-{now_ms()}")
    incoming.replace(target)
    with Database.open(target) as database:
        erased = _erase_again(database, data_dir, erasures)
        database.write(lambda db: decisions_after_backup.apply(db, decisions))
        database.write(lambda db: _forget_lost_runs(db, data_dir))
    return Restored(target, replaced, erased)


def erase_from_backups(backups_dir: Path, user_id: int, actor: str) -> list[Path]:
    """Erase a member from every backup in a folder as well; return the backups that were rewritten."""
    changed = []
    # A copy that is being made is left to whoever makes it: it is compared once more when it is complete.
    folders = (file.parent for file in backups_dir.glob(f"*/{DATABASE}"))
    for folder in sorted(each for each in folders if each.suffix != PARTIAL):
        try:
            with Database.open(folder / DATABASE) as database:
                _erase(database, folder, user_id, actor)
        except CorruptDatabaseError:
            # What can't be read can't be cleaned, and must not keep the member's words either.
            shutil.rmtree(folder)
            logger.warning("damaged_backup_removed", folder=folder.name)
            continue
        if (folder / MANIFEST).exists():
            _write_manifest(folder, json.loads((folder / MANIFEST).read_text())["created_ms"])
        changed.append(folder)
    return changed


def _erase(database: Database, folder: Path, user_id: int, actor: str) -> None:
    erasure = database.write(lambda db: privacy.erase_member(db, user_id, actor))
    privacy.scrub_files(folder, erasure.runs, erasure.affected_adapters)
    database.checkpoint_truncate()
    database.write(lambda db: privacy.mark_scrubbed(db, erasure.id))


def _copy_database(database: Database, dest: Path) -> None:
    os.close(os.open(dest, os.O_WRONLY | os.O_CREAT, 0o600))
    with contextlib.closing(sqlite3.connect(str(dest))) as copy:
        database.read(lambda db: db.conn.backup(copy))
        copy.execute("PRAGMA journal_mode=DELETE")
    _fsync(dest)


def _erase_latecomers(database: Database, folder: Path) -> None:
    """Erase from a copy whoever erased their data while it was being made; later ones find it complete."""
    asked = _recorded(database)
    with contextlib.closing(_untouched(folder / DATABASE)) as copy:
        known = set(copy.execute(_ERASURES_OF).fetchall())
    if set(asked) <= known:
        return
    with Database.open(folder / DATABASE) as opened:
        _erase_again(opened, folder, asked)
    _write_manifest(folder, json.loads((folder / MANIFEST).read_text())["created_ms"])


def _copy_adapters(source: Path, dest: Path) -> None:
    """Copy the adapter folders that are not there yet; an adapter's folder never changes."""
    for folder in sorted(source.iterdir()) if source.is_dir() else []:
        if folder.is_dir() and not (dest / folder.name).exists():
            partial = dest / f".{folder.name}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(folder, partial)
            partial.rename(dest / folder.name)


def _write_manifest(folder: Path, created_ms: int) -> dict[str, Any]:
    files = {file.relative_to(folder).as_posix(): _sha256(file) for file in _files(folder)}
    manifest = {"version": 1, "created_ms": created_ms, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))
    _fsync(folder / MANIFEST)
    return manifest


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in sorted(folder.rglob("*")) if file.is_file() and file != folder / MANIFEST)


def _check_integrity(path: Path) -> None:
    with contextlib.closing(_untouched(path)) as connection:
        try:
            (verdict,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
        except sqlite3.DatabaseError as error:
            raise BackupError(f"{path} is not a readable database ({error}).") from error
    if verdict != "ok":
        raise BackupError(f"{path} is damaged: {verdict}")


def _untouched(path: Path) -> Any:
    """Open a database of a backup without changing a byte of it."""
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)


def record_erasures(database: Database) -> None:
    """Write who erased when beside the database, so that a restore knows it even if the database is lost."""
    file = database.path.with_name(ERASURES)
    partial = file.with_name(f"{ERASURES}.partial")
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT, 0o600))
    partial.write_text(json.dumps(_recorded(database)))
    _fsync(partial)
    partial.replace(file)


def _erasures(target: Path) -> list[tuple[int, int]]:
    """Return (user id, time) of every erasure that the present database or the list beside it knows."""
    known: set[tuple[int, int]] = set()
    with contextlib.suppress(OSError, ValueError):
        known |= {
            (user_id, requested_ms)
            for user_id, requested_ms in json.loads(target.with_name(ERASURES).read_text())
        }
    with contextlib.suppress(DatabaseError):
        if target.exists():
            with Database.open(target) as database:
                known |= set(_recorded(database))
    return sorted(known)


def _set_aside(target: Path, folder: Path) -> Path | None:
    if not target.exists():
        return None
    folder.mkdir(parents=True, mode=0o700)
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            target.with_name(target.name + suffix).rename(folder / (DATABASE + suffix))
    return folder


def _require_unused(target: Path) -> None:
    """Leaving WAL mode needs the file for oneself, so this fails while any other process has it open."""
    if not target.exists():
        return
    with contextlib.closing(sqlite3.connect(str(target), timeout=1)) as connection:
        try:
            connection.execute("PRAGMA journal_mode=DELETE")
        except sqlite3.OperationalError as error:
            raise BackupError(f"{target} is in use: stop Strop first, then restore.") from error
        except sqlite3.DatabaseError:
            return  # damaged: nobody can be using it, and it is about to be replaced


def _erase_again(database: Database, data_dir: Path, erasures: list[tuple[int, int]]) -> tuple[int, ...]:
    known = {(user_id, requested_ms) for user_id, requested_ms in _recorded(database)}
    missing = sorted({user_id for user_id, requested_ms in erasures if (user_id, requested_ms) not in known})
    for user_id in missing:
        _erase(database, data_dir, user_id, "restore")
    return tuple(missing)


def _recorded(database: Database) -> list[tuple[int, int]]:
    rows = database.read(lambda db: sql.many(db, _ERASURES_OF))
    return [(row["user_id"], row["requested_ms"]) for row in rows]


def _forget_lost_runs(db: Any, data_dir: Path) -> None:
    """A run whose folder is gone can't be repeated."""
    for row in sql.many(db, "SELECT id FROM runs WHERE repeatable = 1 AND snapshot_hash IS NOT NULL"):
        if not (data_dir / "runs" / row["id"]).is_dir():
            sql.change(db, "UPDATE runs SET repeatable = 0 WHERE id = ?", (row["id"],))


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _size_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in _files(folder))


def _fsync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
