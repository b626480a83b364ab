import asyncio
import contextvars
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import sqlite_utils
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlite_utils.utils import sqlite3

from storage.db import key_values, migrations, sql
from storage.db.database import Database, sqlite_version_problem
from storage.db.sqlite_errors import BUSY_TIMEOUT_S
from storage.db.writer import TOGETHER, WAITING_WRITES
from storage.errors import (
    CorruptDatabaseError,
    DatabaseBusyError,
    DatabaseClosedError,
    DatabaseUnavailableError,
    DiskFullError,
    NewerDatabaseError,
)

TABLES = {
    *("members", "conversations", "messages", "replies", "reply_parts", "reply_context", "ratings"),
    *("adapters", "champions", "promotions", "runs", "run_rows", "evaluations", "duels", "duel_votes"),
    *("audit", "erasures", "facts", "scope_counts", "scope_raters", "rating_days", "rater_weeks"),
}


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    """Run Python in another process that imports storage like any of ours does."""
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )


def test_every_table_is_strict_and_every_foreign_key_holds(database: Database) -> None:
    tables = database.read(lambda db: sql.many(db, "PRAGMA table_list"))
    ours = {table["name"]: table["strict"] for table in tables if table["name"] in TABLES}
    assert set(ours) == TABLES
    assert all(ours.values())
    with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
        database.write(lambda db: sql.change(db, "INSERT INTO run_rows VALUES ('no', 'no', 'train', 'x', 1)"))


def test_the_file_is_durable_private_and_overwrites_what_it_frees(database: Database) -> None:
    def pragmas(db: sqlite_utils.Database) -> list[object]:
        return [
            sql.value(db, f"PRAGMA {name}")
            for name in ("journal_mode", "synchronous", "secure_delete", "foreign_keys")
        ]

    assert database.write(pragmas) == ["wal", 2, 1, 1]
    for suffix in ("", "-wal", "-shm"):
        mode = Path(f"{database.path}{suffix}").stat().st_mode
        assert stat.S_IMODE(mode) == 0o600


def test_a_write_that_fails_leaves_nothing_behind(database: Database) -> None:
    def half(db: sqlite_utils.Database) -> None:
        key_values.put(db, "a", "1")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        database.write(half)
    assert database.read(lambda db: key_values.get(db, "a")) is None
    database.write(lambda db: key_values.put(db, "a", "2"))
    assert database.read(lambda db: key_values.get(db, "a")) == "2"


def test_a_reader_cannot_write(database: Database) -> None:
    with pytest.raises(DatabaseUnavailableError, match="readonly"):
        database.read(lambda db: key_values.put(db, "a", "1"))


def test_a_read_sees_one_moment_even_while_another_process_writes(database: Database) -> None:
    def twice(db: sqlite_utils.Database) -> tuple[str | None, str | None]:
        before = key_values.get(db, "a")
        writer = threading.Thread(target=lambda: database.write(lambda db: key_values.put(db, "a", "new")))
        writer.start()
        writer.join()
        return before, key_values.get(db, "a")

    assert database.read(twice) == (None, None)
    assert database.read(lambda db: key_values.get(db, "a")) == "new"


def test_a_read_within_a_read_shares_its_snapshot(database: Database) -> None:
    database.write(lambda db: key_values.put(db, "a", "1"))
    assert database.read(lambda db: database.read(lambda inner: key_values.get(inner, "a"))) == "1"


def test_a_write_inside_a_write_is_refused_instead_of_hanging(database: Database) -> None:
    with pytest.raises(RuntimeError, match="may not start another write"):
        database.write(lambda db: database.write(lambda inner: None))


async def test_a_cancelled_caller_does_not_undo_its_write(database: Database) -> None:
    started, release = threading.Event(), threading.Event()

    def slow(db: sqlite_utils.Database) -> None:
        started.set()
        release.wait(10)
        key_values.put(db, "slow", "done")

    first = asyncio.create_task(database.awrite(slow))
    second = asyncio.create_task(database.awrite(lambda db: key_values.put(db, "queued", "done")))
    await asyncio.to_thread(started.wait, 10)
    first.cancel()
    second.cancel()
    assert all(
        isinstance(result, asyncio.CancelledError)
        for result in await asyncio.gather(first, second, return_exceptions=True)
    )
    release.set()
    await database.awrite(lambda db: None)
    assert await database.aread(lambda db: (key_values.get(db, "slow"), key_values.get(db, "queued"))) == (
        "done",
        "done",
    )


