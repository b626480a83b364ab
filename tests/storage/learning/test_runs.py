from pathlib import Path

import pytest
import sqlite_utils
from sqlite_utils.utils import sqlite3

from storage.admin import audit
from storage.db import clock, sql
from storage.db.database import Database
from storage.errors import RunNotActiveError, UnknownRowError
from storage.feedback import duels
from storage.learning import checkpoints, evaluations, run_summary, runs
from storage.privacy import erasure as privacy
from tests.storage.conftest import SCOPE, Community, thumb


def enqueue(db: sqlite_utils.Database, scope: str = SCOPE, trigger: runs.Trigger = "manual") -> runs.Run:
    return runs.enqueue(db, scope=scope, trigger=trigger, requested_by="1", report_channel_id=6)


def lease(db: sqlite_utils.Database, owner: str = "trainer", lease_ms: int = 60_000) -> runs.Run:
    run = runs.lease_next(db, owner, lease_ms)
    assert run is not None
    return run


def let_the_lease_end(db: sqlite_utils.Database) -> None:
    sql.change(db, "UPDATE runs SET lease_until_ms = ? WHERE state = 'running'", (clock.now_ms() - 1,))


def test_asking_twice_for_a_run_gives_the_one_that_waits(database: Database) -> None:
    first, second = database.write(lambda db: (enqueue(db), enqueue(db, trigger="schedule")))
    assert first == second
    assert database.write(lambda db: (lease(db), enqueue(db).id))[1] == first.id


def test_one_run_is_on_at_a_time_and_the_oldest_goes_first(database: Database) -> None:
    first, second = database.write(lambda db: (enqueue(db), enqueue(db, "guild:9")))
    assert database.write(lease).id == first.id
    assert database.write(lambda db: runs.lease_next(db, "another", 1_000)) is None
    database.write(lambda db: runs.finish(db, first.id, outcome="refused", message="Not better."))
    assert database.write(lease).id == second.id


def test_so_many_runs_are_on_at_once_and_of_one_scope_never_two(database: Database) -> None:
    def work(db: sqlite_utils.Database) -> list[str | None]:
        waiting = [enqueue(db, scope) for scope in (SCOPE, "guild:8", "guild:9")]
        first = lease(db)
        again = enqueue(db)
        assert again == first
        busy = runs.lease_next(db, "trainer", 60_000, at_once=2, busy_scopes=["guild:8", "guild:9"])
        second = runs.lease_next(db, "trainer", 60_000, at_once=2)
        third = runs.lease_next(db, "trainer", 60_000, at_once=2)
        on = [run.id for run in runs.list_running(db)]
        assert on == [waiting[0].id, waiting[1].id]
        return [busy and busy.id, second and second.id, third and third.id, waiting[1].id]

    busy, second, third, expected = database.write(work)
    assert (busy, second, third) == (None, expected, None)
    with pytest.raises(sqlite3.IntegrityError, match=r"runs\.scope"):
        database.write(
            lambda db: sql.change(
                db,
                "INSERT INTO runs (id, scope, trigger, requested_by, state, created_ms) "
                "VALUES ('r', ?, 'manual', '', 'running', 0)",
                (SCOPE,),
            )
        )


def test_a_retrain_after_an_erasure_goes_before_everything_else(database: Database) -> None:
    database.write(enqueue)
    clean = database.write(lambda db: enqueue(db, "guild:9", "erasure"))
    assert database.write(lease).id == clean.id


def test_a_heartbeat_renews_the_lease_and_shows_where_the_run_is(database: Database) -> None:
    run = database.write(lambda db: (enqueue(db), lease(db))[1])
    assert database.write(
        lambda db: runs.heartbeat(db, run.id, "trainer", "train", 0.4, 90.0, "epoch 2 of 4")
    )
    now = database.read(lambda db: runs.active(db, SCOPE))
    assert now is not None and run.lease_until_ms is not None and now.lease_until_ms is not None
    assert (now.phase, now.progress, now.eta_s, now.note) == ("train", 0.4, 90.0, "epoch 2 of 4")
    assert now.lease_until_ms >= run.lease_until_ms


