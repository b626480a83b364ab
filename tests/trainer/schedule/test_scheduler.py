"""When runs are queued, and what becomes of their processes; the run itself is a small script here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import sqlite_utils
from structlog.testing import capture_logs

from storage.config_sections import TrainerConfig
from storage.db import key_values, sql
from storage.db.clock import DAY_MS, now_ms
from storage.db.database import Database
from storage.errors import CronError
from storage.learning import adapters, run_times, runs
from storage.learning.runs import Run
from tests.trainer.community import BASE_HASH, SCOPE, champion, open_database, rated_replies
from trainer.schedule.queue import RunQueue, child_environment
from trainer.schedule.scheduler import Schedule, enqueue_due, scopes

ROOT = Path(__file__).parents[3]


@pytest.fixture
def database(tmp_path: Path, empty_database: Path) -> Iterator[Database]:
    with open_database(tmp_path, empty_database) as opened:
        yield opened


def until(condition: Callable[[], object], within_s: float = 120.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.02)


def enqueue(database: Database, scope: str = SCOPE) -> Run:
    return database.write(lambda db: runs.enqueue(db, scope=scope, trigger="manual", requested_by="test"))


def state(database: Database, run: Run) -> Run:
    return database.read(lambda db: runs.expect(db, run.id))


# ------------------------------------------------------------ when to train
def test_a_run_is_queued_once_enough_new_ratings_came_in_and_not_again(database: Database) -> None:
    settings = TrainerConfig(min_new_ratings=3)
    database.write(lambda db: rated_replies(db, 2))
    assert enqueue_due(database, settings, "ratings", 3) == []
    database.write(lambda db: rated_replies(db, 1, first=2))
    (run_id,) = enqueue_due(database, settings, "ratings", 3)
    run = database.read(lambda db: runs.expect(db, run_id))
    assert (run.scope, run.trigger, run.requested_by) == (SCOPE, "ratings", "scheduler")
    assert enqueue_due(database, settings, "ratings", 3) == []


def test_after_a_run_only_ratings_given_since_its_start_count(database: Database) -> None:
    database.write(lambda db: rated_replies(db, 3))
    run = enqueue(database)
    database.write(lambda db: runs.lease_next(db, "me", 60_000))
    database.write(lambda db: rated_replies(db, 2, first=3))
    database.write(lambda db: runs.finish(db, run.id, outcome="not_yet", message="not yet"))
    assert enqueue_due(database, TrainerConfig(), "ratings", 3) == []
    assert len(enqueue_due(database, TrainerConfig(), "ratings", 2)) == 1


def test_the_clock_starts_no_run_that_would_only_repeat_the_last_one(database: Database) -> None:
    database.write(lambda db: rated_replies(db, 3))
    run = enqueue(database)
    database.write(lambda db: runs.lease_next(db, "me", 60_000))
    database.write(lambda db: runs.finish(db, run.id, outcome="refused", message="no better"))
    assert enqueue_due(database, TrainerConfig(), "schedule", 1) == []


def test_every_guild_trains_its_own_adapter_and_direct_messages_train_none(database: Database) -> None:
    database.write(lambda db: rated_replies(db, 1))
    database.write(lambda db: rated_replies(db, 1, first=10, scope="guild:2"))
    database.write(lambda db: rated_replies(db, 1, first=20, scope="deployment"))
    assert database.read(lambda db: scopes(db, TrainerConfig())) == [SCOPE, "guild:2"]
    assert database.read(lambda db: scopes(db, TrainerConfig(scope="deployment"))) == ["deployment"]


def test_the_interval_goes_on_across_restarts_and_its_next_time_is_published(database: Database) -> None:
    twenty_hours_ago = now_ms() - 20 * 3_600_000
    database.write(lambda db: key_values.put(db, key_values.LAST_INTERVAL, str(twenty_hours_ago)))
    schedule = Schedule(database, TrainerConfig(interval_hours=24))
    schedule.start()
    try:
        due = schedule.next_run_ms()
        assert due is not None
        assert abs(due - (now_ms() + 4 * 3_600_000)) < 60_000
        assert database.read(lambda db: key_values.get(db, key_values.NEXT_RUN)) == str(due)
    finally:
        schedule.shutdown()
    assert database.read(lambda db: key_values.get(db, key_values.NEXT_RUN)) == ""


def test_an_interval_that_passed_while_nothing_ran_is_made_up_for_soon(database: Database) -> None:
    database.write(lambda db: key_values.put(db, key_values.LAST_INTERVAL, "1"))
    schedule = Schedule(database, TrainerConfig(interval_hours=24))
    schedule.start()
    try:
        due = schedule.next_run_ms()
        assert due is not None
        assert 0 < due - now_ms() <= 61_000
    finally:
        schedule.shutdown()


def test_a_cron_line_is_read_in_utc_and_a_bad_one_names_its_key(database: Database) -> None:
    schedule = Schedule(database, TrainerConfig(cron="0 4 * * *", interval_hours=0))
    schedule.start()
    try:
        due = schedule.next_run_ms()
        assert due is not None
        moment = datetime.fromtimestamp(due / 1000, UTC)
        assert (moment.hour, moment.minute) == (4, 0)
        assert moment - datetime.now(UTC) <= timedelta(days=1)
    finally:
        schedule.shutdown()
    with pytest.raises(CronError, match="no minute"):
        Schedule(database, TrainerConfig(cron="61 4 * * *", interval_hours=0)).start()


@pytest.mark.parametrize(("weekday", "day"), [("0", 6), ("7", 6), ("sun", 6), ("1", 0), ("sat", 5)])
def test_the_weekdays_of_a_cron_line_are_those_of_every_crontab(
    database: Database, weekday: str, day: int
) -> None:
    schedule = Schedule(database, TrainerConfig(cron=f"0 4 * * {weekday}", time_zone="Asia/Tokyo"))
    schedule.start()
    try:
        due = schedule.next_run_ms()
        assert due is not None
        moment = datetime.fromtimestamp(due / 1000, ZoneInfo("Asia/Tokyo"))
        assert (moment.weekday(), moment.hour, moment.minute) == (day, 4, 0)
    finally:
        schedule.shutdown()


@pytest.mark.parametrize(
    ("hours", "warned"), [({}, 0), ({"interval_hours": 24.0}, 1), ({"interval_hours": 0.0}, 0)]
)
def test_a_cron_line_replaces_the_default_interval_and_two_clocks_are_said(
    database: Database, hours: dict[str, float], warned: int
) -> None:
    schedule = Schedule(database, TrainerConfig(cron="0 4 * * 0", **hours))
    with capture_logs() as logs:
        schedule.start()
    try:
        assert sum(line["event"].startswith("Two schedules start runs") for line in logs) == warned
        started = database.read(lambda db: key_values.get(db, key_values.LAST_INTERVAL)) is not None
        assert started is bool(warned)
    finally:
        schedule.shutdown()


def next_due_s(database: Database, settings: TrainerConfig) -> float:
    """Start a schedule; return in how many seconds its first run is due."""
    schedule = Schedule(database, settings)
    schedule.start()
    try:
        due = schedule.next_run_ms()
        assert due is not None
        return (due - now_ms()) / 1000
    finally:
        schedule.shutdown()


def test_a_cron_time_that_passed_while_nothing_ran_is_made_up_for_soon(database: Database) -> None:
    yearly = TrainerConfig(cron="@yearly", interval_hours=0)
    assert next_due_s(database, yearly) > 61
    two_years_ago = now_ms() - 2 * 366 * DAY_MS
    database.write(lambda db: run_times.note_cron(db, yearly, two_years_ago))
    now = datetime.now(UTC)
    told = database.read(lambda db: run_times.list_upcoming(db, yearly, now))
    assert told[0] == now and told[1] > now
    assert 0 < next_due_s(database, yearly) <= 61


def test_of_a_new_cron_line_and_of_a_clock_that_was_ahead_nothing_is_made_up_for(database: Database) -> None:
    yearly = TrainerConfig(cron="@yearly", interval_hours=0)
    database.write(lambda db: run_times.note_cron(db, yearly, 1))
    assert next_due_s(database, TrainerConfig(cron="0 0 2 1 *", interval_hours=0)) > 61
    database.write(lambda db: run_times.note_cron(db, yearly, now_ms() + 900 * DAY_MS))
    assert 61 < next_due_s(database, yearly) < 367 * 86_400


@pytest.mark.parametrize(
    "settings",
    [
        TrainerConfig(cron="30 3 * * 1-5", time_zone="Europe/Berlin"),
        TrainerConfig(interval_hours=6),
        TrainerConfig(cron="15 */2 * * *", interval_hours=5),
    ],
)
def test_what_people_are_told_is_when_the_schedule_runs(database: Database, settings: TrainerConfig) -> None:
    schedule = Schedule(database, settings)
    schedule.start()
    try:
        told = database.read(lambda db: run_times.list_upcoming(db, settings, datetime.now(UTC)))
        due = schedule.next_run_ms()
        assert due is not None and abs(due / 1000 - told[0].timestamp()) < 1
        assert len(told) == run_times.PREVIEWED and told == sorted(told)
    finally:
        schedule.shutdown()


# ------------------------------------------------------------ a run's process
def queue_with(database: Database, body: str, **options: object) -> RunQueue:
    program = textwrap.dedent(body)

    def command(run: Run) -> list[str]:
        return [sys.executable, "-c", program, str(database.path), run.id]

    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return RunQueue(database, command, owner="me", environment=environment, **options)  # type: ignore[arg-type]


FINISHES = """
import sys
from pathlib import Path
from storage.learning import runs
from storage.db.database import Database
with Database.open(Path(sys.argv[1])) as database:
    owner = database.read(lambda db: runs.expect(db, sys.argv[2]).lease_owner)
    assert database.write(lambda db: runs.heartbeat(db, sys.argv[2], owner, "train", 0.5, 3.0))
    database.write(lambda db: runs.finish(db, sys.argv[2], outcome="refused", message="It was no better."))
