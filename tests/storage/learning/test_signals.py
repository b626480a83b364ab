import pytest
import sqlite_utils

from storage.admin import blocks
from storage.chat import conversations, members, reply_versions
from storage.db import clock, sql
from storage.db.database import Database
from storage.learning import runs
from storage.learning.runs import RunRow
from storage.learning.signals import of_replies
from storage.learning.signals.of_replies import Signals
from storage.privacy import erasure
from tests.storage import many_rows
from tests.storage.conftest import SCOPE, Community, thumb

MINUTE_MS = 60 * clock.SECOND_MS
PERMISSION = "DISCORD-2026-17"


def later(db: sqlite_utils.Database, minutes: int = 60) -> None:
    """Let everything so far have happened so long ago; the split of tests' conversations is any."""
    for table in ("messages", "replies", "audit"):
        sql.change(db, f"UPDATE {table} SET created_ms = created_ms - ?", (minutes * MINUTE_MS,))


def unrated(database: Database, permission: str = PERMISSION) -> dict[str, Signals]:
    def work(db: sqlite_utils.Database) -> list[Signals]:
        found = of_replies.of_unrated(db, SCOPE, permission_reference=permission)
        # Of those that aren't trained on nothing is returned; here all are asked for.
        ids = [row["id"] for row in sql.many(db, "SELECT id FROM replies")]
        every = of_replies.of_replies(db, ids, permission_reference=permission)
        trained = {
            row["id"]
            for row in sql.many(
                db,
                """SELECT replies.id FROM replies JOIN conversations ON conversations.id = conversation_id
                   WHERE split = 'train' AND replies.id NOT IN (SELECT reply_id FROM ratings)""",
            )
        }
        assert found == [one for one in every if one.reply_id in trained]
        return every

    return {one.reply_id: one for one in database.read(work)}


def test_what_the_asker_did_within_the_time_is_read(database: Database) -> None:
    community = Community()

    def work(db: sqlite_utils.Database) -> dict[str, str]:
        thanked = community.asks(db, 1, "Where is the key?")
        community.follows_up(db, 2, thanked, "Somebody else's word")
        community.follows_up(db, 1, thanked, "Vielen Dank!")
        left = community.asks(db, 1, "And the door?")
        first = community.asks(db, 1, "Tell me a joke.")
        asked = sql.value(db, "SELECT prompt_message_id FROM replies WHERE id = ?", (first,))
        second = community.answers(db, asked, "Tell me a joke.", answer="Another one.")
        reply_versions.add(db, second, beside=first)
        reply_versions.show(db, second)
        later(db)
        community.follows_up(db, 1, left, "An hour later")
        community.asks(db, 1, "Nobody knows yet whether I go on.")
        return {"thanked": thanked, "left": left, "first": first, "second": second}

    ids = database.write(work)
    found = unrated(database, "")
    acts = {
        name: (one.another_version, one.kept, one.went_on, one.next_words)
        for name, one in ((name, found[reply_id]) for name, reply_id in ids.items())
    }
    assert acts == {
        "thanked": (False, False, True, "Vielen Dank!"),
        "left": (False, False, False, ""),
        "first": (True, False, False, ""),
        "second": (False, True, False, ""),
    }
    assert found[ids["first"]].question == "Tell me a joke."
    assert "Nobody knows yet whether I go on." not in {one.question for one in found.values()}


def test_a_rated_reply_is_not_among_the_unrated(database: Database) -> None:
    community = Community()

    def work(db: sqlite_utils.Database) -> None:
        for number in range(8):
            thumb(db, community.asks(db, 1, f"Question {number}"), 1)
        later(db)

    database.write(work)
    assert database.read(lambda db: of_replies.of_unrated(db, SCOPE, permission_reference="")) == []
    assert len(unrated(database, "")) == 8


def on_discord(database: Database) -> str:
    """Member 1 asks, opted in, and goes on."""
    community = Community(source="discord")

    def work(db: sqlite_utils.Database) -> str:
        members.ensure(db, 1, "Ann", "discord")
        members.set_consent(db, 1, "in", "1")
        later(db)
        reply_id = community.asks(db, 1, "hello")
        community.follows_up(db, 1, reply_id, "Thank you")
        later(db)
        return reply_id

    return database.write(work)


def test_signals_need_permission_and_consent_as_ratings_do(database: Database) -> None:
    reply_id = on_discord(database)
    assert unrated(database)[reply_id].next_words == "Thank you"
    assert unrated(database, "") == {}
    database.write(lambda db: members.set_consent(db, 1, "unset", "1"))
    assert unrated(database) == {}