def test_a_heartbeat_of_a_cancelled_or_foreign_run_says_stop(database: Database) -> None:
    run = database.write(lambda db: (enqueue(db), lease(db))[1])
    assert not database.write(lambda db: runs.heartbeat(db, run.id, "impostor"))
    assert database.write(lambda db: runs.cancel(db, run.id, "1"))
    assert not database.write(lambda db: runs.cancel(db, run.id, "1"))
    assert not database.write(lambda db: runs.heartbeat(db, run.id, "trainer"))
    with pytest.raises(RunNotActiveError, match="cancelled"):
        database.write(lambda db: runs.finish(db, run.id, outcome="promoted", message=""))


def test_a_run_whose_trainer_died_starts_again_once_and_then_fails_with_the_reason(
    database: Database,
) -> None:
    run = database.write(lambda db: (enqueue(db), lease(db))[1])
    database.write(let_the_lease_end)
    again = database.write(lambda db: runs.lease_next(db, "another", 60_000))
    assert again is not None and (again.id, again.attempts) == (run.id, 2)
    assert "the trainer stopped" in again.note
    database.write(let_the_lease_end)
    (failed,) = database.write(runs.expire_leases)
    assert (failed.state, failed.outcome) == ("failed", "failed")
    assert "the trainer stopped" in failed.message and "champion was not changed" in failed.message


def test_a_run_that_finishes_keeps_its_sentence_and_figures(database: Database) -> None:
    run = database.write(lambda db: (enqueue(db), lease(db))[1])
    finished = database.write(
        lambda db: runs.finish(
            db,
            run.id,
            outcome="promoted",
            message="a1 replaced the base.",
            metrics={"loss": 1.5},
            adapter_id="a1",
        )
    )
    assert (finished.state, finished.outcome) == ("finished", "promoted")
    assert finished.metrics.as_json() == {"loss": 1.5}
    assert finished.finished_ms is not None
    assert database.read(lambda db: runs.active(db, SCOPE)) is None
    assert database.read(lambda db: runs.latest(db, SCOPE)) == [finished]


def test_a_failed_run_leaves_room_for_the_next(database: Database) -> None:
    run = database.write(lambda db: (enqueue(db), lease(db))[1])
    failed = database.write(lambda db: runs.fail(db, run.id, error="out of memory"))
    assert (failed.state, failed.error) == ("failed", "out of memory")
    assert database.write(enqueue).id != run.id


def test_every_row_of_a_snapshot_can_be_traced(database: Database, community: Community) -> None:
    def work(db: sqlite_utils.Database) -> list[runs.RunRow]:
        reply_id = community.asks(db, 1, "hello")
        enqueue(db)
        run = lease(db)
        row = runs.RunRow(reply_id, "train", "liked", 1.0)
        runs.record_snapshot(db, run.id, snapshot_hash="h", rows=[row])
        runs.record_snapshot(db, run.id, snapshot_hash="h", rows=[row])
        return [*runs.rows_of(db, run.id), row]

    first, expected = database.write(work)
    assert first == expected


def test_new_ratings_are_counted_from_the_start_of_the_last_run(
    database: Database, community: Community
) -> None:
    def work(db: sqlite_utils.Database) -> list[int]:
        reply_id = community.asks(db, 1, "hello")
        thumb(db, reply_id, 2)
        thumb(db, reply_id, 3)
        before = runs.new_ratings(db, SCOPE)
        enqueue(db)
        lease(db)
        at_start = runs.new_ratings(db, SCOPE)
        thumb(db, reply_id, 3, -1, "👎")
        return [before, at_start, runs.new_ratings(db, SCOPE)]

    assert database.write(work) == [2, 0, 1]


def test_only_one_report_message_belongs_to_a_run(database: Database) -> None:
    run = database.write(enqueue)
    database.write(lambda db: runs.set_report(db, run.id, channel_id=6, message_id=99))
    stored = database.read(lambda db: runs.expect(db, run.id))
    assert (stored.report_channel_id, stored.report_message_id) == (6, 99)


