"""Whose files go after a while, and whose stay: real folders, and the registry's own promotions."""

from __future__ import annotations

from storage.admin import audit
from storage.config import Config
from storage.db import sql
from storage.db.clock import DAY_MS
from storage.db.database import Connection, Database
from storage.learning import adapters
from tests.trainer.community import BASE_HASH, SCOPE, adapter_folder
from tests.trainer.schedule.test_recovery import config as config
from tests.trainer.schedule.test_recovery import crowned
from tests.trainer.schedule.test_recovery import database as database
from trainer.schedule.recovery import reconcile
from trainer.schedule.retention import remove_outdated


def candidate(database: Database, config: Config, content: bytes) -> str:
    adapter_id = adapter_folder(config.adapters, content)
    database.write(
        lambda db: adapters.insert_candidate(
            db, adapter_id=adapter_id, scope=SCOPE, base_hash=BASE_HASH, path=f"adapters/{adapter_id}"
        )
    )
    return adapter_id


def refused(database: Database, config: Config, content: bytes) -> str:
    adapter_id = candidate(database, config, content)
    database.write(lambda db: adapters.reject(db, adapter_id, actor="test", reason="worse"))
    return adapter_id


def pass_days(database: Database, days: int) -> None:
    def work(db: Connection) -> None:
        for table in ("adapters", "promotions"):
            sql.change(db, f"UPDATE {table} SET created_ms = created_ms - ?", (days * DAY_MS,))

    database.write(work)


def roll_back(database: Database) -> str | None:
    return database.write(
        lambda db: adapters.rollback(db, scope=SCOPE, base_hash=BASE_HASH, actor="test", reason="worse")
    )


def test_only_what_can_not_answer_again_goes_and_only_after_its_time(
    database: Database, config: Config
) -> None:
    first, second, undone = (crowned(database, config, name) for name in (b"first", b"second", b"undone"))
    assert roll_back(database) == second
    worse, waiting = refused(database, config, b"worse"), candidate(database, config, b"waiting")
    pass_days(database, 89)
    assert remove_outdated(database, config.adapters, 90) == []
    pass_days(database, 2)
    later = refused(database, config, b"later")
    assert remove_outdated(database, config.adapters, 0) == []
    assert remove_outdated(database, config.adapters, 90) == [undone, worse]
    assert {folder.name for folder in config.adapters.iterdir()} == {first, second, waiting, later}
    assert remove_outdated(database, config.adapters, 90) == []
    told = [entry.detail for entry in database.read(audit.latest) if entry.action == "adapter.remove_files"]
    assert told == [{"adapter_id": worse}, {"adapter_id": undone}]
    # Nothing is missed at the next start, and the way back is still there.
    assert not reconcile(database, config)
    assert roll_back(database) == first


def test_a_champion_of_long_ago_stays_and_one_that_is_rolled_back_now_stays_for_a_while(
    database: Database, config: Config
) -> None:
    crowned(database, config, b"first")
    second = crowned(database, config, b"second")
    pass_days(database, 400)
    roll_back(database)
    assert remove_outdated(database, config.adapters, 90) == []
    pass_days(database, 91)
    assert remove_outdated(database, config.adapters, 90) == [second]
