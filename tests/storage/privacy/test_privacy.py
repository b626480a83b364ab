import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlite_utils

from storage.admin import blocks
from storage.chat import conversations, members, replies
from storage.db import clock, key_values, sql
from storage.db.database import Database
from storage.errors import AdapterNotPromotableError, BackupError, RunNotActiveError
from storage.feedback import duels, ratings
from storage.learning import adapters, eligibility, evaluations, runs
from storage.privacy import backup, consent, erasure, file_scrubbing, restore
from tests.storage.conftest import BASE, SCOPE, Community, finish, thumb

CANARY = "purple-canary-7731"
ANN, BO = 1, 2


def train(db: sqlite_utils.Database, adapter_id: str, reply_ids: list[str], *, promote: bool = True) -> str:
    """A run on these replies that ends with an adapter."""
    run = runs.enqueue(db, scope=SCOPE, trigger="manual", requested_by="op")
    runs.lease_next(db, "trainer", 60_000)
    rows = [runs.RunRow(reply_id, "train", "liked", 1.0) for reply_id in reply_ids]
    runs.record_snapshot(db, run.id, snapshot_hash="h", rows=rows)
    adapters.insert_candidate(
        db, adapter_id=adapter_id, scope=SCOPE, base_hash=BASE, path=f"adapters/{adapter_id}", run_id=run.id
    )
    runs.finish(db, run.id, outcome="promoted", message=f"{adapter_id} was promoted.", adapter_id=adapter_id)
    if promote:
        adapters.promote(db, scope=SCOPE, base_hash=BASE, adapter_id=adapter_id, actor="op", reason="better")
    return run.id


def erase(database: Database, user_id: int = ANN) -> erasure.Erasure:
    return database.write(lambda db: erasure.erase_member(db, user_id, str(user_id)))


def champion(database: Database) -> str | None:
    return database.read(lambda db: adapters.champion(db, SCOPE, BASE))


def files_with(home: Path, text: str) -> list[str]:
    return [file.name for file in home.rglob("*") if file.is_file() and text.encode() in file.read_bytes()]


@pytest.fixture
def home(database: Database) -> Iterator[Path]:
    yield database.path.parent


@pytest.fixture
def story(database: Database, community: Community, home: Path) -> dict[str, str]:
    """Ann's canary in every place where a member's words can get to."""

    def work(db: sqlite_utils.Database) -> dict[str, str]:
        bos = community.asks(db, BO, "what Bo asked")
        thumb(db, bos, BO)
        old_run = train(db, "a-clean", [bos])
        anns = community.asks(db, ANN, f"I live at {CANARY}", answer=f"You live at {CANARY}!")
        members.ensure(db, ANN, f"Ann {CANARY}", "playground")
        below = community.follows_up(db, BO, anns, "where was that again?")
        thumb(db, bos, ANN)
        ratings.rate(
            db, reply_id=anns, user_id=BO, kind="correction", means="modal", value=1, text=f"At {CANARY}."
        )
        ratings.rate(db, reply_id=bos, user_id=ANN, kind="correction", means="modal", value=1, text=CANARY)
        run_id = train(db, "a-tainted", [anns, below])
        evaluations.add(
            db,
            run_id=run_id,
            adapter_id="a-tainted",
            champion_id=None,
            metric="m",
            value=1.0,
            detail={"worst": CANARY},
        )
        sql.change(
            db,
            "UPDATE runs SET metrics_json = ? WHERE id = ?",
            (json.dumps({"loss": 1.5, "sample": CANARY, "deep": [{"text": CANARY, "n": 3}]}), run_id),
        )
        duels.add(
            db,
            duel_id="d",
            run_id=old_run,
            scope=SCOPE,
            challenger_id="a-clean",
            champion_id=None,
            prompt=[{"role": "user", "content": CANARY}],
            first_text=CANARY,
            second_text="no",
            first_is_challenger=True,
            reply_id=anns,
        )
        duels.vote(db, duel_id="d", user_id=ANN, choice=1, source="playground")
        return {"anns": anns, "below": below, "bos": bos, "run": run_id, "old_run": old_run}

    told = database.write(work)
    for folder in (f"runs/{told['run']}/checkpoint", "adapters/a-tainted", "adapters/a-clean"):
        (home / folder).mkdir(parents=True)
        (home / folder / "data.json").write_text("clean" if "clean" in folder else CANARY)
    return told


