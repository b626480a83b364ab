"""`strop experiment`: what it queues, shows and writes."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from bot.cli import experiment
from storage import experiments
from storage.config import load_config
from storage.db.database import Database
from storage.experiments import Asked, Changes
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


def ended(database: Database, winner: dict[str, Any] | None, found: dict[str, Any] | None = None) -> str:
    """An experiment that is over, as the trainer leaves it."""

    def work(db: Any) -> str:
        asked = Asked(({"rank": 8},), 60).as_settings()
        runs.enqueue(db, scope=SCOPE, trigger="manual", requested_by="test", settings=asked)
        run = runs.lease_next(db, "test", 60_000)
        assert run is not None
        table = {"standings": [BETTER, STANDING], "winner": winner, "left_out": ["rank 64"], "prompts": 24}
        metrics = {"experiment": found or table}
        runs.finish(db, run.id, outcome="refused", message="Of 2 settings.", metrics=metrics)  # type: ignore[arg-type]
        return run.id

    return database.write(work)


def test_what_is_to_be_tried_is_checked_before_anything_is_queued(strop: Strop, database: Database) -> None:
    for tried, said in {
        "rank": "write it as rank=8",
        "rank=none": "rank = 'none' can't be tried",
        "nice=3": "can't try 'nice': it takes base, objective, rank",
        "base=nobody/Nothing-1B": "not on this machine: `strop models get nobody/Nothing-1B` brings it",
        "model.base=./nowhere": "./nowhere does not exist",
        "base=auto": "auto is no base of its own",
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


def test_another_base_is_asked_for_by_the_name_that_the_trainer_finds_it_by(
    strop: Strop, database: Database, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    config = load_config(None, {"STROP_HOME": str(tmp_path / "data")})

    def asked(tried: str) -> Changes:
        return experiment._with_base(experiments.parse(tried), config)

    assert asked("base=mine rank=8") == {"base": str(tmp_path / "mine"), "rank": 8}
    assert asked("model.base=smollm2-135m-instruct") == {"base": "SmolLM2-135M-Instruct"}
    assert asked("rank=8") == {"rank": 8}
    (tmp_path / "strop.toml").write_text('[server]\nbase_url = "http://127.0.0.1:1"\n')
    said = strop("experiment", "--try", "base=SmolLM2-135M-Instruct", code=1).stderr
    assert "server.base_url names another one" in said


def test_rows_of_another_base_are_told_apart_and_its_name_is_written_with_the_settings(
    strop: Strop, database: Database, tmp_path: Path
) -> None:
    on_other = {"name": "base Qwen/Qwen3-0.6B, rank 8", "base": "Qwen/Qwen3-0.6B", "revision": "c1899de"}
    found = {
        "standings": [BETTER | on_other, STANDING], "prompts": 24, "left_out": [],
        "winner": {"base": "Qwen/Qwen3-0.6B", "rank": 8}, "winner_revision": "c1899de",
        "not_tried": {"base Qwen/Qwen3-8B": "It takes about 9 GB."},
    }  # fmt: skip
    run_id = ended(database, None, found)
    file = tmp_path / "strop.toml"
    file.write_text('[model]\nbase = "auto"  # ours\n\n[trainer]\nrank = 16\n')
    said = strop("experiment", "--show", run_id, "--write").stdout
    _, best, configured, note, *_ = said.splitlines()
    assert (
        "9.10*" in best and "9.10*" not in configured and note.startswith("* in the tokens of another base")
    )
    assert "Not tried: base Qwen/Qwen3-8B. It takes about 9 GB." in said
    assert "Adapters belong to a base: from then on Qwen/Qwen3-0.6B itself answers" in said
    assert tomllib.loads(file.read_text()) == {
        "model": {"base": "Qwen/Qwen3-0.6B", "revision": "c1899de"},
        "trainer": {"rank": 8},
    }
    assert "# ours" in file.read_text()


def test_only_experiments_are_shown_and_resumed(strop: Strop, database: Database) -> None:
    run = database.write(lambda db: runs.enqueue(db, scope=SCOPE, trigger="manual", requested_by="test"))
    assert "is no experiment" in strop("experiment", "--show", run.id, code=1).stderr
    busy = strop("experiment", "--try", "rank=8", code=1).stderr
    assert f"Run {run.id} of {SCOPE} is queued: begin the experiment after it." in busy


def test_an_experiment_does_not_put_off_the_run_that_new_ratings_bring_about(database: Database) -> None:
    before = database.read(lambda db: runs.new_ratings(db, SCOPE))
    ended(database, None)
    assert database.read(lambda db: runs.new_ratings(db, SCOPE)) == before > 0
