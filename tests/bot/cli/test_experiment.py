"""`strop experiment`: what it queues, shows and writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from storage.db.database import Database
from storage.experiments import Asked
from storage.learning import runs
from tests.bot.cli.conftest import Strop
from tests.trainer.community import SCOPE

STANDING: dict[str, Any] = {
    "name": "as configured", "liked": 0.41, "difference": None, "surely": "", "forgetful": False,
    "perplexity": 9.1, "accuracy": 0.6, "general_rise": 0.012, "minutes": 3.2, "peak_mib": 900,
}  # fmt: skip
BETTER = STANDING | {
    "name": "rank 8", "liked": 0.52, "surely": "better",
    "difference": {"value": 0.11, "low": 0.04, "high": 0.2, "n": 24, "clusters": 24},
}  # fmt: skip


def ended(database: Database, winner: dict[str, Any] | None) -> str:
    """An experiment that is over, as the trainer leaves it."""

    def work(db: Any) -> str:
        asked = Asked(({"rank": 8},), 60).as_settings()
        runs.enqueue(db, scope=SCOPE, trigger="manual", requested_by="test", settings=asked)
        run = runs.lease_next(db, "test", 60_000)
        assert run is not None
        found = {"standings": [BETTER, STANDING], "winner": winner, "left_out": ["rank 64"], "prompts": 24}
        runs.finish(db, run.id, outcome="refused", message="Of 2 settings.", metrics={"experiment": found})  # type: ignore[arg-type]
        return run.id

    return database.write(work)


def test_what_is_to_be_tried_is_checked_before_anything_is_queued(strop: Strop, database: Database) -> None:
    for tried, said in {
        "rank": "write it as rank=8",
        "rank=none": "rank = 'none' can't be tried",
        "nice=3": "can't try 'nice': it takes objective, rank",
        "base=other": "keeps to the base that is served",
        "objective=magic": "objective = 'magic' can't be tried",
    }.items():
        assert said in strop("experiment", "--try", tried, code=1).stderr
    assert "Give settings with --try" in strop("experiment", code=2).stderr
    assert database.read(lambda db: list(db.query("select * from runs"))) == []


def test_a_table_says_what_is_noise_and_what_was_left_out(strop: Strop, database: Database) -> None:
    run_id = ended(database, {"rank": 8})
    said = strop("experiment", "--show", run_id[:8]).stdout
    head, best, configured, *_ = said.splitlines()
    for heading in ("P(liked)", "beside configured", "perplexity", "accuracy", "general loss"):
        assert heading in head, "in 80 columns too"
    assert "rank 8" in best and "+0.110 (+0.040 to +0.200)  better" in best and "9.10" in best
    assert "as configured" in configured
    assert f"Left out for want of time: rank 64. `strop experiment --resume {run_id}` goes on." in said
    shown = json.loads(strop("experiment", "--show", run_id, "--json").stdout)
    assert shown["experiment"]["winner"] == {"rank": 8} and shown["page"] is None


def test_a_winner_is_written_into_the_configuration_and_noise_is_not(
    strop: Strop, database: Database, tmp_path: Path
) -> None:
    file = tmp_path / "strop.toml"
    file.write_text("[trainer]\nrank = 16  # ours\n")
    without = ended(database, None)
    assert "Nothing was written" in strop("experiment", "--show", without, "--write").stderr
    assert "rank = 16  # ours" in file.read_text()
    assert (
        "rank 8: written into"
        in strop("experiment", "--show", ended(database, {"rank": 8}), "--write").stdout
    )
    assert file.read_text() == "[trainer]\nrank = 8  # ours\n"


def test_only_experiments_are_shown_and_resumed(strop: Strop, database: Database) -> None:
    run = database.write(lambda db: runs.enqueue(db, scope=SCOPE, trigger="manual", requested_by="test"))
    assert "is no experiment" in strop("experiment", "--show", run.id, code=1).stderr
    busy = strop("experiment", "--try", "rank=8", code=1).stderr
    assert f"Run {run.id} of {SCOPE} is queued: begin the experiment after it." in busy


def test_an_experiment_does_not_put_off_the_run_that_new_ratings_bring_about(database: Database) -> None:
    before = database.read(lambda db: runs.new_ratings(db, SCOPE))
    ended(database, None)
    assert database.read(lambda db: runs.new_ratings(db, SCOPE)) == before > 0