async def test_work_off_the_event_loop_runs_in_its_callers_context(database: Database) -> None:
    language = contextvars.ContextVar("language", default="en")
    language.set("de")
    assert await database.awrite(lambda db: language.get()) == "de"
    assert await database.aread(lambda db: language.get()) == "de"


async def test_the_event_loop_keeps_turning_while_a_write_waits(database: Database) -> None:
    release = threading.Event()
    write = asyncio.create_task(database.awrite(lambda db: release.wait(10)))
    turns = 0
    for _ in range(20):
        await asyncio.sleep(0.001)
        turns += 1
    assert turns == 20 and not write.done()
    release.set()
    assert await write


async def test_more_writes_than_the_queue_holds_all_arrive(database: Database) -> None:
    release = threading.Event()
    holding = asyncio.create_task(database.awrite(lambda db: release.wait(10)))
    many = WAITING_WRITES + 20
    waiting = [
        asyncio.create_task(database.awrite(lambda db, n=n: key_values.put(db, str(n), "x")))
        for n in range(many)
    ]
    await asyncio.sleep(0.1)  # the loop still turns although the queue is full
    release.set()
    await asyncio.gather(holding, *waiting)
    assert await database.aread(lambda db: sql.value(db, "SELECT count(*) FROM facts")) == many


def test_a_database_that_everybody_closed_is_one_file(tmp_path: Path) -> None:
    """Whoever copies it has everything, and no log beside it keeps what was deleted."""
    path = tmp_path / "strop.db"
    with Database.open(path) as database:
        database.write(lambda db: key_values.put(db, "word", "cnry-kept"))
        assert database.read(lambda db: key_values.get(db, "word")) == "cnry-kept"
    assert [file.name for file in tmp_path.iterdir()] == ["strop.db"]
    assert b"cnry-kept" in path.read_bytes()


def test_a_closed_database_says_so(database: Database) -> None:
    database.close()
    database.close()
    with pytest.raises(DatabaseClosedError):
        database.write(lambda db: None)
    with pytest.raises(DatabaseClosedError):
        database.read(lambda db: None)


