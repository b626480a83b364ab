"""Databases of the newest schema, copied from one: to migrate a new one takes 16 commits and 20 ms."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from storage.db.database import Database
from tests.models import made_once


@pytest.fixture(scope="session")
def empty_database(session_folder: Path) -> Path:
    """A database of the newest schema without rows, for `copied`."""
    path = session_folder / "empty" / "strop.db"
    with made_once(path.parent) as (folder, new):
        if new:
            folder.mkdir(exist_ok=True)
            Database.open(path).close()
    return path


def copied(empty_database: Path, path: Path) -> Database:
    """Open a copy of the empty database at a path where none is yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(empty_database, path)
    return Database.open(path)
