"""What a run says of the time that it still takes."""

from __future__ import annotations

import time
from pathlib import Path

from storage.db.database import Database
from storage.learning import runs
from tests.trainer.community import SCOPE
from trainer.run.heartbeat import SAID_FOR_S, Forecast, Heartbeat


def test_a_time_left_that_grows_by_more_than_a_tenth_says_so_for_a_while() -> None:
    forecast = Forecast()
    assert not any(forecast.slower(240.0 - passed, float(passed)) for passed in range(0, 60))
    assert not forecast.slower(185.0, 60.0)
    # From four minutes to eighteen within half a minute, and then as foreseen.
    assert forecast.slower(1080.0, 90.0)
    assert forecast.slower(1050.0, 120.0)
    assert not forecast.slower(1080.0 - SAID_FOR_S, 90.0 + SAID_FOR_S)


def test_many_small_steps_up_are_said_as_one_large_one_is() -> None:
    forecast = Forecast()
    assert any(forecast.slower(240.0 + passed, float(passed)) for passed in range(0, 60))


def test_nothing_is_said_before_there_is_a_time_left() -> None:
    assert not Forecast().slower(None, 5.0)


def test_the_time_left_runs_down_while_the_progress_stands_still(tmp_path: Path) -> None:
    database = Database.open(tmp_path / "strop.db")
    run = database.write(lambda db: runs.enqueue(db, scope=SCOPE, trigger="manual", requested_by="test"))
    database.write(lambda db: runs.lease_next(db, "trainer", 60_000))
    with Heartbeat(database, run.id, "trainer") as heartbeat:
        heartbeat.enter("train", later_s=5.0)
        assert heartbeat.eta_s() is None
        time.sleep(0.05)
        heartbeat.show(0.5, "liked replies, step 5 of 10")
        first = heartbeat.eta_s()
        heartbeat.say("own reply 1 of 9")
        assert first is not None and first > 5.0
        last = first
        while last > 5.0:
            time.sleep(0.01)
            now = heartbeat.eta_s()
            assert now is not None and now <= last
            last = now
        assert last == 5.0
    database.close()