def test_closing_finishes_what_was_accepted(tmp_path: Path) -> None:
    database = Database.open(tmp_path / "strop.db")
    writers = [
        threading.Thread(target=lambda n=n: database.write(lambda db: key_values.put(db, str(n), "x")))
        for n in range(20)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    database.close()
    with Database.open(tmp_path / "strop.db") as again:
        assert again.read(lambda db: sql.value(db, "SELECT count(*) FROM facts")) == 20


COUNT_UP = """
import sys
from pathlib import Path
from storage.db import key_values
from storage.db.database import Database
sys.stdin.readline()
def add(db):
    key_values.put(db, "n", str(int(key_values.get(db, "n", "0")) + 1))  # read, then write
with Database.open(Path(sys.argv[1])) as database:
    for _ in range(int(sys.argv[2])):
        database.write(add)
"""


def test_processes_that_read_then_write_lose_no_update_and_migrate_once(tmp_path: Path) -> None:
    path = tmp_path / "strop.db"
    processes = [start(COUNT_UP, path, 50) for _ in range(4)]
    for process in processes:  # all at once, on a file that none of them has created yet
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    with Database.open(path) as database:
        assert database.read(lambda db: key_values.get(db, "n")) == "200"
        applied = database.read(lambda db: sql.many(db, "SELECT name FROM _sqlite_migrations"))
    assert len(applied) == len({row["name"] for row in applied}) == len(migrations.steps._migrations)


WRITE_FOR_EVER = """
import sys
from pathlib import Path
from storage.db import key_values
from storage.db.database import Database
database = Database.open(Path(sys.argv[1]))
n = 0
while True:
    n += 1
    database.write(lambda db: (key_values.put(db, f"a{n}", "x"), key_values.put(db, f"b{n}", "x")))
    print(n, flush=True)
"""


WRITE_TOGETHER_FOR_EVER = """
import asyncio, sys
from pathlib import Path
from storage.db import key_values
from storage.db.database import Database
database = Database.open(Path(sys.argv[1]))
async def one(n):
    await database.awrite(lambda db: (key_values.put(db, f"a{n}", "x"), key_values.put(db, f"b{n}", "x")))
    print(n, flush=True)
async def main():
    for first in range(1, 10**9, 20):
        await asyncio.gather(*(one(n) for n in range(first, first + 20)))
asyncio.run(main())
"""


@pytest.mark.parametrize("script", [WRITE_FOR_EVER, WRITE_TOGETHER_FOR_EVER], ids=["alone", "together"])
@pytest.mark.parametrize("lines", [1, 7, 40])
def test_a_process_killed_while_writing_keeps_every_acknowledged_write_whole(
    tmp_path: Path, script: str, lines: int
) -> None:
    process = start(script, tmp_path / "strop.db")
    assert process.stdout is not None
    acknowledged = [process.stdout.readline() for _ in range(lines)]
    process.send_signal(signal.SIGKILL)
    # Not communicate(): it reads past what readline has buffered, and so begins in the midst of a line.
    acknowledged += process.stdout.read().splitlines(keepends=True)
    process.wait()
    with Database.open(tmp_path / "strop.db") as database:
        keys = {row["key"] for row in database.read(lambda db: sql.many(db, "SELECT key FROM facts"))}
        assert database.read(lambda db: sql.value(db, "PRAGMA integrity_check")) == "ok"
    # A line that the kill cut off says nothing.
    assert {f"a{line.strip()}" for line in acknowledged if line.endswith("\n")} <= keys
    assert keys == {f"{letter}{n}" for letter in "ab" for n in range(1, len(keys) // 2 + 1)}


def put(number: int) -> Callable[[sqlite_utils.Database], None]:
    return lambda db: key_values.put(db, str(number), "x")


async def all_waiting(
    database: Database, works: Sequence[Callable[[sqlite_utils.Database], object]]
) -> list[object]:
    """Queue writes while another holds the writer, then let them go; return what came of each."""
    started, release = threading.Event(), threading.Event()
    holding = asyncio.create_task(database.awrite(lambda db: (started.set(), release.wait(10))))
    await asyncio.to_thread(started.wait, 10)
    waiting = [asyncio.create_task(database.awrite(work)) for work in works]
    await asyncio.sleep(0)  # each task queues its write in its first turn
    release.set()
    await holding
    return await asyncio.gather(*waiting, return_exceptions=True)


async def test_writes_that_wait_are_committed_together(database: Database) -> None:
    statements: list[str] = []
    database.write(lambda db: db.conn.set_trace_callback(statements.append))
    await all_waiting(database, [put(number) for number in range(2 * TOGETHER)])
    assert statements.count("COMMIT") == 1 + 1 + 2
    assert database.read(lambda db: sql.value(db, "SELECT count(*) FROM facts")) == 2 * TOGETHER


async def test_of_writes_that_are_committed_together_one_that_fails_is_taken_back_alone(
    database: Database,
) -> None:
    def fail(db: sqlite_utils.Database) -> None:
        key_values.put(db, "half", "x")
        raise LookupError("no")

    first, failed, refused, last = await all_waiting(
        database, [put(1), fail, lambda db: sql.change(db, "INSERT INTO run_rows VALUES (1)"), put(2)]
    )
    assert (first, last) == (None, None)
    assert isinstance(failed, LookupError) and isinstance(refused, sqlite3.OperationalError)
    assert {row["key"] for row in database.read(lambda db: sql.many(db, "SELECT key FROM facts"))} == {
        "1",
        "2",
    }


async def test_writes_whose_common_commit_fails_are_told_so_and_leave_nothing(database: Database) -> None:
    def found_out_at_the_commit(db: sqlite_utils.Database) -> None:
        sql.change(db, "PRAGMA defer_foreign_keys=ON")
        sql.change(db, "INSERT INTO run_rows VALUES ('no', 'no', 'train', 'x', 1)")

    ended = await all_waiting(database, [put(1), found_out_at_the_commit, put(2)])
    assert [type(each) for each in ended] == [sqlite3.IntegrityError] * 3
    assert database.read(lambda db: sql.value(db, "SELECT count(*) FROM facts")) == 0
    await database.awrite(put(3))


async def test_a_checkpoint_among_waiting_writes_is_outside_of_their_transactions(database: Database) -> None:
    writes = [asyncio.create_task(database.awrite(put(number))) for number in range(200)]
    cuts = [asyncio.create_task(asyncio.to_thread(database.checkpoint_truncate)) for _ in range(3)]
    assert all(await asyncio.gather(*cuts))
    await asyncio.gather(*writes)
    assert database.read(lambda db: sql.value(db, "SELECT count(*) FROM facts")) == 200


def test_a_full_disk_is_said_and_nothing_is_lost(database: Database) -> None:
    database.write(lambda db: key_values.put(db, "before", "x"))
    pages = database.read(lambda db: sql.value(db, "PRAGMA page_count"))
    database.write(lambda db: sql.value(db, f"PRAGMA max_page_count={pages + 2}"))
    with pytest.raises(DiskFullError, match="is full: nothing was lost"):
        database.write(lambda db: key_values.put(db, "big", "x" * 100_000))
    assert database.read(lambda db: (key_values.get(db, "before"), key_values.get(db, "big"))) == ("x", None)
    database.write(lambda db: sql.value(db, "PRAGMA max_page_count=1000000"))
    database.write(lambda db: key_values.put(db, "big", "x" * 100_000))


OUTGROW = """
import resource, sys
from pathlib import Path
from storage.db import key_values
from storage.db.database import Database
from storage.errors import DatabaseError
database = Database.open(Path(sys.argv[1]))
database.write(lambda db: key_values.put(db, "before", "x"))
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
try:
    database.write(lambda db: key_values.put(db, "big", "x" * 2_000_000))
except DatabaseError as error:
    print(type(error).__name__, error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
database.write(lambda db: key_values.put(db, "after", "x"))
print(database.read(lambda db: sorted(row[0] for row in db.conn.execute("SELECT key FROM facts"))))
"""


def test_a_write_that_the_system_refuses_is_rolled_back_and_the_next_one_works(tmp_path: Path) -> None:
    output, errors = start(OUTGROW, tmp_path / "strop.db").communicate(timeout=60)
    first, second = output.splitlines() or [errors, ""]
    assert first.split()[0] in ("DatabaseUnavailableError", "DiskFullError"), errors
    assert second == "['after', 'before']"


def test_a_database_from_a_newer_strop_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "strop.db"
    with Database.open(path) as database:
        database.write(
            lambda db: sql.change(
                db,
                """INSERT INTO _sqlite_migrations (migration_set, name, applied_at)
                   VALUES ('strop', 'm9999_future', '')""",
            )
        )
    with pytest.raises(NewerDatabaseError, match=r"written by a newer Strop.*m9999_future.*upgrade Strop"):
        Database.open(path)


def test_a_file_that_is_no_database_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "strop.db"
    path.write_text("these are not the rows you are looking for" * 100)
    before = path.read_bytes()
    with pytest.raises(CorruptDatabaseError, match=r"damaged or not a database.*strop restore"):
        Database.open(path)
    assert path.read_bytes() == before


def test_a_folder_that_cannot_be_written_is_named_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file where the folder should be")
    with pytest.raises(DatabaseUnavailableError, match="STROP_HOME"):
        Database.open(tmp_path / "home" / "strop.db")


def test_a_damaged_page_is_reported_as_damage(tmp_path: Path) -> None:
    path = tmp_path / "strop.db"
    with Database.open(path) as database:
        database.write(lambda db: [key_values.put(db, str(n), "x" * 500) for n in range(200)])
    content = bytearray(path.read_bytes())
    content[4096 * 2 :] = os.urandom(len(content) - 4096 * 2)
    path.write_bytes(content)
    with pytest.raises(CorruptDatabaseError), Database.open(path) as database:
        database.read(lambda db: sql.many(db, "SELECT * FROM facts"))


def test_a_failing_migration_leaves_the_file_as_it_was(database: Database) -> None:
    def m9000_breaks(db: sqlite_utils.Database) -> None:
        db.conn.execute("CREATE TABLE half (id INTEGER PRIMARY KEY) STRICT")
        raise ValueError("power cut")

    future = sqlite_utils.Migrations("strop")
    future._migrations = list(migrations.steps._migrations)
    future()(m9000_breaks)
    with pytest.raises(ValueError, match="power cut"):
        database.write(lambda db: migrations.apply(db, database.path, future))
    assert database.read(lambda db: [step.name for step in future.pending(db)]) == ["m9000_breaks"]
    assert database.read(lambda db: sql.value(db, "SELECT 1 FROM sqlite_master WHERE name = 'half'")) is None


def test_a_sqlite_with_the_wal_bug_is_pointed_out() -> None:
    assert sqlite_version_problem((3, 51, 3)) is None
    assert "SQLite 3.45.0 has a rare bug" in str(sqlite_version_problem((3, 45, 0)))


def test_the_log_is_cut_to_nothing_after_a_checkpoint(database: Database) -> None:
    database.write(lambda db: key_values.put(db, "a", "x" * 10_000))
    log = Path(f"{database.path}-wal")
    assert log.stat().st_size > 10_000
    assert database.checkpoint_truncate()
    assert log.stat().st_size == 0


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=12))
def test_only_whole_transactions_are_ever_visible(database: Database, plan: list[tuple[str, bool]]) -> None:
    database.write(lambda db: sql.change(db, "DELETE FROM facts"))
    expected: dict[str, str] = {}
    for n, (key, fails) in enumerate(plan):

        def work(db: sqlite_utils.Database, key: str = key, fails: bool = fails, n: int = n) -> None:
            key_values.put(db, key, str(n))
            if fails:
                raise ValueError

        try:
            database.write(work)
            expected[key] = str(n)
        except ValueError:
            pass
    rows = database.read(lambda db: sql.many(db, "SELECT key, value FROM facts"))
    assert {row["key"]: row["value"] for row in rows} == expected


def test_opening_waits_for_a_writer_in_another_process(tmp_path: Path) -> None:
    path = tmp_path / "strop.db"
    with Database.open(path) as database:
        holding = threading.Event()

        def hold(db: sqlite_utils.Database) -> None:
            holding.set()
            time.sleep(0.3)

        thread = threading.Thread(target=lambda: database.write(hold))
        thread.start()
        holding.wait()
        with Database.open(path) as second:
            second.write(lambda db: key_values.put(db, "a", "1"))
        thread.join()
        assert database.read(lambda db: key_values.get(db, "a")) == "1"


def test_a_process_that_serves_waits_for_a_locked_database_until_it_is_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock that outlasts the usual wait at a start ended `strop up` for good."""
    monkeypatch.setattr("storage.db.database.BUSY_TIMEOUT_S", 0.02)
    path, tries = tmp_path / "strop.db", 0
    Database.open(path).close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    def stopping() -> bool:
        nonlocal tries
        tries += 1
        if tries == 3:
            other.execute("ROLLBACK")
        return False

    with Database.open_patiently(path, stopping) as database:
        database.write(lambda db: key_values.put(db, "a", "1"))
    assert tries == 3
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseBusyError):
        Database.open_patiently(path, lambda: True)
    other.close()


def test_a_checkpoint_beside_a_long_reader_keeps_no_write_waiting(tmp_path: Path) -> None:
    """What cuts the log waits for readers inside the only writer: not for long."""
    with Database.open(tmp_path / "strop.db") as database:
        database.write(lambda db: key_values.put(db, "before", "x"))
        reading, done = threading.Event(), threading.Event()

        def read_on(db: sqlite_utils.Database) -> None:
            sql.value(db, "SELECT count(*) FROM facts")
            reading.set()
            done.wait(60)

        reader = threading.Thread(target=lambda: database.read(read_on))
        reader.start()
        assert reading.wait(30)
        database.write(lambda db: key_values.put(db, "new", "x"))
        begun = time.monotonic()
        checkpoint: list[bool] = []
        cutting = threading.Thread(target=lambda: checkpoint.append(database.checkpoint_truncate()))
        cutting.start()
        time.sleep(0.05)
        database.write(lambda db: key_values.put(db, "after", "x"))
        waited_s = time.monotonic() - begun
        cutting.join()
        done.set()
        reader.join()
        assert checkpoint == [False]
        # The reader would have been waited for until the busy timeout.
        assert waited_s < 0.8 * BUSY_TIMEOUT_S
        assert database.checkpoint_truncate()
        assert database.write(lambda db: sql.value(db, "PRAGMA busy_timeout")) == 30_000


def test_a_statement_stays_prepared_however_many_others_there_were(tmp_path: Path) -> None:
    with Database.open(tmp_path / "strop.db") as database:
        prepared: list[object] = []

        def asked(*action: object) -> int:
            """SQLite asks while it prepares a statement, and never while it runs one."""
            prepared.append(action)
            return int(sqlite3.SQLITE_OK)

        def work(db: sqlite_utils.Database) -> None:
            db.conn.set_authorizer(asked)
            for number in range(300):
                db.conn.execute(f"SELECT {number}").fetchall()
            prepared.clear()
            for _ in range(10):
                db.conn.execute("SELECT 'one'").fetchall()
                db.conn.execute("SELECT 'another'").fetchall()
            assert len(prepared) == 2

        database.write(work)