"""


def test_a_queued_run_gets_its_process_and_its_result_stands(database: Database) -> None:
    queue, run = queue_with(database, FINISHES), enqueue(database)
    queue.tick()
    assert queue.busy
    until(lambda: (queue.tick(), not queue.busy)[1])
    assert (state(database, run).outcome, state(database, run).message) == ("refused", "It was no better.")


def test_runs_of_two_scopes_go_one_after_the_other(database: Database) -> None:
    queue, first, second = queue_with(database, FINISHES), enqueue(database), enqueue(database, "guild:2")
    queue.tick()
    queue.tick()
    assert (state(database, first).state, state(database, second).state) in [
        ("running", "queued"),
        ("finished", "queued"),
    ]
    until(lambda: (queue.tick(), state(database, second).state == "finished")[1])
    assert state(database, first).state == "finished"


LIVES = "import time; time.sleep(600)"


def processes(queue: RunQueue) -> dict[str, int]:
    return {child.run.id: child.process.pid for child in queue._children}


def test_runs_of_different_scopes_are_on_at_once_and_of_one_scope_never_two(database: Database) -> None:
    queue = queue_with(database, LIVES, at_once=2)
    first, second, third = (enqueue(database, scope) for scope in (SCOPE, "guild:2", "guild:3"))
    for _ in range(3):
        queue.tick()
    assert set(processes(queue)) == {first.id, second.id}
    # Its scope asks once more: the one that waits longer gets the place first.
    assert database.write(lambda db: runs.cancel(db, first.id, "operator"))
    again = enqueue(database)
    until(lambda: (queue.tick(), set(processes(queue)) == {second.id, third.id})[1])
    os.kill(processes(queue)[second.id], signal.SIGKILL)
    until(lambda: (queue.tick(), again.id in processes(queue) or second.id in processes(queue))[1])
    assert third.id in processes(queue) and state(database, third).state == "running"
    queue.stop()
    assert not queue.busy
    assert {state(database, run).state for run in (second, third, again)} == {"queued"}


def test_a_run_starts_only_once_the_process_of_its_scope_s_last_one_has_ended(database: Database) -> None:
    deaf = database.path.with_name("deaf")
    body = STUBBORN.replace("time.sleep", f"open({str(deaf)!r}, 'w').close(); time.sleep")
    queue, run = queue_with(database, body, at_once=2, term_wait_s=600.0), enqueue(database)
    queue.tick()
    (pid,) = processes(queue).values()
    until(deaf.exists)
    assert database.write(lambda db: runs.cancel(db, run.id, "operator"))
    again = enqueue(database)
    for _ in range(3):
        queue.tick()
    assert state(database, again).state == "queued"
    os.kill(pid, signal.SIGKILL)
    until(lambda: (queue.tick(), state(database, again).state == "running")[1])
    os.kill(processes(queue)[again.id], signal.SIGKILL)
    queue.stop()


def test_cores_are_divided_among_runs_whether_or_not_another_is_on() -> None:
    whole = int(child_environment({})["OMP_NUM_THREADS"])
    assert child_environment({}, 2)["OMP_NUM_THREADS"] == str(max(whole // 2, 1))
    assert child_environment({}, 1000)["OMP_NUM_THREADS"] == "1"


KILLS_ITSELF = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"


def test_a_run_whose_process_is_killed_goes_on_once_and_fails_at_the_second_time(database: Database) -> None:
    queue, run = queue_with(database, KILLS_ITSELF), enqueue(database)
    queue.tick()
    until(lambda: (queue.tick(), state(database, run).state == "queued")[1])
    assert state(database, run).note == "Starts again: its process was killed."
    until(lambda: (queue.tick(), state(database, run).state == "failed")[1])
    ended = state(database, run)
    assert ended.attempts == 2
    assert ended.message == "The run failed: its process was killed. The champion was not changed."


def test_a_run_that_is_killed_after_it_got_further_goes_on_again(database: Database) -> None:
    """A newer checkpoint makes the next attempt the first of its kind."""
    queue, run = queue_with(database, KILLS_ITSELF), enqueue(database)
    for _ in range(3):
        until(lambda: (queue.tick(), state(database, run).state == "running")[1])
        database.write(lambda db: runs.got_further(db, run.id))
        until(lambda: (queue.tick(), state(database, run).state == "queued")[1])


@pytest.mark.parametrize(
    ("body", "sentence", "error"),
    [("raise SystemExit('out of tea')", "ended with code 1 before it had a result", "out of tea")],
)
def test_a_process_that_dies_without_a_result_fails_its_run_and_the_champion_stays(
    database: Database, body: str, sentence: str, error: str
) -> None:
    database.write(lambda db: champion(db, "a123"))
    queue, run = queue_with(database, body), enqueue(database)
    queue.tick()
    until(lambda: (queue.tick(), not queue.busy)[1])
    ended = state(database, run)
    assert ended.state == "failed"
    assert sentence in ended.message and ended.message.endswith("The champion was not changed.")
    assert error in (ended.error or "")
    assert database.read(lambda db: adapters.champion(db, SCOPE, BASE_HASH)) == "a123"


def test_a_run_whose_program_is_missing_fails_with_a_sentence(database: Database) -> None:
    queue = RunQueue(database, lambda run: ["/nowhere/python"], owner="me")
    run = enqueue(database)
    queue.tick()
    until(lambda: (queue.tick(), not queue.busy)[1])
    assert state(database, run).state == "failed"


STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(60)
"""


