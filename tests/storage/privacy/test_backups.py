"""A backup that bears its name can be restored, and a restore is whole or has not happened."""

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import sqlite_utils
from sqlite_utils.utils import sqlite3

from storage.db import key_values, sql
from storage.db.database import Database
from storage.errors import BackupError, CorruptDatabaseError
from storage.privacy import backup, backup_erasure, backup_files, erasure, file_scrubbing, restore
from tests.storage.conftest import Community

ROOT = Path(__file__).parents[3]
ANN = 1


def adapter(home: Path, name: str, content: str = "weights") -> Path:
    """An adapter folder with a manifest of its files' hashes."""
    folder = home / "adapters" / name
    folder.mkdir(parents=True)
    (folder / "adapter.bin").write_text(content)
    files = {"adapter.bin": hashlib.sha256(content.encode()).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps({"id": name, "files": files}))
    return folder


@pytest.fixture
def home(database: Database) -> Path:
    """Some pages of rows, and one adapter."""

    def work(db: sqlite_utils.Database) -> None:
        community = Community()
        for number in range(40):
            community.asks(db, ANN, f"question {number} " + "x" * 500)
        key_values.put(db, "which", "backed up")

    database.write(work)
    adapter(database.path.parent, "a1")
    return database.path.parent


def which(path: Path) -> str | None:
    with Database.open(path) as opened:
        return opened.read(lambda db: key_values.get(db, "which"))


