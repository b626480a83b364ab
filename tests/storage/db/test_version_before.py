"""A home as the version before left it (`version_before`, made by that version's code) starts unchanged."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from bot.language import texts
from bot.language.sentences import translate
from bot.learning import run_card
from bot.serving.model import adapter_files
from storage.admin import blocks, settings
from storage.config import Config, load_config
from storage.db.database import Database
from storage.learning import adapters, eligibility, loop_status, runs, trials
from storage.sentences import Sentence
from trainer.schedule import recovery

LEFT = Path(__file__).parent / "version_before"
BASE = "a244ef67ec27140886f57e3b8afcd31dca1903a83c7f4205fb3dcc90d7ec1eca"
CHAMPION, CANARY = "a3aa54ace3d23c56", "abc6f130400f040a"
GUILD, CHANNEL, SCOPE = 5, 6, "guild:5"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    found = load_config(LEFT / "strop.toml", {"STROP_HOME": str(tmp_path / "home")})
    found.data.mkdir(parents=True)
    shutil.copytree(LEFT / "adapters", found.adapters)
    return found


@pytest.fixture
def old(config: Config) -> dict[str, list[dict[str, object]]]:
    """Every row of the old database by its table, and the database itself in its place."""
    with sqlite3.connect(config.database) as connection:
        connection.executescript((LEFT / "strop.sql").read_text(encoding="utf-8"))
    connection.row_factory = sqlite3.Row
    tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    rows = {
        name: [dict(row) for row in connection.execute(f"SELECT * FROM {name}")]
        for (name,) in tables
        if not name.startswith(("sqlite_", "_sqlite"))
    }
    connection.close()
    return rows


@pytest.fixture
def database(config: Config, old: object) -> Iterator[Database]:
    with Database.open(config.database) as opened:
        yield opened


def test_no_row_of_the_database_changes(database: Database, old: dict[str, list[dict[str, object]]]) -> None:
    assert sum(map(len, old.values())) > 60
    for table, before in old.items():
        after = database.read(lambda db, table=table: list(db.query(f"SELECT * FROM {table}")))  # type: ignore[misc]
        assert (
            [{column: row[column] for column in before[0]} for row in after] == before
            if before
            else not after
        )


def test_the_same_adapters_answer(database: Database, config: Config) -> None:
    assert database.read(lambda db: adapters.champion(db, SCOPE, BASE)) == CHAMPION
    (trial,) = database.read(lambda db: trials.active(db, SCOPE, BASE))
    assert (trial.newcomer_id, trial.incumbent_id, trial.share) == (CANARY, CHAMPION, 0.2)
    for adapter_id in (CHAMPION, CANARY):
        folder = config.adapters / adapter_id
        manifest = adapter_files.verify(folder, adapters_dir=config.adapters, base_hash=BASE)
        assert manifest.config["r"] == 2 and adapter_files.WEIGHTS in manifest.files


def test_the_trainer_finds_nothing_to_put_right(database: Database, config: Config) -> None:
    assert not recovery.reconcile(database, config)
    assert database.read(lambda db: adapters.champion(db, SCOPE, BASE)) == CHAMPION


def test_the_configuration_and_the_settings_of_a_server_are_in_force(
    database: Database, config: Config
) -> None:
    assert (config.trainer.rank, config.gate.policy, config.replies.compare) == (2, "canary-first", 0.1)
    found = database.read(lambda db: settings.resolve(db, config, GUILD, CHANNEL)).settings
    assert (found.language, found.temperature, found.rating_up) == ("de", 0.2, ("👍", "❤️"))
    assert found.system_prompt == "You are the bot of a chess club."
    assert database.read(lambda db: blocks.is_blocked(db, GUILD, 77))


def test_the_same_replies_may_train(database: Database) -> None:
    found = database.read(lambda db: eligibility.eligible_rows(db, SCOPE, permission_reference="ticket"))
    assert len(found.rows) == 4 and (found.liked, found.raters) == (4, 2)


def test_what_was_said_of_runs_is_shown_as_it_was_said(database: Database) -> None:
    past = database.read(lambda db: runs.list_finished(db, SCOPE))
    promoted = next(run for run in past if run.outcome == "promoted")
    assert promoted.message.startswith(f"adapter {CHAMPION} replaced the base model: +0.12")
    with texts.speaking("de"):
        assert [translate(run.message) for run in past] == [str(run.message) for run in past]
        card = database.read(lambda db: run_card.find(db, promoted))
        assert card is not None
        said = run_card.embed(card, ()).to_dict()
        assert "DPO needs 50 preference pairs" in str(said)
        status = database.read(lambda db: loop_status.read(db, SCOPE, BASE))
        lines = [translate(line) for line in loop_status.status_lines(status)]
    assert lines[0] == "Es antwortet: Adapter " + CHAMPION


def test_new_runs_are_said_in_every_language_beside_the_old_ones(database: Database) -> None:
    reason = Sentence("{share} of its replies are empty", share="9%")
    message = Sentence("{adapter} was not promoted, because {reason}", adapter="a9", reason=reason)

    def work(db: object) -> runs.Run:
        runs.enqueue(db, scope=SCOPE, trigger="manual", requested_by="9")  # type: ignore[arg-type]
        leased = runs.lease_next(db, "trainer", 1000)  # type: ignore[arg-type]
        assert leased is not None
        return runs.finish(db, leased.id, outcome="refused", message=message)  # type: ignore[arg-type]

    ended = database.write(work)
    with texts.speaking("de"):
        assert translate(ended.message) == translate(message) != message