@pytest.mark.parametrize("body", ["import time; time.sleep(60)", STUBBORN])
def test_a_cancelled_run_loses_its_process_even_if_it_will_not_listen(database: Database, body: str) -> None:
    queue, run = queue_with(database, body, term_wait_s=0.3), enqueue(database)
    queue.tick()
    assert database.write(lambda db: runs.cancel(db, run.id, "operator"))
    until(lambda: (queue.tick(), not queue.busy)[1])
    assert state(database, run).state == "cancelled"


def test_stopping_puts_the_run_back_into_the_queue_and_a_second_interruption_fails_it(
    database: Database,
) -> None:
    queue, run = queue_with(database, STUBBORN, term_wait_s=0.2), enqueue(database)
    queue.tick()
    queue.stop()
    again = state(database, run)
    assert again.state == "queued"
    assert again.note == "Starts again: the trainer was stopped in the middle of it."
    queue.tick()
    queue.stop()
    assert state(database, run).state == "failed"


def test_a_run_has_the_lowest_priority_and_its_waiting_threads_sleep(
    database: Database, tmp_path: Path
) -> None:
    seen = tmp_path / "seen"
    body = f"""
    import os, pathlib, time
    time.sleep(0.3)
    pathlib.Path({str(seen)!r}).write_text(f"{{os.nice(0)}} {{os.environ['OMP_WAIT_POLICY']}}")
    """
    queue = queue_with(database, body, nice=19)
    enqueue(database)
    queue.tick()
    until(lambda: (queue.tick(), not queue.busy)[1])
    assert seen.read_text() == "19 passive"