def test_after_an_erasure_no_file_of_the_home_holds_a_word_of_the_member(
    database: Database, home: Path, story: dict[str, str]
) -> None:
    backup.backup(database, home / "backups" / "monday")
    assert len(files_with(home, CANARY)) >= 5
    assert file_scrubbing.complete(database, home, erase(database))
    assert files_with(home, CANARY) == []
    assert database.read(erasure.pending) == []
    assert backup.verify(home / "backups" / "monday")
    database.close()
    assert files_with(home, CANARY) == []


def test_an_answer_made_from_the_member_s_words_is_erased_wherever_it_was_read_again(
    database: Database, community: Community
) -> None:
    """Ann's own message was too old for the prompt of Bo's question, the bot's echo of it was not."""

    def work(db: sqlite_utils.Database) -> tuple[str, str]:
        echo = community.asks(db, ANN, "where do I live?", answer=f"You live at {CANARY}.")
        shown = replies.get(db, echo)
        assert shown is not None
        asked = conversations.add_message(
            db,
            conversation_id=shown.conversation_id,
            discord_id=77,
            parent_id=shown.message_id,
            author_id=BO,
            role="user",
            content="say that again",
        )
        reply = replies.start(
            db,
            reply_id="again",
            prompt_message_id=asked,
            scope=SCOPE,
            adapter_id=None,
            base_hash=BASE,
            prompt=[
                {"role": "assistant", "content": shown.text},
                {"role": "user", "content": "say that again"},
            ],
            seed=1,
            sampling={},
            context=[shown.message_id, asked],
        )
        finish(db, reply.id, f"You live at {CANARY}.")
        return reply.id, train(db, "a-echo", [reply.id])

    reply_id, run_id = database.write(work)
    erasure = erase(database)
    after = database.read(lambda db: replies.get(db, reply_id))
    assert after is not None and (after.prompt, after.text) == ([], "")
    assert (erasure.affected_adapters, erasure.runs) == (("a-echo",), (run_id,))


def test_a_name_in_somebody_else_s_words_becomes_someone_and_the_words_stay(
    database: Database, community: Community, home: Path
) -> None:
    name = "Änn-7731"

    def work(db: sqlite_utils.Database) -> str:
        members.ensure(db, ANN, name, "playground")
        return train(db, "a-named", [community.asks(db, BO, f"what does @{name} think? And @{name}a?")])

    run_id = database.write(work)
    (home / "runs" / run_id).mkdir(parents=True)
    erasure = erase(database)
    assert file_scrubbing.complete(database, home, erasure)
    asked = database.read(lambda db: conversations.chain(db, 1))[0]
    assert asked.content == f"what does @someone think? And @{name}a?"
    prompt = database.read(lambda db: replies.recent(db, 0, 1))[0].prompt
    assert prompt == [{"role": "user", "content": asked.content}]
    # The run's files name them too and go; what it learned from Bo's words stays.
    assert (erasure.runs, erasure.affected_adapters) == ((run_id,), ())
    assert not (home / "runs" / run_id).exists()


def test_a_later_run_that_compared_with_their_adapter_loses_its_files(
    database: Database, community: Community, story: dict[str, str], home: Path
) -> None:
    def work(db: sqlite_utils.Database) -> str:
        run_id = train(db, "a-later", [community.asks(db, BO, "of my own")], promote=False)
        evaluations.add(
            db, run_id=run_id, adapter_id="a-later", champion_id="a-tainted", metric="m", value=1.0, detail={}
        )
        return run_id

    run_id = database.write(work)
    (home / "runs" / run_id).mkdir(parents=True)
    (home / "runs" / run_id / "replies.jsonl").write_text(json.dumps({"champion": {"text": CANARY}}))
    erasure = erase(database)
    assert "a-later" not in erasure.affected_adapters
    assert file_scrubbing.complete(database, home, erasure)
    assert files_with(home, CANARY) == []


