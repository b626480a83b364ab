"""Champions stay under the hash that they were chosen under; a base's identity leads to that hash."""

from dataclasses import dataclass
from pathlib import Path

import sqlite_utils
from sqlite_utils import Migrations

from storage.db import migrations
from storage.db.database import Database
from storage.learning import adapters, bases

OLD, NEW, SCOPE = "a" * 64, "b" * 64, "guild:1"


@dataclass(frozen=True)
class Identity:
    key: str = "k" * 64
    source: str = "hub:owner/base"
    revision: str = "c" * 40
    chat_template_hash: str = "t" * 64

    def is_known(self) -> bool:
        return bool(self.revision)


def test_a_champion_from_before_there_were_identities_keeps_answering(tmp_path: Path) -> None:
    earlier = Migrations("strop")
    for step in migrations.steps._migrations:
        # All others: the rows below are written by today's code, which needs what came after.
        if step.name != "m0021_base_identities":
            earlier()(step.fn)
    path = tmp_path / "strop.db"
    db = sqlite_utils.Database(path)
    migrations.apply(db, path, earlier)
    adapters.insert_candidate(db, adapter_id="x1", scope=SCOPE, base_hash=OLD, path="adapters/x1")
    # As the version of that time wrote it: today's columns are not there yet.
    promoted = {"scope": SCOPE, "base_hash": OLD, "adapter_id": "x1"}
    told = {"kind": "promote", "actor": "1", "reason": "it was better", "created_ms": 1}
    promotion_id = db["promotions"].insert({**promoted, **told}).last_pk
    db["champions"].insert({**promoted, "promotion_id": promotion_id})
    assert "base_identities" not in db.table_names()
    db.conn.commit()
    db.close()
    database = Database.open(path)
    try:
        assert database.read(lambda db: adapters.champion(db, SCOPE, OLD)) == "x1"
        # Its own server says which base that hash is, and from then on another engine's base leads to it.
        database.write(lambda db: bases.remember(db, OLD, Identity(), "nf4"))
        found = database.read(lambda db: bases.hash_of(db, Identity().key))
        assert found == OLD
        assert database.read(lambda db: adapters.champion(db, SCOPE, found)) == "x1"
    finally:
        database.close()


def test_of_several_hashes_the_one_with_champions_counts_then_the_oldest(database: Database) -> None:
    database.write(lambda db: bases.remember(db, NEW, Identity(), "bfloat16"))
    database.write(lambda db: bases.remember(db, OLD, Identity(), "nf4"))
    assert database.read(lambda db: bases.hash_of(db, Identity().key)) == NEW
    database.write(lambda db: adapters.ensure_champion_row(db, SCOPE, OLD))
    assert database.read(lambda db: bases.hash_of(db, Identity().key)) == OLD


def test_nothing_is_recorded_twice_nor_without_a_full_identity(database: Database) -> None:
    for _ in range(2):
        database.write(lambda db: bases.remember(db, OLD, Identity(), "nf4"))
    database.write(lambda db: bases.remember(db, NEW, Identity(key="j", revision=""), "nf4"))
    database.write(lambda db: bases.remember(db, NEW, None, ""))
    assert database.read(lambda db: db["base_identities"].count) == 1
    assert database.read(lambda db: bases.hash_of(db, "j")) is None
