"""`strop runs`: every run in a row, and two of them side by side."""

from __future__ import annotations

import json
from typing import Any

import sqlite_utils

from storage.db.database import Database
from storage.learning import evaluations, run_summary, runs
from storage.learning.evaluations import ProcessFigures
from storage.sentences import Sentence
from tests.bot.cli.conftest import Strop

SCOPE = "guild:1"
METRICS: dict[str, Any] = {
    "data": {"train": {"liked": 30, "disliked": 12, "corrections": 2}, "raters": 4},
    "training": {
        "objective": "sft",
        "sft": {"steps": 12, "planned": 28, "shortened": True, "seconds": 300.0},
    },
    "headline": {"value": 0.12, "low": 0.03, "high": 0.2, "n": 40},
    "guardrails": [{"name": "flattery", "value": 0.3, "limit": 0.2, "kept": False}],
}


def a_finished_run(db: sqlite_utils.Database, outcome: str, metrics: dict[str, Any], **settings: Any) -> str:
    run = runs.enqueue(db, scope=SCOPE, trigger="manual", requested_by="test", settings={"trainer": settings})
    runs.lease_next(db, "trainer", 60_000)
    runs.finish(db, run.id, outcome=outcome, message=Sentence("It is over."), metrics=metrics)
    if metrics:
        evaluations.record_process(db, run.id, ProcessFigures(720.0, 1400.0, 1_900_000_000, None, 7200.0))
        evaluations.add(
            db,
            run_id=run.id,
            adapter_id=None,
            champion_id=None,
            metric="margin",
            value=0.5,
            low=0.1,
            high=0.9,
        )
    return run.id


def two_runs(database: Database) -> tuple[str, str]:
    first = database.write(lambda db: a_finished_run(db, "refused", METRICS, epochs=2))
    return first, database.write(lambda db: a_finished_run(db, "not_yet", {}))


def test_runs_stand_in_rows_with_what_came_of_them_and_what_they_took(
    strop: Strop, database: Database
) -> None:
    assert "There are no runs yet" in strop("runs").stdout
    first, second = two_runs(database)
    head, newest, oldest = strop("runs").stdout.splitlines()
    assert newest.split()[0] == second and "not enough ratings yet" in newest and newest.count("–") == 7
    assert head.index("processor") == oldest.index("23 min")
    for cell in (
        first,
        "not promoted",
        "+0.12 (+0.03 to +0.20)",
        "30+12+2",
        "12 min",
        "1.9 GB",
        "2.0 Wh",
        "12 of 28",
    ):
        assert cell in oldest
    cost = database.read(lambda db: run_summary.cost_since(db, SCOPE, 0))
    assert cost is not None and (cost.runs, cost.energy_j) == (1, 7200.0), "one of the two recorded it"
    assert cost.text() == (
        "1 training runs took 12 min, 23 min of processor time and at most 1.9 GB of memory, 2.0 Wh."
    )
    assert database.read(lambda db: run_summary.cost_since(db, "guild:2", 0)) is None
    assert len(strop("runs", "--limit", "1").stdout.splitlines()) == 2

    told = json.loads(strop("runs", "--json").stdout)[1]
    assert (told["id"], told["cpu_s"], told["peak_bytes"], told["energy_j"]) == (first, 1400.0, 1.9e9, 7200.0)
    assert (told["steps"], told["planned_steps"], told["gain"]["low"]) == (12, 28, 0.03)


def test_two_runs_stand_side_by_side(strop: Strop, database: Database) -> None:
    first, second = two_runs(database)
    shown = strop("runs", "compare", first[:6], second).stdout
    for line in ("sft", "12 of 28 steps", "+0.500 (+0.100 to +0.900)", "0.300 of 0.200, broken", "2.0 Wh"):
        assert line in shown
    assert f"{first}: It is over." in shown and "epochs" in shown
    pairs = json.loads(strop("runs", "compare", first, second, "--json").stdout)
    assert pairs["data"]["train, liked"] == [30, None]
    assert pairs["run"]["outcome"] == ["not promoted", "not enough ratings yet"]


def test_what_is_not_two_runs_is_a_sentence(strop: Strop, database: Database) -> None:
    first, _ = two_runs(database)
    assert "strop runs compare A B" in strop("runs", "compare", first, code=2).stderr
    assert "No run begins with" in strop("runs", "compare", first, "rx", code=1).stderr