def test_what_a_moderator_wrote_of_others_goes_with_the_moderator(
    database: Database, story: dict[str, str]
) -> None:
    database.write(lambda db: blocks.block(db, guild_id=5, user_id=BO, actor=str(ANN), reason=CANARY))
    erase(database)
    (block,) = database.read(lambda db: blocks.listing(db, 5))
    assert (block.user_id, block.reason) == (BO, "")


def test_what_an_ended_run_still_wrote_is_swept_away(
    database: Database, home: Path, story: dict[str, str]
) -> None:
    erasure = erase(database)
    assert file_scrubbing.complete(database, home, erasure)
    for folder in (f"runs/{story['run']}", "adapters/a-tainted"):
        (home / folder).mkdir(parents=True)
        (home / folder / "late.json").write_text(CANARY)
    assert file_scrubbing.complete_pending(database, home) == 0
    assert files_with(home, CANARY) == []
    assert (home / "adapters" / "a-clean").exists()


def test_who_erases_while_a_backup_is_made_is_not_in_it(
    database: Database, home: Path, story: dict[str, str]
) -> None:
    """The copy is taken, then Ann erases, then the copy appears under its name."""
    copied = home / "backups" / "monday"
    backup.backup(database, copied)
    copied.rename(copied.with_name("monday.partial"))
    assert file_scrubbing.complete(database, home, erase(database))
    assert files_with(home, CANARY), "a copy in the making is left to whoever makes it"
    copied.with_name("monday.partial").rename(copied)
    backup._erase_latecomers(database, copied)
    assert files_with(home, CANARY) == []
    assert backup.verify(copied)


@pytest.fixture
def used(database: Database, community: Community, home: Path) -> str:
    """A finished run with Bo's message in its files."""

    def work(db: sqlite_utils.Database) -> str:
        return train(db, "a1", [community.asks(db, BO, f"my number is {CANARY}")])

    run_id = database.write(work)
    folder = home / "runs" / run_id
    (folder / "checkpoint").mkdir(parents=True)
    for name in ("snapshot.jsonl", "replies.jsonl", "report.html", "scores.json", "checkpoint/rows.json"):
        (folder / name).write_text(CANARY)
    (folder / "card.json").write_text("{}")
    return run_id


def test_a_deleted_message_also_leaves_the_files_of_the_runs_that_used_it(
    database: Database, home: Path, used: str
) -> None:
    assert file_scrubbing.complete_pending(database, home) == 0
    assert (home / "runs" / used / "snapshot.jsonl").exists()

    database.write(lambda db: conversations.delete_message(db, 1_000))
    file_scrubbing.complete_pending(database, home)
    database.checkpoint_truncate()
    assert files_with(home, CANARY) == []
    assert (home / "runs" / used / "card.json").exists()
    assert not database.read(lambda db: runs.expect(db, used)).repeatable
    assert champion(database) == "a1", "a deleted message is left out of the next run, and ends nobody"


def test_a_deleted_message_leaves_the_write_ahead_log_as_soon_as_no_reader_needs_it(
    database: Database, home: Path, used: str
) -> None:
    log = database.path.with_name(database.path.name + "-wal")
    reading, done = threading.Event(), threading.Event()

    def read_on(db: sqlite_utils.Database) -> None:
        sql.value(db, "SELECT count(*) FROM messages")
        reading.set()
        done.wait(60)

    reader = threading.Thread(target=lambda: database.read(read_on))
    reader.start()
    assert reading.wait(30)
    database.write(lambda db: conversations.delete_message(db, 1_000))
    assert CANARY.encode() in log.read_bytes()
    cutting: list[bool] = []
    cutter = threading.Thread(target=lambda: cutting.append(file_scrubbing.cut_log(database)))
    cutter.start()
    written = 0
    while cutter.is_alive():
        database.write(lambda db: key_values.put(db, "beside", "x"))
        written += 1
        time.sleep(0.01)
    assert cutting == [False] and written > 2, "the writer waited for the reader"
    done.set()
    reader.join()
    file_scrubbing.complete_pending(database, home)
    assert CANARY.encode() not in log.read_bytes() + database.path.read_bytes()
    size = log.stat().st_size
    assert file_scrubbing.cut_log(database) and log.stat().st_size == size, "nothing to cut: it stays"


