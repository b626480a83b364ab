"""`strop dashboard` as an operator starts it: its own process, from its address to Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

from storage.db.database import Database
from tests.bot.cli.conftest import Strop, database, home, strop

__all__ = ["database", "home", "strop"]


def test_it_says_where_it_is_serves_there_and_ends_with_ctrl_c(home: Path, database: Database) -> None:
    command = [sys.executable, "-m", "bot.cli", "dashboard", "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            said = re.fullmatch(
                r"Dashboard: (http://127\.0\.0\.1:\d+) \(read-only\)\n", process.stdout.readline()
            )
            assert said
            with urllib.request.urlopen(said[1], timeout=20) as answer:
                assert "Strop dashboard" in answer.read().decode()
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def test_other_machines_reach_it_only_with_a_token_that_cannot_be_guessed(
    strop: Strop, home: Path, database: Database
) -> None:
    said = strop("dashboard", "--host", "0.0.0.0", code=2).stderr
    assert "reached from other machines: give --token-file" in said
    short = home / "token"
    short.write_text("secret\n")
    assert "too short" in strop("dashboard", "--token-file", str(short), code=1).stderr
    assert "can't be read" in strop("dashboard", "--token-file", str(home / "none"), code=1).stderr
