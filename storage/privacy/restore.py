"""Putting a backup in the place of the database, in one step that a kill can't halve.

Everything is prepared beside the database first: the copy, with what members decided since, and every adapter
that is missing or damaged. Then the copy takes the database's place by one renaming.
"""

import contextlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import sqlite_utils
import structlog
from sqlite_utils.utils import sqlite3

from storage.db import sql
from storage.db.clock import now_ms
from storage.db.database import Database
from storage.errors import BackupError, DatabaseError
from storage.privacy import decisions_after_backup, file_scrubbing
from storage.privacy import erasure as privacy
from storage.privacy.backup import check_integrity, verify
from storage.privacy.backup_erasure import ERASURES
from storage.privacy.backup_files import (
    DATABASE,
    PARTIAL,
    copy_durably,
    fsync,
    list_erasures,
    sha256,
)

log = structlog.get_logger()

STAGING = f"restore{PARTIAL}"
_LOG_FILES = ("-wal", "-shm")


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did: `replaced` holds the former database, `erased` the members erased once more,

    `healed` the adapters that were missing or damaged.
    """

    database: Path
    replaced: Path | None
    erased: tuple[int, ...]
    healed: tuple[str, ...] = ()


def restore(source: Path, data_dir: Path) -> Restored:
    """Put a backup in the place of the database; Strop must be stopped.

    The former database is kept under backups/. Members who erased their data after the backup was made are
    erased again; who opted out stays out, what was deleted or reworded stays so. Raises BackupError.
    """
    manifest = verify(source)
    target = data_dir / DATABASE
    erasures = _erasures(target)
    decisions = decisions_after_backup.read(target, int(manifest["created_ms"]))
    _require_unused(target)
    staging = data_dir / STAGING
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir(parents=True, mode=0o700)
        healed = _heal_adapters(source, data_dir, manifest["files"])
        erased = _prepare(source / DATABASE, staging / DATABASE, data_dir, erasures, decisions)
        replaced = _keep(target, data_dir / "backups" / f"replaced-{now_ms()}")
        # Their changes are in what was kept; beside the new file SQLite would take them for its own.
        for suffix in _LOG_FILES:
            target.with_name(target.name + suffix).unlink(missing_ok=True)
        (staging / DATABASE).replace(target)
        fsync(data_dir)
    except (OSError, sqlite3.Error) as error:
        raise BackupError(
            f"{source} could not be restored ({error}): the database is as it was before."
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    with Database.open(target) as database:
        file_scrubbing.complete_pending(database, data_dir)
    return Restored(target, replaced, erased, healed)


def _prepare(
    source: Path,
    staged: Path,
    data_dir: Path,
    erasures: list[tuple[int, int]],
    decisions: decisions_after_backup.Decisions,
) -> tuple[int, ...]:
    """Copy the database and carry out in it what members decided since; return who was erased again.

    Their files are scrubbed once the copy has taken its place: until then the erasures are pending in it.
    """
    os.close(os.open(staged, os.O_WRONLY | os.O_CREAT, 0o600))
    shutil.copyfile(source, staged)
    with Database.open(staged) as database:
        known = set(list_erasures(database))
        missing = sorted({user_id for user_id, at in erasures if (user_id, at) not in known})

        def work(db: sqlite_utils.Database) -> None:
            for user_id in missing:
                privacy.erase_member(db, user_id, "restore")
            decisions_after_backup.apply(db, decisions)
            _forget_lost_runs(db, data_dir)

        database.write(work)
        database.checkpoint_truncate()
    with contextlib.closing(sqlite3.connect(str(staged))) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    fsync(staged)
    check_integrity(staged)
    return tuple(missing)


def _heal_adapters(source: Path, data_dir: Path, files: dict[str, str]) -> tuple[str, ...]:
    """Copy every adapter of the backup that is missing or not whole; return which those were.

    An adapter's name is its content's hash, so that a healed one is right for the former database too.
    """
    adapters = data_dir / "adapters"
    healed = []
    for name in sorted({Path(file).parts[1] for file in files if file.startswith("adapters/")}):
        own = {file: digest for file, digest in files.items() if file.startswith(f"adapters/{name}/")}
        if all(_is(data_dir / file, digest) for file, digest in own.items()):
            continue
        adapters.mkdir(exist_ok=True, mode=0o700)
        if (adapters / name).exists():
            shutil.rmtree(adapters / name)
        copy_durably(source / "adapters" / name, adapters / name)
        healed.append(name)
        log.info("restore.adapter", adapter_id=name)
    return tuple(healed)


def _is(file: Path, digest: str) -> bool:
    return file.is_file() and sha256(file) == digest


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
                known |= set(list_erasures(database))
    return sorted(known)


def _keep(target: Path, folder: Path) -> Path | None:
    """Keep the former database in a folder of its own, without taking it from its place."""
    if not target.exists():
        return None
    folder.mkdir(parents=True, mode=0o700)
    for suffix in ("", *_LOG_FILES):
        file = target.with_name(target.name + suffix)
        if file.exists():
            try:
                os.link(file, folder / (DATABASE + suffix))
            except OSError:  # a file system without hard links
                shutil.copy2(file, folder / (DATABASE + suffix))
    fsync(folder)
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


def _forget_lost_runs(db: sqlite_utils.Database, data_dir: Path) -> None:
    """A run whose folder is gone can't be repeated."""
    for row in sql.many(db, "SELECT id FROM runs WHERE repeatable = 1 AND snapshot_hash IS NOT NULL"):
        if not (data_dir / "runs" / row["id"]).is_dir():
            sql.change(db, "UPDATE runs SET repeatable = 0 WHERE id = ?", (row["id"],))
