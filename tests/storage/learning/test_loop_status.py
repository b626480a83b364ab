import json
from typing import Any

import pytest
import sqlite_utils

from storage.chat import members
from storage.db.database import Database
from storage.feedback import duels
from storage.learning import adapters, loop_status, runs
from storage.learning.loop_status import LoopStatus
from tests.storage.conftest import BASE, SCOPE, Community, thumb


def read(database: Database, **options: Any) -> LoopStatus:
    return database.read(lambda db: loop_status.read(db, SCOPE, BASE, **options))


def rated(db: sqlite_utils.Database, community: Community) -> None:
    liked, disliked = community.asks(db, 1, "one"), community.asks(db, 1, "two")
    for user_id in (2, 3):
        thumb(db, liked, user_id)
    thumb(db, disliked, 2, -1, "👎")


def test_an_empty_home_has_a_status_too(database: Database) -> None:
    seen = read(database).as_json()
    assert seen["champion"] == {"id": None, "since_ms": None}
    assert seen["needs"] == {"liked": [0, 25], "raters": [0, 5]}
    assert seen["run"] is seen["last_run"] is None
    assert seen["history"] == seen["promotions"] == []


def test_the_status_is_plain_json_with_the_agreed_keys(database: Database, community: Community) -> None:
    database.write(lambda db: rated(db, community))
    seen = read(database, min_liked=3, min_raters=2).as_json()
    assert json.loads(json.dumps(seen)) == seen
    assert set(seen) == {
        *("scope", "champion", "ratings", "needs", "run", "last_run"),
        *("history", "promotions", "excluded", "duels", "comparisons", "by_asker_only", "trials"),
    }
    assert seen["ratings"] == {
        "liked": 2,
        "disliked": 1,
        "corrections": 0,
        "raters": 2,
        "new_since_run": 3,
    }
    assert seen["needs"] == {"liked": [1, 3], "raters": [2, 2]}


def test_that_most_replies_are_rated_by_their_asker_only_is_said(
    database: Database, community: Community
) -> None:
    def rate(db: sqlite_utils.Database, rater: int) -> None:
        for number in range(loop_status.FEW_REPLIES):
            thumb(db, community.asks(db, 1, f"by {rater}, {number}"), rater)

    database.write(lambda db: rate(db, 2))
    assert read(database).as_json()["by_asker_only"] == [0, 10]
    assert "asker only" not in loop_status.status_text(read(database))
    database.write(lambda db: rate(db, 1))
    assert read(database).as_json()["by_asker_only"] == [10, 20]
    assert "asker only" not in loop_status.status_text(read(database))
    database.write(lambda db: rate(db, 1))
    assert "Most replies (67%) are rated by their asker only" in loop_status.status_text(read(database))


def test_what_may_not_train_is_counted_with_the_reason_and_the_way_out(database: Database) -> None:
    database.write(lambda db: rated(db, Community(source="discord")))
    seen = read(database)
    assert seen.ready.excluded == {"no_permission": 2}
    assert (
        "Not trained on: 2 because Discord's permission to train is not recorded"
        in loop_status.status_text(seen)
    )


