import json
import subprocess
import sys
from pathlib import Path

import pytest

from storage.config import load_config
from storage.process import memory


def test_the_server_the_trainer_and_its_run_are_counted(tmp_path: Path) -> None:
    config = load_config(None, {"STROP_HOME": str(tmp_path)})
    config.run.mkdir(parents=True)
    # Stand-ins: a server, and a trainer with a child whose command line names the run.
    wait = "print(flush=True); input()"
    server = subprocess.Popen(
        [sys.executable, "-c", wait, "bot.serving"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    (config.run / "server.json").write_text(json.dumps({"pid": server.pid}))
    code = (
        "import subprocess, sys\n"
        "run = subprocess.Popen([sys.executable, '-c', 'print(flush=True); input()', 'trainer.run'],"
        " stdin=subprocess.PIPE)\n"
        "input(); run.communicate(b'')\n"
    )
    trainer = subprocess.Popen(
        [sys.executable, "-c", code, "trainer"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    for process in (server, trainer):
        assert process.stdout is not None
        process.stdout.readline()
    (config.run / "trainer.lock").write_text(f"{trainer.pid}\n")
    sizes = memory.read_by_process(config)
    for process in (trainer, server):
        process.communicate(b"\n")
    assert memory.read_by_process(config) == {}
    if not Path("/proc/self/smaps_rollup").exists():
        pytest.skip("this system does not count shared pages")
    assert {"model server", "trainer", "training run"} <= set(sizes)
    assert all(size > 1e6 for size in sizes.values())
    assert "training run" in memory.sentence(sizes)


def test_nothing_is_said_where_nothing_runs(tmp_path: Path) -> None:
    config = load_config(None, {"STROP_HOME": str(tmp_path)})
    assert memory.read_by_process(config) == {}
    assert memory.sentence({}) == ""


# The word is put together here, so that nothing but the database's pages holds it.
_HOLDER = """
import sys
from pathlib import Path
from storage.db.database import Database
from storage.process import memory

database = Database.open(Path(sys.argv[1]))
database.write(lambda db: db.conn.execute("CREATE TABLE notes (text TEXT)"))
database.write(lambda db: db.conn.execute(
    "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000) "
    "INSERT INTO notes SELECT i || char(112, 117, 114, 112, 108, 101, 45, 99, 97, 110, 97, 114, 121) FROM n"))
database.read(lambda db: db.conn.execute("SELECT sum(length(text)) FROM notes").fetchone())
print("full", flush=True)
sys.stdin.readline()
database.write(lambda db: db.conn.execute("DELETE FROM notes"))
database.release_memory()
memory.return_freed()
print("released", flush=True)
sys.stdin.readline()
"""


def held(pid: int, word: bytes) -> int:
    """Count a word in what a process can write to."""
    found = 0
    with Path(f"/proc/{pid}/maps").open() as maps, Path(f"/proc/{pid}/mem").open("rb", 0) as memory_of:
        for line in maps:
            place, rights = line.split()[:2]
            if rights.startswith("rw") and "[v" not in line:
                begin, end = (int(each, 16) for each in place.split("-"))
                memory_of.seek(begin)
                found += memory_of.read(end - begin).count(word)
    return found


def test_after_an_erasure_the_process_holds_next_to_nothing_of_what_the_database_held(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(tmp_path / "strop.db")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdin is not None and holder.stdout is not None
    with holder:
        counts = []
        for expected in ("full", "released"):
            assert holder.stdout.readline().strip() == expected
            counts.append(held(holder.pid, b"purple-canary"))
            holder.stdin.write("\n")
            holder.stdin.flush()
    before, after = counts
    assert before > 3000, "the writer's pages and a reader's"
    # Without the release a reader's half stays, 3,001; with it a few pages between others do, 62 to 375.
    assert after < before / 6, (before, after)
