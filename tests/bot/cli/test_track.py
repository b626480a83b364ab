"""`strop track`: runs with their curves in Trackio, once each, and nobody's words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bot.telemetry import tracker
from storage.db.database import Database
from storage.learning import runs
from storage.learning.runs import Run
from storage.sentences import Sentence
from tests.bot.cli.conftest import Strop
from tests.trainer.community import SCOPE

# The Python in which `make test-monitoring` keeps the real Trackio.
TRACKIO = os.environ.get("TEST_TRACKIO", "")
CARD = """# Adapter a1

Of guild:1. It said "a member's words".

## Data
- sources: discord 3

## Guardrails
- a question of a member

## Corrections as regression tests
- trained on: words of a member

## Scores
| score | value |

## Lineage
- run r1
"""
METRICS: dict[str, Any] = {
    "data": {"train": {"liked": 30, "disliked": 12}},
    "training": {
        "objective": "sft_kto",
        "sft": {"steps": 3, "losses": [3.0, 2.0, 1.5]},
        "kto": {"steps": 2, "losses": [0.5, 0.25]},
    },
    "headline": {"value": 0.12, "low": 0.03, "high": 0.2, "n": 40},
    "process": {"seconds": 60.0, "cpu_s": 90.5, "peak_bytes": 2**30, "energy_j": 7200.0},
}


def a_run(database: Database) -> Run:
    def work(db: Any) -> Run:
        run = runs.enqueue(db, scope=SCOPE, trigger="manual", requested_by="test")
        runs.lease_next(db, "trainer", 60_000)
        return runs.finish(db, run.id, outcome="refused", message=Sentence("It is over."), metrics=METRICS)

    run = database.write(work)
    folder = database.path.parent / "runs" / run.id
    folder.mkdir(parents=True)
    (folder / "card.md").write_text(CARD)
    return run


def test_a_run_is_written_with_curves_gain_and_cost_but_without_words(database: Database) -> None:
    written = tracker.record(a_run(database), CARD)
    assert written["curves"] == [
        {"sft/loss": 3.0, "kto/loss": 0.5},
        {"sft/loss": 2.0, "kto/loss": 0.25},
        {"sft/loss": 1.5},
    ]
    summary = written["summary"]
    assert (summary["outcome"], summary["gain"], summary["gain_low"]) == ("refused", 0.12, 0.03)
    assert (summary["cpu_seconds"], summary["energy_joules"], summary["liked"]) == (90.5, 7200.0, 30)
    assert "member" not in json.dumps(written)
    assert written["card"].startswith("# Adapter a1\n\n## Data") and "## Lineage" in written["card"]


def test_without_trackio_one_sentence_says_how_to_get_it(
    strop: Strop, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert strop("track", code=1).stderr.startswith("Trackio is not installed: run `")


def test_what_trackio_says_no_to_is_passed_on(
    strop: Strop, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Python without Trackio behind a program of its name."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "trackio").write_text("#!/bin/sh\n")
    (folder / "trackio").chmod(0o755)
    (folder / "python").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    a_run(database)
    said = strop("track", code=1).stderr
    assert said.startswith("Trackio did not take the runs: ") and "trackio" in said


@pytest.mark.monitoring
def test_the_real_trackio_has_each_run_once(
    strop: Strop, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{Path(TRACKIO).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    run = a_run(database)
    assert "1 of 1 runs are new" in strop("track", "--project", "ours").stdout
    assert "0 of 1 runs are new" in strop("track", "--project", "ours").stdout
    a_run(database)
    assert "1 of 2 runs are new" in strop("track", "--project", "ours").stdout
    ask = f"""
import json
from trackio.sqlite_storage import SQLiteStorage
print("FOUND" + json.dumps(SQLiteStorage.get_logs("ours", {run.id!r}), default=str))
"""
    answer = subprocess.run([TRACKIO, "-c", ask], capture_output=True, text=True, check=True).stdout
    logs = json.loads(answer.partition("FOUND")[2])
    assert [row["sft/loss"] for row in logs if "sft/loss" in row] == [3.0, 2.0, 1.5]
    assert logs[-1]["gain"] == 0.12 and "## Lineage" in json.dumps(logs[-1]["card"])
