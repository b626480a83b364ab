"""An adapter's life as the registry tells it."""

import pytest
import sqlite_utils

from storage.db.database import Database
from storage.learning import adapters, lineage, runs
from storage.learning.lineage import AdapterHistory
from tests.storage.conftest import BASE, SCOPE
from tests.storage.learning.test_adapters import candidate, promote, rollback


@pytest.fixture
def three(database: Database) -> Database:
    database.write(lambda db: [candidate(db, name) for name in ("a1", "a2", "a3")])
    return database


def history(database: Database, adapter_id: str) -> AdapterHistory:
    found = database.read(lambda db: lineage.of(db, adapter_id))
    assert found is not None
    return found


def test_a_life_tells_whom_it_replaced_and_what_replaced_it(three: Database) -> None:
    three.write(lambda db: [promote(db, "a1"), promote(db, "a2"), rollback(db)])
    first, second, third = (history(three, name) for name in ("a1", "a2", "a3"))
    assert first.answers and first.came is not None and first.went is None
    assert (first.came.kind, first.came.previous_id) == ("rollback", "a2")
    assert second.came is not None and second.went is not None
    assert (second.came.previous_id, second.went.kind, second.went.adapter_id) == ("a1", "rollback", "a1")
    assert third.came is None and third.went is None and not third.answers


def test_a_life_knows_the_run_that_made_it(database: Database) -> None:
    def made(db: sqlite_utils.Database) -> str:
        run = runs.enqueue(db, scope=SCOPE, trigger="manual", requested_by="1")
        adapters.insert_candidate(db, adapter_id="a1", scope=SCOPE, base_hash=BASE, path="p", run_id=run.id)
        return run.id

    run_id = database.write(made)
    run = history(database, "a1").run
    assert run is not None and run.id == run_id


def test_pages_have_the_newest_first_and_nothing_of_other_scopes(three: Database) -> None:
    three.write(lambda db: candidate(db, "b1", scope="guild:9"))
    names = [
        each.adapter.id
        for skip in (0, 2)
        for each in three.read(lambda db, skip=skip: lineage.page(db, SCOPE, skip=skip, limit=2))
    ]
    assert sorted(names) == ["a1", "a2", "a3"]
    assert names == [adapter.id for adapter in three.read(lambda db: adapters.listing(db, SCOPE))]
    assert three.read(lambda db: lineage.count(db, SCOPE)) == 3
    assert three.read(lambda db: lineage.of(db, "nobody")) is None