def test_an_opted_out_members_signals_never_appear(database: Database) -> None:
    reply_id = on_discord(database)
    database.write(lambda db: members.set_consent(db, 1, "out", "1"))
    assert unrated(database) == {}
    # Nor do those that were given while opted out, after another yes.
    community = Community(source="discord", ids=iter(range(5_000, 6_000)))

    def work(db: sqlite_utils.Database) -> str:
        asked = community.asks(db, 1, "asked while opted out")
        members.set_consent(db, 1, "in", "1")
        later(db)
        return asked

    assert database.write(work) not in unrated(database)
    assert reply_id in unrated(database)


def test_one_members_reactions_do_not_speak_for_all(database: Database) -> None:
    community = Community()

    def work(db: sqlite_utils.Database) -> None:
        for number in range(8):
            community.asks(db, 1, f"Question {number} about {'tea' * number}")
        later(db)

    database.write(work)

    def of_one(most: int) -> list[Signals]:
        return database.read(
            lambda db: of_replies.of_unrated(db, SCOPE, permission_reference="", most_of_one=most)
        )

    assert len(of_one(8)) > 2
    assert of_one(2) == sorted(of_one(8), key=lambda one: one.reply_id)[-2:]


def test_an_erasure_finds_the_runs_that_an_unrated_reply_taught(database: Database) -> None:
    reply_id = on_discord(database)

    def work(db: sqlite_utils.Database) -> None:
        runs.enqueue(db, scope=SCOPE, trigger="manual", requested_by="1")
        run = runs.lease_next(db, "here", 60_000)
        assert run is not None
        rows = [RunRow(reply_id, "train", "signals", 0.3)]
        runs.record_snapshot(db, run.id, snapshot_hash="hash", rows=rows)
        assert erasure.list_runs_of_member(db, 1) == [run.id]
        assert erasure.erase_member(db, 1, "1").runs == (run.id,)
        assert not runs.expect(db, run.id).repeatable

    database.write(work)


def test_who_decides_about_training_in_between_leaves_no_signals(database: Database) -> None:
    community = Community()

    def work(db: sqlite_utils.Database) -> None:
        community.asks(db, 1, "hello")
        members.set_consent(db, 1, "out", "1")
        members.set_consent(db, 1, "in", "1")
        later(db)

    database.write(work)
    assert unrated(database, "") == {}


@pytest.mark.parametrize("fate", ["deleted", "closed", "erased", "blocked", "unfinished"])
def test_where_the_next_message_may_not_train_nothing_is_known(database: Database, fate: str) -> None:
    reply_id = on_discord(database)
    following = "SELECT max(id) FROM messages WHERE author_id = 1"

    def work(db: sqlite_utils.Database) -> None:
        if fate == "deleted":
            discord_id = sql.value(db, f"SELECT discord_id FROM messages WHERE id = ({following})")
            conversations.delete_message(db, discord_id)
        elif fate == "closed":
            sql.change(db, f"UPDATE messages SET public = 0 WHERE id = ({following})")
        elif fate == "erased":
            erasure.erase_member(db, 1, "1")
        elif fate == "blocked":
            blocks.block(db, guild_id=0, user_id=1, actor="0")
        else:
            sql.change(db, "UPDATE replies SET created_ms = ?", (clock.now_ms() - MINUTE_MS,))

    assert reply_id in unrated(database)
    database.write(work)
    assert reply_id not in unrated(database)


@pytest.mark.parametrize("rated", [False, True])
def test_reading_signals_takes_no_longer_the_more_else_is_stored(
    database: Database, monkeypatch: pytest.MonkeyPatch, rated: bool
) -> None:
    community = Community()

    def read(db: sqlite_utils.Database, ids: list[str]) -> None:
        of_replies.of_unrated(db, SCOPE, permission_reference="")
        of_replies.of_replies(db, ids, permission_reference="")

    def work(db: sqlite_utils.Database) -> None:
        for number in range(20):
            community.follows_up(db, 1, community.asks(db, 1, f"Question {number}"), "Thank you")
        later(db)
        ids = [row["id"] for row in sql.many(db, "SELECT id FROM replies")]
        for reply_id in ids if rated else ():
            thumb(db, reply_id, 1)
        before = many_rows.steps(db, lambda: read(db, ids))
        many_rows.fill(db)
        if rated:
            sql.change(db, _RATE_THE_OTHERS)
        assert many_rows.steps(db, lambda: read(db, ids)) < 1.2 * before

    monkeypatch.setattr(of_replies, "NEWEST", 10)
    monkeypatch.setattr(of_replies, "LOOKED_AT", 5)
    database.write(work)


_RATE_THE_OTHERS = """
INSERT INTO ratings (reply_id, user_id, scope, kind, means, value, source, consent, created_ms, updated_ms)
SELECT id, 1, scope, 'thumb', 'button', 1, 'playground', 'unset', 1, 1 FROM replies
WHERE NOT EXISTS (SELECT 1 FROM ratings WHERE ratings.reply_id = replies.id)"""
