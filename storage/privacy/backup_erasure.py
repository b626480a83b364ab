"""Erasing from backups too, and what stands in the way: a newer version's backup, somebody else's files.

`ERASURES` lies beside the database, so that a restore knows who erased even if the database is lost.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog
from sqlite_utils.utils import sqlite3

from storage.db import migrations
from storage.db.database import Database
from storage.db.sqlite_errors import translate_errors
from storage.errors import CorruptDatabaseError, DatabaseError
from storage.privacy import erasure as privacy
from storage.privacy.backup_files import (
    DATABASE,
    ERASURES_OF,
    MANIFEST,
    PARTIAL,
    fsync,
    list_erasures,
    open_read_only,
    write_manifest,
)

log = structlog.get_logger()

ERASURES = "erasures.json"


@dataclass(frozen=True, slots=True)
class Unerased:
    """A backup that may still hold the words of somebody who erased them, and why."""

    folder: Path
    reason: str


def erase_from_backups(backups_dir: Path, user_id: int, actor: str) -> list[Path]:
    """Erase a member from every backup in a folder as well; return the backups that were rewritten.

    One that can't be opened keeps none of the others from being rewritten: `unerased` names it.
    """
    changed = []
    for folder in _folders(backups_dir):
        reason = _try_to_erase(folder, {user_id}, actor)
        if reason is None:
            changed.append(folder)
        else:
            log.warning("backup.not_erased", folder=folder.name, reason=reason)
    return changed


def erase_missed(database: Database, backups_dir: Path) -> list[Unerased]:
    """Erase from backups whoever erased while they could not be opened; return those that still can't be."""
    found = []
    for folder in _folders(backups_dir):
        try:
            missing = _missing(database, folder)
        except (OSError, sqlite3.Error) as error:
            found.append(Unerased(folder, _reason(error)))
            continue
        reason = _try_to_erase(folder, missing, "erasure") if missing else None
        if reason:
            found.append(Unerased(folder, reason))
    return found


def find_unerased(database: Database, backups_dir: Path) -> list[Unerased]:
    """Return the backups that may hold words which their authors have erased; changes nothing."""
    found = []
    for folder in _folders(backups_dir):
        try:
            if _missing(database, folder):
                found.append(Unerased(folder, "somebody erased their data, and it could not be rewritten"))
        except (OSError, sqlite3.Error) as error:
            found.append(Unerased(folder, _reason(error)))
    return found


def erase_from(folder: Path, user_ids: Collection[int], actor: str) -> None:
    """Erase members from one backup and hash its files anew. Raises OSError, DatabaseError."""
    # Opening for writing changes a file: one that is then refused must stay what it was.
    with (
        translate_errors(folder / DATABASE),
        contextlib.closing(open_read_only(folder / DATABASE)) as connection,
    ):
        migrations.require_known(connection, folder / DATABASE)
    with Database.open(folder / DATABASE) as database:
        for user_id in sorted(user_ids):
            erase(database, folder, user_id, actor)
    with contextlib.closing(sqlite3.connect(str(folder / DATABASE))) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    if (folder / MANIFEST).exists():
        write_manifest(folder, json.loads((folder / MANIFEST).read_text())["created_ms"])


def erase(database: Database, folder: Path, user_id: int, actor: str) -> None:
    """Erase a member from a database that nobody else uses, and from the files beside it."""
    erasure = database.write(lambda db: privacy.erase_member(db, user_id, actor))
    privacy.scrub_files(folder, erasure.runs, erasure.affected_adapters)
    database.checkpoint_truncate()
    database.write(lambda db: privacy.mark_scrubbed(db, erasure.id))


def record_erasures(database: Database) -> None:
    """Write who erased when beside the database, so that a restore knows it even if the database is lost."""
    file = database.path.with_name(ERASURES)
    partial = file.with_name(f"{ERASURES}{PARTIAL}")
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT, 0o600))
    partial.write_text(json.dumps(list_erasures(database)))
    fsync(partial)
    partial.replace(file)


def _try_to_erase(folder: Path, user_ids: Collection[int], actor: str) -> str | None:
    """Erase from one backup; return why that can't be, or None."""
    try:
        erase_from(folder, user_ids, actor)
    except CorruptDatabaseError:
        # What can't be read can't be cleaned, and must not keep the member's words either.
        shutil.rmtree(folder, ignore_errors=True)
        log.warning("backup.removed", folder=folder.name)
        return None if not folder.exists() else "it is damaged and can't be removed"
    except (OSError, sqlite3.Error, DatabaseError) as error:
        return _reason(error)
    return None


def _folders(backups_dir: Path) -> Iterator[Path]:
    """Yield the folders of backups, also those that can't be looked into.

    A copy that is being made is left to whoever makes it: it is compared once more when it is complete.
    """
    for folder in sorted(backups_dir.iterdir()) if backups_dir.is_dir() else []:
        if folder.suffix == PARTIAL or not folder.is_dir():
            continue
        try:
            there = (folder / DATABASE).stat() is not None
        except FileNotFoundError:
            there = False
        except OSError:
            there = True
        if there:
            yield folder


def _missing(database: Database, folder: Path) -> set[int]:
    """Return who erased their data and is still in a backup."""
    with contextlib.closing(open_read_only(folder / DATABASE)) as copy:
        known = set(copy.execute(ERASURES_OF).fetchall())
    erased_there = {user_id for user_id, _ in known}
    at_there = {user_id: max(at for who, at in known if who == user_id) for user_id in erased_there}
    return {
        user_id
        for user_id, requested_ms in list_erasures(database)
        if at_there.get(user_id, 0) < requested_ms
    }


def _reason(error: Exception) -> str:
    if isinstance(error, PermissionError):
        return "its files belong to another user"
    return str(error)