@pytest.mark.parametrize(("state", "outcome"), [("finished", "votes"), ("queued", None)])
def test_a_message_deleted_while_its_run_waits_leaves_the_runs_files_at_once(
    database: Database, home: Path, used: str, state: str, outcome: str | None
) -> None:
    """A vote and a canary last for days, and a run that goes on from its checkpoint may wait for its turn."""
    database.write(
        lambda db: sql.change(
            db, "UPDATE runs SET state = ?, outcome = ? WHERE id = ?", (state, outcome, used)
        )
    )
    database.write(lambda db: conversations.delete_message(db, 1_000))
    file_scrubbing.complete_pending(database, home)
    database.checkpoint_truncate()
    assert files_with(home, CANARY) == []


def test_a_message_deleted_while_its_run_is_on_leaves_the_files_once_it_is_over(
    database: Database, home: Path, used: str
) -> None:
    database.write(lambda db: sql.change(db, "UPDATE runs SET state = 'running' WHERE id = ?", (used,)))
    database.write(lambda db: conversations.delete_message(db, 1_000))
    file_scrubbing.complete_pending(database, home)
    assert (home / "runs" / used / "replies.jsonl").exists()
    database.write(lambda db: runs.finish(db, used, outcome="refused", message="It lost."))
    file_scrubbing.complete_pending(database, home)
    assert not (home / "runs" / used / "replies.jsonl").exists()


def test_a_mark_that_a_clock_left_in_the_future_hides_no_deletion(
    database: Database, home: Path, used: str
) -> None:
    ahead = clock.now_ms() + clock.DAY_MS
    database.write(lambda db: key_values.put(db, file_scrubbing._DELETIONS_SEEN, str(ahead)))
    database.write(lambda db: conversations.delete_message(db, 1_000))
    file_scrubbing.complete_pending(database, home)
    assert not (home / "runs" / used / "replies.jsonl").exists()


def test_a_deleted_message_leaves_the_pairs_that_people_vote_on(
    database: Database, story: dict[str, str]
) -> None:
    asked = database.read(lambda db: replies.get(db, story["anns"]))
    assert asked is not None
    discord_id = database.read(
        lambda db: sql.value(db, "SELECT discord_id FROM messages WHERE id = ?", (asked.prompt_message_id,))
    )
    database.write(lambda db: conversations.delete_message(db, discord_id))
    duel = database.read(lambda db: duels.get(db, "d"))
    assert duel is not None and (duel.prompt, duel.first_text) == ([], "") and duel.closed_ms


def test_the_champion_switches_at_once_to_the_newest_clean_one_and_one_retrain_is_queued(
    database: Database, story: dict[str, str]
) -> None:
    assert champion(database) == "a-tainted"
    erasure = erase(database)
    assert champion(database) == "a-clean"
    assert (erasure.affected_adapters, erasure.deposed) == (("a-tainted",), ("a-tainted",))
    last = database.read(lambda db: adapters.promotions(db, SCOPE, BASE))[-1]
    assert (last.kind, last.adapter_id, last.previous_id) == ("erase", "a-clean", "a-tainted")
    run = database.read(lambda db: runs.active(db, SCOPE))
    assert run is not None and (run.trigger, erasure.retrains) == ("erasure", (run.id,))
    with pytest.raises(AdapterNotPromotableError):
        database.write(
            lambda db: adapters.promote(
                db,
                scope=SCOPE,
                base_hash=BASE,
                adapter_id="a-tainted",
                actor="op",
                reason="but it was better",
            )
        )


def test_with_no_clean_adapter_the_base_model_answers(database: Database, community: Community) -> None:
    database.write(lambda db: train(db, "a1", [community.asks(db, ANN, "hello")]))
    erase(database)
    assert champion(database) is None


def test_who_only_rated_is_untrained_as_well(database: Database, community: Community) -> None:
    def work(db: sqlite_utils.Database) -> None:
        reply_id = community.asks(db, BO, "hello")
        thumb(db, reply_id, ANN)
        train(db, "a1", [reply_id])

    database.write(work)
    assert erase(database).affected_adapters == ("a1",)


