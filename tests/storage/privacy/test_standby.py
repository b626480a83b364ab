"""A standby by Litestream, rehearsed with the real program (`make test-scale`): failover and erasure."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.db import key_values, sql
from storage.db.database import Database

LITESTREAM = os.environ.get("TEST_LITESTREAM", "")
pytestmark = [
    pytest.mark.scale,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not os.access(LITESTREAM, os.X_OK), reason="TEST_LITESTREAM names no litestream"),
]
WORDS = "the words of a member who leaves"
PATIENCE_S = 120.0


class Standby:
    """A Litestream that replicates a database into a folder, as to another machine."""

    def __init__(self, folder: Path) -> None:
        self.database = folder / "primary" / "strop.db"
        self.replica = folder / "replica"
        self.restored = folder / "standby" / "strop.db"
        self._settings = folder / "litestream.yml"
        self._settings.write_text(
            f"dbs:\n- path: {self.database}\n  replicas:\n"
            f"  - {{type: file, path: {self.replica}, sync-interval: 100ms}}\n"
        )

    @contextlib.contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        process = subprocess.Popen(
            [LITESTREAM, "replicate", "-config", self._settings], stderr=subprocess.DEVNULL
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)

    def restore(self) -> bool:
        """Restore what the replica has; False while it has nothing whole."""
        shutil.rmtree(self.restored.parent, ignore_errors=True)
        self.restored.parent.mkdir()
        command = [LITESTREAM, "restore", "-config", self._settings, "-o", self.restored, self.database]
        return subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0

    def value(self, key: str) -> str | None:
        """What a standby would answer with."""
        if not self.restore():
            return None
        with Database.open(self.restored) as database:
            return database.read(lambda db: key_values.get(db, key))

    def reaches(self, key: str, value: str | None) -> None:
        """Wait until the replica has it."""
        ends_at = time.monotonic() + PATIENCE_S
        while self.value(key) != value:
            assert time.monotonic() < ends_at
            time.sleep(0.1)

    def files_with(self, words: str) -> list[Path]:
        """Where the words stand, on both machines."""
        folders = (self.database.parent, self.replica)
        files = (path for folder in folders for path in folder.rglob("*") if path.is_file())
        return [path for path in files if words.encode() in path.read_bytes()]


@pytest.fixture
def standby(tmp_path: Path) -> Standby:
    return Standby(tmp_path)


def test_a_standby_takes_over_with_what_was_replicated(standby: Standby) -> None:
    with standby.running() as litestream, Database.open(standby.database) as database:
        for number in range(50):
            database.write(lambda db, n=number: key_values.put(db, f"row {n}", "x"))  # type: ignore[misc]
        standby.reaches("row 49", "x")
        litestream.kill()
    shutil.rmtree(standby.database.parent)
    assert standby.restore()
    with Database.open(standby.restored) as database:
        assert database.read(lambda db: sql.value(db, "PRAGMA integrity_check")) == "ok"
        assert database.read(lambda db: sql.value(db, "SELECT count(*) FROM facts")) == 50
        database.write(lambda db: key_values.put(db, "it goes on", "here"))


def test_an_erasure_is_complete_once_litestream_was_stopped_and_its_copies_were_made_anew(
    standby: Standby,
) -> None:
    with Database.open(standby.database) as database:
        with standby.running():
            database.write(lambda db: key_values.put(db, "said", WORDS))
            standby.reaches("said", WORDS)
            database.write(lambda db: sql.change(db, "DELETE FROM facts WHERE key = 'said'"))
            standby.reaches("said", None)
            assert not database.checkpoint_truncate(), "Litestream keeps the log while it runs"
            assert standby.files_with(WORDS)
        assert database.checkpoint_truncate()
        shutil.rmtree(standby.replica)
        shutil.rmtree(standby.database.with_name(f".{standby.database.name}-litestream"))
        assert standby.files_with(WORDS) == []
        with standby.running():
            database.write(lambda db: key_values.put(db, "afterwards", "x"))
            standby.reaches("afterwards", "x")
    assert standby.files_with(WORDS) == []
