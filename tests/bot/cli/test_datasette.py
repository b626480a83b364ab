"""`strop datasette`: a copy with readable times, deleted afterwards; descriptions and queries fit it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlite_utils.utils import sqlite3

from storage.db.database import Database
from storage.process.locks import ProcessLock
from storage.telemetry import readable_copy
from tests.bot.cli.conftest import Strop

ROOT = Path(__file__).parent.parent.parent.parent
DESCRIBED = yaml.safe_load((ROOT / "deploy/datasette.yaml").read_text())["databases"]["strop"]
# Where `make test-monitoring` keeps the real one.
DATASETTE = os.environ.get("TEST_DATASETTE", "")


@pytest.fixture
def copy(database: Database, tmp_path: Path) -> Any:
    readable_copy.write(database, tmp_path / "copy.db")
    opened = sqlite3.connect(str(tmp_path / "copy.db"))
    yield opened
    opened.close()


def a_program(folder: Path, script: str) -> str:
    """A `datasette` on the PATH that does what a test wants; returns the PATH."""
    folder.mkdir()
    program = folder / "datasette"
    program.write_text(f"#!{sys.executable}\nimport os, sys\n{script}\n")
    program.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def test_every_ready_query_runs_on_a_real_database(copy: Any) -> None:
    for name, query in DESCRIBED["queries"].items():
        cursor = copy.execute(query["sql"])
        cursor.fetchall()
        assert cursor.description, name
        assert query["title"]
    (week,) = copy.execute(DESCRIBED["queries"]["like_rate_by_week"]["sql"]).fetchall()
    assert week[2] == 3 and week[4] == 1.0
    assert time.strptime(week[1], "%Y-%m-%d").tm_wday == 0


def test_what_is_described_is_there(copy: Any) -> None:
    tables = {name for (name,) in copy.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert DESCRIBED["tables"].keys() <= tables
    for table, about in DESCRIBED["tables"].items():
        columns = {row[1] for row in copy.execute(f"PRAGMA table_info({table})")}
        assert about.get("columns", {}).keys() <= columns, table


def test_times_are_readable_and_durations_stay_numbers(copy: Any, tmp_path: Path) -> None:
    cursor = copy.execute("SELECT * FROM readable_replies")
    names = [column[0] for column in cursor.description]
    row = dict(zip(names, cursor.fetchone(), strict=True))
    assert "created_ms" not in names and time.strptime(row["created_utc"], "%Y-%m-%d %H:%M:%S")
    assert isinstance(row["duration_ms"], int)
    assert (tmp_path / "copy.db").stat().st_mode & 0o077 == 0


def test_without_datasette_one_sentence_says_how_to_get_it(
    strop: Strop, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    said = strop("datasette", code=1).stderr
    assert said.startswith("Datasette is not installed: run `") and "pip install" in said


def test_it_gets_a_copy_on_loopback_that_is_gone_afterwards(
    strop: Strop, database: Database, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = tmp_path / "seen"
    script = f"open({str(seen)!r}, 'w').write('\\n'.join([*sys.argv[1:], str(os.path.getsize(sys.argv[2]))]))"
    monkeypatch.setenv("PATH", a_program(tmp_path / "bin", script))
    strop("datasette", "--port", "8123")
    arguments = seen.read_text().splitlines()
    assert arguments[0] == "serve" and int(arguments[-1]) > 4096
    assert Path(arguments[1]) != database.path and not Path(arguments[1]).exists()
    assert arguments[arguments.index("--host") + 1] == "127.0.0.1"
    assert arguments[arguments.index("--port") + 1] == "8123"
    assert Path(arguments[arguments.index("--metadata") + 1]) == ROOT / "deploy/datasette.yaml"


def test_what_datasette_refuses_and_a_second_one_are_said(
    strop: Strop, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", a_program(tmp_path / "bin", "sys.exit(1)"))
    assert "Is port 8001 in use?" in strop("datasette", code=1).stderr
    with ProcessLock(database.path.parent / "run/datasette.lock").acquire("busy"):
        assert "is open already" in strop("datasette", code=2).stderr


@pytest.mark.monitoring
def test_the_real_datasette_shows_descriptions_and_answers_queries(database: Database, home: Path) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    path = f"{Path(DATASETTE).parent}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, "-m", "bot.cli", "datasette", "--port", str(port)]
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment) as child:
        try:
            page = fetched(f"http://127.0.0.1:{port}/strop")
            assert "Like rate by week" in page and "Every answer, with the adapter" in fetched(
                f"http://127.0.0.1:{port}/strop/replies"
            )
            for name in DESCRIBED["queries"]:
                assert '"ok": true' in fetched(f"http://127.0.0.1:{port}/strop/{name}.json"), name
        finally:
            child.send_signal(signal.SIGINT)
            assert child.wait(30) == 0
    assert not (home / "playground/run/datasette").exists()


def fetched(url: str) -> str:
    """A page, as soon as somebody serves it."""
    for _ in range(100):
        try:
            with urllib.request.urlopen(url, timeout=10) as response:
                return str(response.read().decode())
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"nobody serves {url}")
