"""The files of a backup: their names and hashes, and copies that are whole or not there."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlite_utils.utils import sqlite3

from storage.db import sql
from storage.db.database import Database

MANIFEST = "manifest.json"
DATABASE = "strop.db"
PARTIAL = ".partial"
ERASURES_OF = "SELECT user_id, requested_ms FROM erasures"


def open_read_only(path: Path) -> Any:
    """Open a database of a backup without changing a byte of it. Raises OSError where it can't be read."""
    path.open("rb").close()
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)


def write_manifest(folder: Path, created_ms: int) -> dict[str, Any]:
    """Write the hash of every file of a backup beside them, whole or not at all."""
    files = {file.relative_to(folder).as_posix(): sha256(file) for file in files_of(folder)}
    manifest = {"version": 1, "created_ms": created_ms, "files": files}
    partial = folder / f"{MANIFEST}{PARTIAL}"
    partial.write_text(json.dumps(manifest, indent=1, sort_keys=True))
    fsync(partial)
    partial.replace(folder / MANIFEST)
    fsync(folder)
    return manifest


def find_damaged(folder: Path) -> list[str]:
    """Return the files of an adapter's folder that are missing or not what its own manifest says."""
    try:
        expected: dict[str, str] = json.loads((folder / MANIFEST).read_text())["files"]
    except FileNotFoundError:
        return []  # A folder without a manifest is no adapter that anybody could load.
    except (OSError, ValueError, KeyError, TypeError):
        return [MANIFEST]
    return [
        name
        for name, digest in expected.items()
        if not (folder / name).is_file() or sha256(folder / name) != digest
    ]


def copy_durably(source: Path, dest: Path) -> None:
    """Copy a folder; it appears under its name only when every byte is on disk."""
    partial = dest.with_name(f".{dest.name}{PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial)
    for file in (*partial.rglob("*"), partial):
        fsync(file)
    partial.rename(dest)
    fsync(dest.parent)


def sha256(file: Path) -> str:
    """Return a file's hash."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fsync(path: Path) -> None:
    """Wait until a file or a folder is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def list_erasures(database: Database) -> list[tuple[int, int]]:
    """Return (user id, time) of every erasure that a database knows."""
    rows = database.read(lambda db: sql.many(db, ERASURES_OF))
    return [(row["user_id"], row["requested_ms"]) for row in rows]


def files_of(folder: Path) -> Iterator[Path]:
    """Return the files of a backup, without the manifest that lists them."""
    own = (folder / MANIFEST, folder / f"{MANIFEST}{PARTIAL}")
    return (file for file in sorted(folder.rglob("*")) if file.is_file() and file not in own)
