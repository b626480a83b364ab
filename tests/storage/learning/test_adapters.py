import itertools
import threading
from pathlib import Path

import pytest
import sqlite_utils
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.admin import audit
from storage.db import sql
from storage.db.database import Database
from storage.errors import (
    AdapterNotPromotableError,
    NothingToRollBackError,
    StaleChampionError,
    StorageError,
    UnknownRowError,
)
from storage.learning import adapters
from tests.storage.conftest import BASE, SCOPE


def candidate(db: sqlite_utils.Database, adapter_id: str, scope: str = SCOPE, base_hash: str = BASE) -> None:
    adapters.insert_candidate(
        db, adapter_id=adapter_id, scope=scope, base_hash=base_hash, path=f"adapters/{adapter_id}"
    )


def promote(db: sqlite_utils.Database, adapter_id: str | None) -> int:
    return adapters.promote(
        db, scope=SCOPE, base_hash=BASE, adapter_id=adapter_id, actor="1", reason="+0.12 on 64 conversations"
    )


def rollback(db: sqlite_utils.Database) -> str | None:
    return adapters.rollback(db, scope=SCOPE, base_hash=BASE, actor="1", reason="it grew rude")


def rollback_to(db: sqlite_utils.Database, adapter_id: str | None) -> str | None:
    return adapters.rollback(db, scope=SCOPE, base_hash=BASE, actor="1", reason="older", to=adapter_id)


def champion(database: Database) -> str | None:
    return database.read(lambda db: adapters.champion(db, SCOPE, BASE))


@pytest.fixture
def three(database: Database) -> Database:
    database.write(lambda db: [candidate(db, name) for name in ("a1", "a2", "a3")])
    return database


def test_the_base_model_is_champion_until_an_adapter_is(three: Database) -> None:
    assert champion(three) is None
    three.write(lambda db: promote(db, "a1"))
    assert champion(three) == "a1"


def test_promotion_moves_the_champion_the_states_and_the_logs_together(three: Database) -> None:
    three.write(lambda db: [promote(db, "a1"), promote(db, "a2")])
    states = {adapter.id: adapter.state for adapter in three.read(adapters.listing)}
    assert states == {"a1": "retired", "a2": "promoted", "a3": "candidate"}
    kinds = [promotion.kind for promotion in three.read(lambda db: adapters.promotions(db, SCOPE, BASE))]
    assert kinds == ["initial", "promote", "promote"]
    assert [entry.action for entry in three.read(audit.latest)][:2] == ["champion.promote"] * 2


def test_a_challenger_judged_against_another_champion_is_not_promoted(three: Database) -> None:
    three.write(lambda db: promote(db, "a1"))

    def late(db: sqlite_utils.Database) -> None:
        adapters.promote(
            db, scope=SCOPE, base_hash=BASE, adapter_id="a2", actor="1", reason="", expected_champion=None
        )

    with pytest.raises(StaleChampionError, match="is now adapter a1, not the base model"):
        three.write(late)
    assert champion(three) == "a1"