def test_a_rating_given_after_the_run_taints_nothing(database: Database, community: Community) -> None:
    def work(db: sqlite_utils.Database) -> None:
        reply_id = community.asks(db, BO, "hello")
        train(db, "a1", [reply_id])
        sql.change(db, "UPDATE runs SET finished_ms = finished_ms - 1000")
        thumb(db, reply_id, ANN)

    database.write(work)
    erasure = erase(database)
    assert (erasure.affected_adapters, erasure.retrains) == ((), ())
    assert champion(database) == "a1"


def test_others_keep_their_words_and_ratings(database: Database, story: dict[str, str]) -> None:
    erase(database)
    reply = database.read(lambda db: replies.get(db, story["bos"]))
    assert reply is not None and reply.prompt == [{"role": "user", "content": "what Bo asked"}]
    assert [
        rating.user_id for rating in database.read(lambda db: ratings.list_for_reply(db, story["bos"]))
    ] == [BO]
    eligible = database.read(lambda db: eligibility.eligible_rows(db, SCOPE, permission_reference=""))
    assert [row.reply_id for row in eligible.rows] == [story["bos"]]


def test_touched_runs_keep_their_figures_but_can_not_be_repeated(
    database: Database, story: dict[str, str]
) -> None:
    assert story["run"] in erase(database).runs
    run = database.read(lambda db: runs.expect(db, story["run"]))
    assert not run.repeatable
    assert run.metrics.as_json() == {"loss": 1.5, "deep": [{"n": 3}]}


@pytest.mark.parametrize("who", [ANN, BO])
def test_a_run_that_is_on_is_cancelled_and_its_adapter_comes_out_tainted(
    database: Database, community: Community, who: int
) -> None:
    def work(db: sqlite_utils.Database) -> str:
        reply_id = community.asks(db, ANN, "hello")
        thumb(db, reply_id, BO)
        run = runs.enqueue(db, scope=SCOPE, trigger="manual", requested_by="op")
        runs.lease_next(db, "trainer", 60_000)
        return run.id

    run_id = database.write(work)
    erasure = erase(database, who)
    assert run_id in erasure.runs and len(erasure.retrains) == 1
    assert not database.write(lambda db: runs.heartbeat(db, run_id, "trainer"))
    with pytest.raises(RunNotActiveError):
        database.write(lambda db: runs.record_snapshot(db, run_id, snapshot_hash="h", rows=[]))
    late = database.write(
        lambda db: adapters.insert_candidate(
            db, adapter_id="late", scope=SCOPE, base_hash=BASE, path="adapters/late", run_id=run_id
        )
    )
    assert late.state == "tainted"


def test_every_run_that_is_on_is_cancelled_where_the_member_wrote_and_no_other(
    database: Database, community: Community
) -> None:
    def work(db: sqlite_utils.Database) -> list[runs.Run]:
        community.asks(db, ANN, "hello")
        elsewhere = community.asks(db, ANN, "hello there")
        sql.change(db, "UPDATE replies SET scope = 'guild:8' WHERE id = ?", (elsewhere,))
        for scope in (SCOPE, "guild:8", "guild:9"):
            runs.enqueue(db, scope=scope, trigger="manual", requested_by="op")
            runs.lease_next(db, "trainer", 60_000, at_once=3)
        on = runs.list_running(db)
        rows = [runs.RunRow(elsewhere, "train", "liked", 1.0)]
        runs.record_snapshot(db, on[1].id, snapshot_hash="h", rows=rows)
        return on

    here, there, other = database.write(work)
    found = erase(database)
    assert {here.id, there.id} <= set(found.runs) and len(found.retrains) == 2
    assert [run.id for run in database.read(runs.list_running)] == [other.id]


def test_who_opts_out_begins_every_run_anew_that_trains_on_their_words(
    database: Database, community: Community
) -> None:
    def work(db: sqlite_utils.Database) -> list[str]:
        written = [community.asks(db, ANN, "hello"), community.asks(db, ANN, "hello there")]
        for scope, reply_id in zip((SCOPE, "guild:8"), written, strict=True):
            runs.enqueue(db, scope=scope, trigger="manual", requested_by="op")
            run = runs.lease_next(db, "trainer", 60_000, at_once=2)
            assert run is not None
            rows = [runs.RunRow(reply_id, "train", "liked", 1.0)]
            runs.record_snapshot(db, run.id, snapshot_hash="h", rows=rows)
            runs.heartbeat(db, run.id, "trainer", "train")
        consent.decide(db, ANN, "out", "op", permission_reference="")
        return [row["scope"] for row in sql.many(db, "SELECT scope FROM runs WHERE state = 'queued'")]

    assert sorted(database.write(work)) == [SCOPE, "guild:8"]
    assert database.read(runs.list_running) == []