def duel(db: sqlite_utils.Database, run_id: str, duel_id: str, *, first_is_challenger: bool) -> None:
    duels.add(
        db,
        duel_id=duel_id,
        run_id=run_id,
        scope=SCOPE,
        challenger_id="a1",
        champion_id=None,
        prompt=[{"role": "user", "content": "hi"}],
        first_text="one",
        second_text="two",
        first_is_challenger=first_is_challenger,
    )


def test_votes_are_counted_for_the_challenger_whichever_side_it_was_shown_on(database: Database) -> None:
    def work(db: sqlite_utils.Database) -> tuple[duels.DuelTally, list[bool]]:
        run = enqueue(db)
        duel(db, run.id, "d1", first_is_challenger=True)
        duel(db, run.id, "d2", first_is_challenger=False)
        changed = [
            duels.vote(db, duel_id="d1", user_id=2, choice=1, source="playground"),
            duels.vote(db, duel_id="d2", user_id=2, choice=1, source="playground"),
            duels.vote(db, duel_id="d1", user_id=3, choice=0, source="rehearsal"),
            duels.vote(db, duel_id="d1", user_id=3, choice=0, source="rehearsal"),
        ]
        return duels.tally(db, run.id), changed

    tally, changed = database.write(work)
    assert (tally.wins, tally.losses, tally.ties, tally.voters, tally.votes) == (1, 1, 1, 2, 3)
    assert sorted(tally.outcomes) == [-1, 0, 1]
    assert changed == [True, True, True, False]


def test_duels_stay_open_while_a_run_waits_for_votes_and_close_with_its_decision(database: Database) -> None:
    def work(db: sqlite_utils.Database) -> list[object]:
        enqueue(db)
        run = lease(db)
        duel(db, run.id, "d1", first_is_challenger=True)
        runs.finish(db, run.id, outcome="votes", message="Too close to call.")
        waiting = [found.id for found in runs.awaiting_votes(db, SCOPE)] == [run.id]
        open_before = len(duels.open_for(db, SCOPE))
        runs.finish(db, run.id, outcome="refused", message="The votes were even.")
        late = duels.vote(db, duel_id="d1", user_id=2, choice=1, source="playground")
        return [waiting, open_before, len(duels.open_for(db, SCOPE)), late]

    assert database.write(work) == [True, 1, 0, False]


def test_the_last_of_a_duel_s_votes_closes_it(database: Database) -> None:
    def work(db: sqlite_utils.Database) -> list[object]:
        enqueue(db)
        run = lease(db)
        duel(db, run.id, "d1", first_is_challenger=True)
        cast = []
        for user_id in range(1, duels.MOST_VOTES + 2):
            found = duels.get(db, "d1")
            assert found is not None
            is_open = found.closed_ms is None
            changed = duels.vote(db, duel_id="d1", user_id=user_id, choice=1, source="playground")
            cast.append((is_open, changed))
        return [cast, duels.count_open(db, SCOPE), duels.tally(db, run.id).votes]

    cast, still_open, votes = database.write(work)
    assert cast == [(True, True)] * duels.MOST_VOTES + [(False, False)]
    assert (still_open, votes) == (0, duels.MOST_VOTES)


def test_a_vote_on_an_unknown_duel_is_refused(database: Database) -> None:
    with pytest.raises(UnknownRowError, match="no duel nope"):
        database.write(lambda db: duels.vote(db, duel_id="nope", user_id=2, choice=1, source="playground"))


def test_evaluations_are_kept_with_their_interval(database: Database) -> None:
    def work(db: sqlite_utils.Database) -> list[evaluations.Evaluation]:
        run = enqueue(db)
        evaluations.add(
            db,
            run_id=run.id,
            adapter_id="a1",
            champion_id=None,
            metric="win",
            value=0.1,
            low=0.0,
            high=0.2,
            n=64,
        )
        return evaluations.list_for_run(db, run.id)

    (evaluation,) = database.write(work)
    assert (evaluation.metric, evaluation.value, evaluation.low, evaluation.high, evaluation.n) == (
        *("win", 0.1, 0.0, 0.2),
        64,
    )