def test_a_run_its_phases_and_its_end_are_shown(database: Database, community: Community) -> None:
    def begin(db: sqlite_utils.Database) -> runs.Run:
        run = runs.enqueue(db, scope=SCOPE, trigger="manual", requested_by="1")
        assert "waiting for the trainer" in loop_status.status_text(loop_status.read(db, SCOPE, BASE))
        runs.lease_next(db, "trainer", 60_000)
        runs.heartbeat(db, run.id, "trainer", "train", 0.4, 130.0, "epoch 2 of 4")
        return run

    run = database.write(begin)
    text = loop_status.status_text(read(database))
    assert f"Run {run.id}: train 40%, about 2 min left (epoch 2 of 4)" in text

    def end(db: sqlite_utils.Database) -> None:
        adapters.insert_candidate(db, adapter_id="a1", scope=SCOPE, base_hash=BASE, path="adapters/a1")
        adapters.promote(db, scope=SCOPE, base_hash=BASE, adapter_id="a1", actor="trainer", reason="+0.12")
        headline = {"value": 0.12, "low": 0.05, "high": 0.19, "n": 64}
        runs.finish(
            db,
            run.id,
            outcome="promoted",
            message="a1 replaced the base.",
            metrics={"headline": headline},
            adapter_id="a1",
        )

    database.write(end)
    seen = read(database)
    assert seen.run is None
    (past,) = seen.as_json()["history"]
    assert (past["adapter_id"], past["value"], past["low"], past["high"], past["n"]) == (
        "a1",
        0.12,
        0.05,
        0.19,
        64,
    )
    text = loop_status.status_text(seen)
    assert "Answering: adapter a1" in text
    assert "Last run: a1 replaced the base." in text


def test_blind_votes_are_counted_while_they_are_open(database: Database) -> None:
    def work(db: sqlite_utils.Database) -> None:
        run = runs.enqueue(db, scope=SCOPE, trigger="manual", requested_by="1")
        runs.lease_next(db, "trainer", 60_000)
        for duel_id in ("d1", "d2"):
            duels.add(
                db,
                duel_id=duel_id,
                run_id=run.id,
                scope=SCOPE,
                challenger_id="a1",
                champion_id=None,
                prompt=[],
                first_text="one",
                second_text="two",
                first_is_challenger=True,
            )
        duels.vote(db, duel_id="d1", user_id=2, choice=1, source="playground")
        runs.finish(
            db, run.id, outcome="votes", message="Too close to call.", metrics={"votes_needed": [21, 70]}
        )

    database.write(work)
    seen = read(database)
    assert seen.blind_votes == loop_status.BlindVotes(open=2, votes=1, needed=(21, 70))
    assert seen.as_json()["duels"] == {"open": 2, "votes": 1, "needed": (21, 70)}
    assert "Blind votes: 1 vote so far, 2 pairs open" in loop_status.status_text(seen)


def test_beyond_the_live_limit_the_last_snapshots_counts_are_shown(
    database: Database, community: Community
) -> None:
    def work(db: sqlite_utils.Database) -> None:
        for n in range(loop_status.LIVE_REPLIES // 10 + 1):
            reply_id = community.asks(db, 1, f"question {n}")
            for user_id in range(2, 12):
                thumb(db, reply_id, user_id)
        run = runs.enqueue(db, scope=SCOPE, trigger="manual", requested_by="1")
        runs.lease_next(db, "trainer", 60_000)
        runs.finish(db, run.id, outcome="refused", message="", metrics={"excluded": {"opted_out": 4}})

    database.write(work)
    assert read(database).ready.excluded == {"opted_out": 4}


def test_a_member_who_decides_before_ever_writing_takes_their_source_from_the_first_message(
    database: Database,
) -> None:
    def work(db: sqlite_utils.Database) -> list[tuple[str, str, str]]:
        members.set_consent(db, 1, "in", "1")
        placeholder = members.get(db, 1)
        member = members.ensure(db, 1, "Ann", "playground")
        again = members.ensure(db, 1, "", "discord")
        assert placeholder is not None
        return [(m.source, m.consent, m.display_name) for m in (placeholder, member, again)]

    assert database.write(work) == [
        ("unknown", "in", ""),
        ("playground", "in", "Ann"),
        ("playground", "in", "Ann"),
    ]


@pytest.mark.parametrize("source", ["discord", "unknown", "somewhere new"])
def test_a_source_that_is_not_known_to_be_free_is_treated_like_discord(
    database: Database, source: str
) -> None:
    database.write(lambda db: rated(db, Community(source=source)))
    assert read(database).ready.excluded == {"no_permission": 2}