def test_two_trainers_that_judged_against_the_same_champion_promote_one(three: Database) -> None:
    outcomes: list[str] = []

    def race(adapter_id: str) -> None:
        try:
            with Database.open(three.path) as mine:
                mine.write(
                    lambda db: adapters.promote(
                        db,
                        scope=SCOPE,
                        base_hash=BASE,
                        adapter_id=adapter_id,
                        actor="1",
                        reason="",
                        expected_champion=None,
                    )
                )
            outcomes.append("promoted")
        except StaleChampionError:
            outcomes.append("stale")

    threads = [threading.Thread(target=race, args=(name,)) for name in ("a1", "a2", "a3")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["promoted", "stale", "stale"]


def test_rolling_back_walks_to_the_base_one_champion_at_a_time(three: Database) -> None:
    three.write(lambda db: [promote(db, "a1"), promote(db, "a2")])
    assert three.write(rollback) == "a1"
    assert three.write(rollback) is None
    with pytest.raises(NothingToRollBackError, match="the base model answers"):
        three.write(rollback)


def test_rolling_back_after_a_rollback_does_not_return_to_the_bad_one(three: Database) -> None:
    three.write(lambda db: [promote(db, "a1"), promote(db, "a2"), rollback(db), promote(db, "a3")])
    assert three.write(rollback) == "a1"


@pytest.mark.parametrize("state", ["tainted", "rejected"])
def test_rolling_back_skips_an_adapter_that_may_not_answer(three: Database, state: adapters.State) -> None:
    three.write(lambda db: [promote(db, "a1"), promote(db, "a2"), promote(db, "a3")])
    three.write(lambda db: adapters.set_state(db, "a2", state))
    assert three.write(rollback) == "a1"


def test_a_tainted_adapter_stays_tainted_and_is_never_promoted(three: Database) -> None:
    three.write(lambda db: adapters.set_state(db, "a1", "tainted"))
    three.write(lambda db: adapters.set_state(db, "a1", "candidate"))
    with pytest.raises(AdapterNotPromotableError, match="erased"):
        three.write(lambda db: promote(db, "a1"))


def test_an_adapter_of_another_scope_or_base_is_refused(database: Database) -> None:
    database.write(
        lambda db: (candidate(db, "elsewhere", scope="guild:9"), candidate(db, "other", base_hash="other"))
    )
    with pytest.raises(AdapterNotPromotableError, match="belongs to guild:9"):
        database.write(lambda db: promote(db, "elsewhere"))
    with pytest.raises(AdapterNotPromotableError, match="another base model"):
        database.write(lambda db: promote(db, "other"))
    with pytest.raises(UnknownRowError):
        database.write(lambda db: promote(db, "nowhere"))


actions = st.lists(
    st.one_of(
        st.tuples(st.just("promote"), st.sampled_from(["a1", "a2", "a3", None])),
        st.tuples(st.sampled_from(["rollback", "taint"]), st.sampled_from(["a1", "a2", "a3"])),
    ),
    max_size=15,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions)
def test_there_is_always_exactly_one_champion_and_the_log_agrees(
    tmp_path_factory: pytest.TempPathFactory, plan: list[tuple[str, str | None]]
) -> None:
    with Database.open(tmp_path_factory.mktemp("plan") / "strop.db") as database:
        database.write(lambda db: [candidate(db, name) for name in ("a1", "a2", "a3")])
        database.write(lambda db: adapters.ensure_champion_row(db, SCOPE, BASE))
        for action, name in plan:
            try:
                database.write(lambda db, action=action, name=name: act(db, action, name))  # type: ignore[misc]
            except StorageError:
                continue
        rows = database.read(lambda db: sql.many(db, "SELECT * FROM champions"))
        history = database.read(lambda db: adapters.promotions(db, SCOPE, BASE))
        states = {adapter.id: adapter.state for adapter in database.read(adapters.listing)}
    assert len(rows) == 1
    assert (rows[0]["adapter_id"], rows[0]["promotion_id"]) == (history[-1].adapter_id, history[-1].id)
    assert all(after.previous_id == before.adapter_id for before, after in itertools.pairwise(history))
    promoted = [name for name, state in states.items() if state == "promoted"]
    assert promoted == ([] if rows[0]["adapter_id"] is None else [rows[0]["adapter_id"]])


def act(db: sqlite_utils.Database, action: str, name: str | None) -> None:
    if action == "promote":
        promote(db, name)
    elif action == "rollback":
        rollback(db)
    else:
        assert name is not None
        adapters.set_state(db, name, "tainted")
        if adapters.champion(db, SCOPE, BASE) == name:
            adapters.revoke_champion(db, scope=SCOPE, base_hash=BASE, actor="1", reason="erased")


def test_the_registry_survives_a_restart(tmp_path: Path) -> None:
    with Database.open(tmp_path / "strop.db") as database:
        database.write(lambda db: (candidate(db, "a1"), promote(db, "a1")))
    with Database.open(tmp_path / "strop.db") as database:
        assert champion(database) == "a1"


def test_a_rollback_may_go_further_back_but_only_to_those_that_led_to_the_present_one(
    three: Database,
) -> None:
    three.write(lambda db: [promote(db, name) for name in ("a1", "a2", "a3")])
    assert three.read(lambda db: adapters.earlier_champions(db, SCOPE, BASE)) == [None, "a1", "a2"]
    assert three.write(lambda db: rollback_to(db, "a1")) == "a1"
    assert three.read(lambda db: adapters.earlier_champions(db, SCOPE, BASE)) == [None]
    with pytest.raises(NothingToRollBackError, match="adapter a3 is not among the adapters"):
        three.write(lambda db: rollback_to(db, "a3"))
    assert champion(three) == "a1"
    assert three.write(lambda db: rollback_to(db, None)) is None