def test_who_asked_for_a_run_is_in_the_audit_log(database: Database) -> None:
    database.write(enqueue)
    (entry,) = database.read(audit.latest)
    assert (entry.actor, entry.action, entry.detail["trigger"]) == ("1", "run.enqueue", "manual")


def test_attempts_that_get_further_do_not_count(database: Database) -> None:
    run = database.write(lambda db: (enqueue(db), lease(db))[1])
    for _ in range(5):
        database.write(lambda db: runs.got_further(db, run.id))
        assert database.write(lambda db: runs.requeue(db, run.id, "it was killed")).state == "queued"
        database.write(lease)
    assert database.write(lambda db: runs.requeue(db, run.id, "it was killed")).state == "failed"


def test_a_run_that_an_erasure_touched_while_it_waited_begins_anew(
    database: Database, community: Community
) -> None:
    def work(db: sqlite_utils.Database) -> str:
        reply_id = community.asks(db, 1, "hello")
        thumb(db, reply_id, 2)
        run = (enqueue(db), lease(db))[1]
        runs.record_snapshot(
            db, run.id, snapshot_hash="s", rows=[runs.RunRow(reply_id, "train", "liked", 1.0)]
        )
        return runs.requeue(db, run.id, "the trainer was stopped").id

    run_id = database.write(work)
    erasure = database.write(lambda db: privacy.erase_member(db, 1, "1"))
    assert erasure.runs == (run_id,)
    again = database.write(lease)
    assert (again.id, again.snapshot_hash, again.repeatable) == (run_id, None, True)
    assert database.read(lambda db: runs.rows_of(db, run_id)) == []


def test_a_repeat_does_not_put_off_the_run_that_new_ratings_bring_about(
    database: Database, community: Community
) -> None:
    def work(db: sqlite_utils.Database) -> None:
        thumb(db, community.asks(db, 1, "hello"), 1)
        runs.enqueue(db, scope=SCOPE, trigger="manual", requested_by="1", settings={"repeat": "r1"})
        lease(db)

    database.write(work)
    assert database.read(lambda db: runs.new_ratings(db, SCOPE)) == 1


def test_a_run_is_found_by_the_beginning_of_its_id(database: Database) -> None:
    first, second = database.write(lambda db: (enqueue(db), enqueue(db, "guild:9")))
    assert database.read(lambda db: run_summary.find_by_prefix(db, first.id)).id == first.id
    assert database.read(lambda db: run_summary.find_by_prefix(db, second.id[:-1])).id == second.id
    with pytest.raises(UnknownRowError, match="Several runs begin with 'r'"):
        database.read(lambda db: run_summary.find_by_prefix(db, "r"))
    with pytest.raises(UnknownRowError, match="No run begins with 'x%'"):
        database.read(lambda db: run_summary.find_by_prefix(db, "x%"))


def test_only_runs_that_wait_or_are_on_keep_their_checkpoint(database: Database, tmp_path: Path) -> None:
    def work(db: sqlite_utils.Database) -> tuple[str, str, str]:
        over = (enqueue(db), lease(db))[1]
        runs.finish(db, over.id, outcome="refused", message="no")
        on = (enqueue(db), lease(db))[1]
        return over.id, on.id, enqueue(db, "guild:9").id

    folders = [tmp_path / run_id for run_id in database.write(work)]
    for folder in folders:
        folder.mkdir()
        (folder / checkpoints.FILE).touch()
        (folder / "snapshot.jsonl").touch()
    (folders[0] / checkpoints.PARTIAL).touch()
    assert checkpoints.remove_leftover(database, tmp_path) == [folders[0].name]
    assert [sorted(path.name for path in folder.iterdir()) for folder in folders] == [
        ["snapshot.jsonl"],
        [checkpoints.FILE, "snapshot.jsonl"],
        [checkpoints.FILE, "snapshot.jsonl"],
    ]