def test_two_erasures_share_one_retrain(database: Database, community: Community) -> None:
    database.write(
        lambda db: train(
            db, "a1", [community.asks(db, ANN, "hello"), community.asks(db, BO, "something else")]
        )
    )
    first, second = erase(database, ANN), erase(database, BO)
    assert first.retrains and second.retrains in ((), first.retrains)
    waiting = database.read(lambda db: sql.many(db, "SELECT id FROM runs WHERE state = 'queued'"))
    assert len(waiting) == 1


def test_erasing_twice_or_somebody_unknown_does_no_harm(database: Database, story: dict[str, str]) -> None:
    erase(database)
    again, stranger = erase(database), erase(database, 999)
    assert again.affected_adapters == stranger.affected_adapters == ()
    assert champion(database) == "a-clean"


def test_an_erasure_whose_process_died_is_completed_at_the_next_start(
    database: Database, home: Path, story: dict[str, str]
) -> None:
    erase(database)
    database.close()
    with Database.open(home / "strop.db") as reopened:
        assert file_scrubbing.complete_pending(reopened, home) == 1
        assert file_scrubbing.complete_pending(reopened, home) == 0
    assert files_with(home, CANARY) == []


def test_an_erasure_while_somebody_still_reads_stays_pending(
    database: Database, home: Path, story: dict[str, str]
) -> None:
    erasure = erase(database)

    def meanwhile(db: sqlite_utils.Database) -> bool:
        sql.value(db, "SELECT count(*) FROM messages")
        done: list[bool] = []
        thread = threading.Thread(
            target=lambda: done.append(file_scrubbing.complete(database, home, erasure))
        )
        thread.start()
        thread.join()
        return done[0]

    database.write(lambda db: sql.value(db, "PRAGMA busy_timeout=50"))
    assert not database.read(meanwhile)
    assert file_scrubbing.complete_pending(database, home) == 1


def test_an_export_holds_everything_of_the_member_and_nothing_private_of_others(
    database: Database, story: dict[str, str]
) -> None:
    exported = database.read(lambda db: erasure.export_member(db, ANN))
    text = json.dumps(exported)
    assert f"I live at {CANARY}" in text
    assert f"Ann {CANARY}" in text
    assert len(exported["ratings"]) == 2
    assert len(exported["blind_votes"]) == 1
    assert {row["run_id"] for row in exported["trained_in"]} >= {story["run"]}
    assert "what Bo asked" not in text


def test_an_export_after_an_erasure_holds_no_words(database: Database, story: dict[str, str]) -> None:
    erase(database)
    text = json.dumps(database.read(lambda db: erasure.export_member(db, ANN)))
    assert CANARY not in text
    assert "erasures" in text


def test_a_backup_made_while_running_restores_whole(
    database: Database, home: Path, story: dict[str, str], tmp_path: Path
) -> None:
    made = backup.backup(database, tmp_path / "monday")
    assert made.files == 3 and made.size_bytes > 10_000
    restored = restore.restore(tmp_path / "monday", tmp_path / "new-home")
    assert (restored.replaced, restored.erased) == (None, ())
    assert (tmp_path / "new-home" / "adapters" / "a-clean" / "data.json").read_text() == "clean"
    with Database.open(restored.database) as again:
        assert champion(again) == "a-tainted"
        assert not again.read(lambda db: runs.expect(db, story["run"])).repeatable


def test_who_erased_after_the_backup_stays_erased_after_the_restore(
    database: Database, home: Path, story: dict[str, str], tmp_path: Path
) -> None:
    backup.backup(database, tmp_path / "monday")
    file_scrubbing.complete(database, home, erase(database))
    database.close()
    restored = restore.restore(tmp_path / "monday", home)
    assert restored.erased == (ANN,)
    assert restored.replaced is not None and (restored.replaced / "strop.db").exists()
    assert files_with(home, CANARY) == []
    with Database.open(restored.database) as again:
        assert champion(again) == "a-clean"
        message = again.read(lambda db: conversations.chain(db, 1))
        assert message[0].content == "what Bo asked"


