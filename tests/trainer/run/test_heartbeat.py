"""What a run says of the time that it still takes."""

from __future__ import annotations

import time
from pathlib import Path

from storage.db.database import Database
from storage.learning import runs
from tests.trainer.community import SCOPE
from trainer.run.heartbeat import Heartbeat


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
