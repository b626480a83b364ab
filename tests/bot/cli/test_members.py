"""`strop privacy` and `strop reject`: what the bot's commands do, for operators at a terminal."""

from __future__ import annotations

import json
from pathlib import Path

from storage.admin import audit
from storage.config import Config
from storage.db.database import Database
from storage.learning import adapters
from tests.bot.cli.conftest import Strop
from tests.trainer.community import BASE_HASH, SCOPE

ADA = "7"


def actions(database: Database) -> list[str]:
    return [entry.action for entry in database.read(audit.latest)]


def test_what_is_stored_on_a_member_is_counted(strop: Strop, database: Database) -> None:
    assert "Messages 3, answers to them 3, ratings 3" in strop("privacy", "show", ADA).stdout
    nobody = json.loads(strop("privacy", "show", "8", "--json").stdout)
    assert (nobody["messages"], nobody["consent"]) == (0, "unset")


def test_a_member_s_data_is_exported_once_and_for_nobody_else_to_read(
    strop: Strop, database: Database, tmp_path: Path
) -> None:
    path = tmp_path / "theirs.json"
    strop("privacy", "export", ADA, str(path))
    assert path.stat().st_mode & 0o777 == 0o600
    assert "What about number 0?" in path.read_text()
    assert "exists already" in strop("privacy", "export", ADA, str(path), code=1).stderr
    assert "member.export" in actions(database)


def test_an_erasure_asks_first_and_leaves_no_word_in_any_file(
    strop: Strop, database: Database, config: Config
) -> None:
    strop("privacy", "erase", ADA, answers="n\n", code=1)
    assert "Messages 3" in strop("privacy", "show", ADA).stdout
    done = json.loads(strop("privacy", "erase", ADA, "--yes", "--json").stdout)
    assert done["complete"]
    files = [file for file in config.data.rglob("*") if file.is_file()]
    assert files and not any(b"What about number" in file.read_bytes() for file in files)
    assert "Messages 0" in strop("privacy", "show", ADA).stdout
    assert "member.erase" in actions(database)


def test_an_adapter_that_waits_is_rejected_by_the_beginning_of_its_id(
    strop: Strop, database: Database
) -> None:
    database.write(
        lambda db: adapters.insert_candidate(
            db, adapter_id="abc123", scope=SCOPE, base_hash=BASE_HASH, path="adapters/abc123"
        )
    )
    assert "abc123 is rejected" in strop("reject", "abc").stdout
    found = database.read(lambda db: adapters.get(db, "abc123"))
    assert found is not None and found.state == "rejected"