def test_who_erased_stays_erased_even_if_the_database_was_lost(
    database: Database, home: Path, story: dict[str, str], tmp_path: Path
) -> None:
    backup.backup(database, tmp_path / "monday")
    file_scrubbing.complete(database, home, erase(database))
    database.close()
    (home / "strop.db").write_bytes(b"not a database any more" * 100)
    restored = restore.restore(tmp_path / "monday", home)
    assert restored.erased == (ANN,)
    assert files_with(home, CANARY) == []


def test_who_opted_out_and_what_was_deleted_after_the_backup_stay_so_after_the_restore(
    database: Database, community: Community, home: Path, tmp_path: Path
) -> None:
    def before(db: sqlite_utils.Database) -> None:
        community.asks(db, BO, f"my number is {CANARY}")
        members.set_consent(db, BO, "in", str(BO))

    database.write(before)
    backup.backup(database, tmp_path / "monday")
    for user_id in (BO, 77):
        database.write(lambda db, user_id=user_id: members.set_consent(db, user_id, "out", "x"))  # type: ignore[misc]
    database.write(lambda db: conversations.delete_message(db, 1_000))
    database.close()
    restored = restore.restore(tmp_path / "monday", home)
    with Database.open(restored.database) as again:
        told = again.read(lambda db: [members.get(db, each) for each in (BO, 77)])
        assert [member.consent for member in told if member] == ["out", "out"]
        assert again.read(lambda db: conversations.chain(db, 1))[0].content == ""
        assert again.read(lambda db: replies.recent(db, 0, 1))[0].prompt == []


def test_words_that_were_taken_out_of_a_message_after_the_backup_stay_out_after_the_restore(
    database: Database, community: Community, home: Path, tmp_path: Path
) -> None:
    database.write(lambda db: community.asks(db, BO, f"my number is {CANARY}"))
    backup.backup(database, tmp_path / "monday")
    database.write(lambda db: conversations.edit_message(db, 1_000, "never mind"))
    database.close()
    restored = restore.restore(tmp_path / "monday", home)
    with Database.open(restored.database) as again:
        assert again.read(lambda db: conversations.chain(db, 1))[0].content == "never mind"


def test_a_damaged_backup_is_removed_by_an_erasure_because_it_can_not_be_cleaned(
    database: Database, home: Path, story: dict[str, str]
) -> None:
    backup.backup(database, home / "backups" / "monday")
    (home / "backups" / "monday" / "strop.db").write_bytes(CANARY.encode() * 1_000)
    assert file_scrubbing.complete(database, home, erase(database))
    assert not (home / "backups" / "monday").exists()
    assert files_with(home, CANARY) == []


def test_a_restore_while_strop_runs_is_refused(database: Database, home: Path, tmp_path: Path) -> None:
    backup.backup(database, tmp_path / "monday")
    with pytest.raises(BackupError, match="in use: stop Strop first"):
        restore.restore(tmp_path / "monday", home)
    database.write(lambda db: None)


@pytest.mark.parametrize("damage", ["change", "remove", "manifest"])
def test_a_damaged_backup_is_refused_and_the_home_left_alone(
    database: Database, home: Path, story: dict[str, str], tmp_path: Path, damage: str
) -> None:
    backup.backup(database, tmp_path / "monday")
    victim = tmp_path / "monday" / ("manifest.json" if damage == "manifest" else "adapters/a-clean/data.json")
    victim.unlink() if damage == "remove" else victim.write_text("other")
    database.close()
    before = (home / "strop.db").read_bytes()
    with pytest.raises(BackupError, match=r"missing|damaged"):
        restore.restore(tmp_path / "monday", home)
    assert (home / "strop.db").read_bytes() == before


def test_a_backup_never_overwrites_another(database: Database, tmp_path: Path) -> None:
    backup.backup(database, tmp_path / "monday")
    with pytest.raises(BackupError, match="exists already"):
        backup.backup(database, tmp_path / "monday")