def test_a_thread_count_that_the_operator_set_is_kept() -> None:
    assert (
        child_environment({"OMP_NUM_THREADS": "3", "OMP_WAIT_POLICY": "active"}).items()
        >= {
            "OMP_NUM_THREADS": "3",
            "OMP_WAIT_POLICY": "passive",
        }.items()
    )
    assert int(child_environment({})["OMP_NUM_THREADS"]) >= 1


def test_a_run_loads_no_compiler_of_torch_unless_the_operator_wants_it() -> None:
    assert child_environment({})["TORCHDYNAMO_DISABLE"] == "1"
    assert child_environment({"TORCHDYNAMO_DISABLE": "0"})["TORCHDYNAMO_DISABLE"] == "0"


# ------------------------------------------------------------ the whole process
def trainer_process(home: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "STROP_HOME": str(home)}
    return subprocess.Popen(
        [sys.executable, "-m", "trainer", "--config", str(home / "strop.toml")],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_second_trainer_is_refused_and_the_first_needs_no_model_server(tmp_path: Path) -> None:
    (tmp_path / "strop.toml").write_text("[trainer]\ninterval_hours = 0\n")
    first = trainer_process(tmp_path)
    assert first.stderr is not None
    with first:
        try:
            lines = []
            while "The model server isn't ready" not in "".join(lines):
                lines.append(first.stderr.readline())
                assert lines[-1], lines
            second = trainer_process(tmp_path)
            _, said = second.communicate(timeout=30)
            assert second.returncode == 2
            assert f"A trainer already works on this data folder (process {first.pid})" in said
            first.send_signal(signal.SIGTERM)
            assert first.wait(20) == 0
        finally:
            first.kill()


def test_a_trainer_with_a_broken_configuration_lists_every_problem_and_ends_with_2(tmp_path: Path) -> None:
    (tmp_path / "strop.toml").write_text("[trainer]\nnice = 40\nminliked = 3\n")
    process = trainer_process(tmp_path)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "trainer.nice" in said and "trainer.minliked" in said
    assert "Traceback" not in said


def test_a_run_created_while_the_clock_was_ahead_queues_no_other_at_every_check(database: Database) -> None:
    """The clock was a day ahead for one run and was put right: the next run is the newest all the same."""

    def work(db: sqlite_utils.Database) -> list[int]:
        for day in (1, 0):
            run = runs.enqueue(db, scope=SCOPE, trigger="ratings", requested_by="scheduler")
            sql.change(db, "UPDATE runs SET created_ms = created_ms + ? WHERE id = ?", (day * DAY_MS, run.id))
            runs.lease_next(db, "me", 60_000)
            sql.change(db, "UPDATE runs SET ratings_seen = ? WHERE id = ?", (3 if day else 10, run.id))
            runs.finish(db, run.id, outcome="refused", message="No better.")
        sql.change(db, "INSERT INTO scope_counts (scope, changes) VALUES (?, 12)", (SCOPE,))
        return [runs.new_ratings(db, SCOPE), len(runs.latest(db, SCOPE)[0].id)]

    assert database.write(work)[0] == 2