def damage(path: Path, seed: int) -> bool:
    """Overwrite the beginning or a part of a page; return whether the database still opens and answers."""
    content = bytearray(path.read_bytes())
    drawn = random.Random(seed)
    start = drawn.randrange(2, len(content) // 4096) * 4096 + drawn.choice((0, 0, drawn.randrange(3_000)))
    content[start : start + 200] = drawn.randbytes(200)
    path.write_bytes(content)
    try:
        with Database.open(path) as opened:
            opened.read(lambda db: key_values.get(db, "which"))
    except Exception:  # what doesn't open is not what this is about
        return False
    return True


def damaged_backups(home: Path, tmp_path: Path, count: int) -> tuple[int, int]:
    """Damage copies of a database in so many ways; return how many opened, and how many were backed up."""
    opened = made = 0
    with contextlib.closing(sqlite3.connect(str(home / "strop.db"))) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for seed in range(count):
        copy = tmp_path / f"copy{seed}" / "strop.db"
        copy.parent.mkdir()
        shutil.copyfile(home / "strop.db", copy)
        with contextlib.closing(sqlite3.connect(str(copy))) as connection:
            connection.execute("PRAGMA journal_mode=DELETE")
        if not damage(copy, seed):
            continue
        with contextlib.closing(sqlite3.connect(str(copy))) as connection:
            sound = False
            with contextlib.suppress(sqlite3.DatabaseError):
                sound = connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        if sound:
            continue  # unused space, or letters of a text: nobody can tell
        opened += 1
        with Database.open(copy) as database, contextlib.suppress(BackupError):
            backup.backup(database, copy.parent / "backup")
            made += 1
        assert not (copy.parent / "backup").exists() or made
        shutil.rmtree(copy.parent)
    return opened, made


def test_no_damaged_database_is_backed_up(home: Path, tmp_path: Path) -> None:
    opened, made = damaged_backups(home, tmp_path, 20)
    assert opened >= 3
    assert made == 0


@pytest.mark.torture
def test_none_of_200_damaged_databases_is_backed_up(home: Path, tmp_path: Path) -> None:
    opened, made = damaged_backups(home, tmp_path, 200)
    assert opened >= 30
    assert made == 0


def test_damage_that_only_a_check_constraint_shows_is_found(home: Path, tmp_path: Path) -> None:
    """To a connection that is read-only SQLite calls such a file sound."""
    path = home / "strop.db"
    with contextlib.closing(sqlite3.connect(str(path))) as connection:
        connection.execute("PRAGMA ignore_check_constraints=ON")
        connection.execute("UPDATE replies SET prompt_json = 'torn'")
        connection.commit()
    with Database.open(path) as database, pytest.raises(BackupError, match="CHECK constraint failed"):
        backup.backup(database, tmp_path / "backup")


def test_the_refusal_names_the_damage_and_leaves_nothing(database: Database, home: Path) -> None:
    database.close()
    content = bytearray((home / "strop.db").read_bytes())
    # The last page: no page of the schema, which is read when the database is opened.
    content[-4096:] = b"\xff" * 4096
    (home / "strop.db").write_bytes(content)
    with (
        Database.open(home / "strop.db") as damaged,
        pytest.raises(BackupError, match=r"No backup was made.*damaged"),
    ):
        backup.backup(damaged, home / "backups" / "monday")
    assert list((home / "backups").iterdir()) == []


def test_a_damaged_adapter_is_left_out_and_named(database: Database, home: Path, tmp_path: Path) -> None:
    (adapter(home, "a2") / "adapter.bin").write_text("cut o")
    made = backup.backup(database, tmp_path / "monday")
    assert made.damaged == ("a2",)
    assert sorted(folder.name for folder in (tmp_path / "monday" / "adapters").iterdir()) == ["a1"]


@pytest.mark.parametrize("harm", ["cut", "gone", "swapped"])
def test_a_restore_heals_every_adapter_that_the_backup_holds(
    database: Database, home: Path, tmp_path: Path, harm: str
) -> None:
    backup.backup(database, tmp_path / "monday")
    database.close()
    file = home / "adapters" / "a1" / "adapter.bin"
    if harm == "gone":
        shutil.rmtree(file.parent)
    else:
        file.write_text("weig" if harm == "cut" else "WEIGHTS")
    restored = restore.restore(tmp_path / "monday", home)
    assert restored.healed == ("a1",)
    assert file.read_text() == "weights"
    assert backup_files.find_damaged(file.parent) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from storage.privacy import restore
left = int(sys.argv[3])
def kill(event, arguments):
    global left
    if event in ("os.rename", "os.link", "os.remove", "os.mkdir", "shutil.copyfile", "open"):
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(kill)
restore.restore(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def killed_restore(source: Path, data_dir: Path, at: int) -> bool:
    """Restore in a process that is killed before its `at`-th act on files; return whether it was."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(source), str(data_dir), str(at)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0


def kill_restores(database: Database, home: Path, tmp_path: Path, every: int) -> int:
    """Kill a restore at every `every`-th of its acts; return how often."""
    backup.backup(database, tmp_path / "monday")
    database.write(lambda db: key_values.put(db, "which", "of today"))
    database.close()
    shutil.rmtree(home / "adapters" / "a1")
    killed, at = 0, every
    while True:
        copy = tmp_path / f"home{at}"
        shutil.copytree(home, copy)
        if not killed_restore(tmp_path / "monday", copy, at):
            return killed
        killed += 1
        assert (copy / "strop.db").stat().st_size > 4096, f"no database after a kill at {at}"
        assert which(copy / "strop.db") in ("of today", "backed up")
        restore.restore(tmp_path / "monday", copy)
        assert which(copy / "strop.db") == "backed up"
        assert (copy / "adapters" / "a1" / "adapter.bin").read_text() == "weights"
        assert not (copy / restore.STAGING).exists()
        shutil.rmtree(copy)
        at += every


def test_a_kill_in_the_middle_of_a_restore_leaves_the_old_database_or_the_new_one(
    database: Database, home: Path, tmp_path: Path
) -> None:
    assert kill_restores(database, home, tmp_path, 6) >= 3


@pytest.mark.torture
def test_a_kill_at_any_act_of_a_restore_leaves_the_old_database_or_the_new_one(
    database: Database, home: Path, tmp_path: Path
) -> None:
    assert kill_restores(database, home, tmp_path, 1) >= 20


def test_a_restore_that_fails_leaves_the_database_as_it_was(
    database: Database, home: Path, tmp_path: Path
) -> None:
    backup.backup(database, tmp_path / "monday")
    database.write(lambda db: key_values.put(db, "which", "of today"))
    database.close()
    (tmp_path / "monday" / "strop.db").write_bytes(b"cut off")
    with pytest.raises(BackupError):
        restore.restore(tmp_path / "monday", home)
    assert which(home / "strop.db") == "of today"


def newer(folder: Path) -> None:
    """Make a backup one of a version that is to come."""
    with contextlib.closing(sqlite3.connect(str(folder / "strop.db"))) as connection, connection:
        connection.execute(
            """INSERT INTO _sqlite_migrations (migration_set, name, applied_at)
               VALUES ('strop', 'm9999_future', '')"""
        )
    backup_files.write_manifest(folder, 1)


def erase(database: Database, home: Path) -> bool:
    return file_scrubbing.complete(
        database, home, database.write(lambda db: erasure.erase_member(db, ANN, "1"))
    )


def words_in(folder: Path) -> int:
    with contextlib.closing(backup_files.open_read_only(folder / "strop.db")) as connection:
        return int(
            connection.execute("SELECT count(*) FROM messages WHERE content LIKE 'question%'").fetchone()[0]
        )


def test_a_newer_versions_backup_keeps_no_other_from_being_erased_and_is_named(
    database: Database, home: Path
) -> None:
    for name in ("friday", "monday", "tuesday"):
        backup.backup(database, home / "backups" / name)
    newer(home / "backups" / "monday")
    before = (home / "backups" / "monday" / "strop.db").read_bytes()
    assert erase(database, home)
    assert words_in(home / "backups" / "friday") == words_in(home / "backups" / "tuesday") == 0
    assert (home / "backups" / "monday" / "strop.db").read_bytes() == before
    (left,) = backup_erasure.find_unerased(database, home / "backups")
    assert left.folder.name == "monday"

    with (
        contextlib.closing(sqlite3.connect(str(home / "backups" / "monday" / "strop.db"))) as connection,
        connection,
    ):
        connection.execute("DELETE FROM _sqlite_migrations WHERE name = 'm9999_future'")
    assert file_scrubbing.complete_pending(database, home) == 0
    assert words_in(home / "backups" / "monday") == 0
    assert backup_erasure.find_unerased(database, home / "backups") == []
    assert backup.verify(home / "backups" / "monday")


def test_a_backup_that_can_not_be_looked_into_is_named(database: Database, home: Path) -> None:
    backup.backup(database, home / "backups" / "tuesday")
    (home / "backups" / "monday").mkdir()
    (home / "backups" / "monday" / "strop.db").symlink_to("strop.db")
    assert erase(database, home)
    assert words_in(home / "backups" / "tuesday") == 0
    assert [left.folder.name for left in backup_erasure.find_unerased(database, home / "backups")] == [
        "monday"
    ]


AS_NOBODY = """
import os, sys
from pathlib import Path
from storage.db.database import Database
from storage.privacy import backup_erasure, erasure, file_scrubbing
# After the imports: the packages need not be readable for the other user.
os.setgid(65534), os.setuid(65534)
home = Path(sys.argv[1])
with Database.open(home / "strop.db") as database:
    file_scrubbing.complete(database, home, database.write(lambda db: erasure.erase_member(db, 1, "1")))
    for left in backup_erasure.find_unerased(database, home / "backups"):
        print(left.folder.name, left.reason)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files that somebody else can't read")
def test_a_backup_of_another_user_is_named_instead_of_being_passed_over(
    database: Database, home: Path
) -> None:
    for name in ("monday", "tuesday"):
        backup.backup(database, home / "backups" / name)
    database.close()
    everything = [home, *home.rglob("*")]
    for path in everything:
        if "monday" not in path.parts:
            os.chown(path, 65534, 65534)
    for parent in home.parents:
        if parent != Path("/") and parent.stat().st_mode & 0o5 != 0o5:
            parent.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, str(home)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    *_, left = done.stdout.splitlines() or [done.stderr]
    assert left == "monday its files belong to another user"
    assert words_in(home / "backups" / "tuesday") == 0


FULL = """
import resource, sys
from pathlib import Path
from storage.db.database import Database
from storage.errors import BackupError
from storage.privacy import backup
home = Path(sys.argv[1])
with Database.open(home / "strop.db") as database:
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))
    try:
        backup.backup(database, home / "backups" / "monday")
    except BackupError as error:
        print(error)
"""


def test_a_backup_on_a_full_disk_says_so_in_one_sentence(database: Database, home: Path) -> None:
    database.close()
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(home)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    (sentence,) = done.stdout.splitlines()
    assert "could not be written" in sentence and "Traceback" not in done.stderr
    assert list((home / "backups").iterdir()) == []


@pytest.mark.parametrize("size", [0, 1, 511])
def test_a_database_that_was_cut_off_is_neither_new_nor_sound(tmp_path: Path, size: int) -> None:
    path = tmp_path / "strop.db"
    Database.open(path).close()
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CorruptDatabaseError, match="cut off"):
        Database.open(path)
    assert path.stat().st_size == size


def test_two_processes_may_make_the_database_at_once(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib, storage.db.database as d; d.Database.open(pathlib.Path(sys.argv[1])).close()"
    )
    path = tmp_path / "home" / "strop.db"
    both = [subprocess.Popen([sys.executable, "-c", script, str(path)], cwd=ROOT) for _ in range(3)]
    assert [each.wait() for each in both] == [0, 0, 0]
    assert [each.name for each in path.parent.iterdir()] == ["strop.db"]
    with Database.open(path) as database:
        assert database.read(lambda db: sql.value(db, "SELECT count(*) FROM members")) == 0


def test_the_newest_whole_backup_is_found_behind_a_damaged_one(database: Database, home: Path) -> None:
    assert backup.newest_verified(home / "backups") is None
    for name in ("a", "b"):
        backup.backup(database, home / "backups" / name)
    (home / "backups" / "b" / "adapters" / "a1" / "adapter.bin").write_text("damaged")
    found = backup.newest_verified(home / "backups")
    assert found is not None and found[0].name == "a"
