import io
from pathlib import Path

from rich.console import Console

from storage.db.database import Database
from tests.bench.storage.__main__ import measure, report
from tests.bench.storage.large_database import fill
from tests.bench.storage.statements import Statement


def test_every_query_is_looked_up_by_an_index_and_none_scans_a_table_that_grows(tmp_path: Path) -> None:
    with Database.open(tmp_path / "strop.db") as database:
        database.write(lambda db: fill(db, 2_000))
    statements = measure(tmp_path / "strop.db", repeats=1)
    assert len(statements) > 100
    growing = (
        *("messages", "replies", "ratings", "conversations", "reply_context", "run_rows", "members"),
        *("audit", "comparisons"),
    )
    scans = {
        (statement.operation, line)
        for statement in statements
        for line in statement.plan
        if line.startswith("SCAN") and line.split()[1] in growing
    }
    # Three stop early: one reads only half-written replies, the others a fixed number of rows. An erasure and
    # a look for wrong refusals, which are rare, look for a name in what others wrote, and through the log.
    found = {(operation, line.split(" USING")[0]) for operation, line in scans}
    assert found <= {
        ("start: open replies", "SCAN replies"),
        ("trainer: a run", "SCAN replies"),
        ("status: audit", "SCAN audit"),
        ("admin: wrongly rejected", "SCAN audit"),
        ("privacy: erase", "SCAN replies"),
        ("privacy: erase", "SCAN messages"),
    }


def test_the_table_names_what_is_too_slow(tmp_path: Path) -> None:
    waiting = Statement("chat", "SELECT 1", ["SEARCH"], [90.0], [1.0, 2.0, 3.0])
    slow = Statement("status", "SELECT 2", ["SCAN"], [90.0], [60.0, 70.0, 80.0])
    console = Console(file=io.StringIO(), record=True, width=200)
    assert report([waiting], console)
    assert not report([waiting, slow], console)
    assert "2 statements, slowest 70.0 CPU-ms, 1 over the limit" in console.export_text()
