"""An import in the database: provenance, ratings, nothing doubled, and taken back whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from storage.admin import blocks, settings
from storage.admin.settings import Place
from storage.chat import channels, conversations, members, replies
from storage.config import Config
from storage.db import sql
from storage.db.database import Connection, Database
from storage.errors import ImportFileError
from storage.feedback import ratings
from storage.imports import imports
from storage.imports.examples import Author, Channel, Example, Turn
from storage.learning import adapters, eligibility, runs

SCOPE = "guild:100000000000000001"
MIA, TOM = Author(5, "mia"), Author(6, "tom")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database.open(tmp_path / "strop.db")
    yield opened
    opened.close()


def example(number: int = 1, **more: object) -> Example:
    prompt = (Turn("user", f"What about number {number}?"),)
    return Example(prompt, Turn("assistant", f"Number {number} is fine."), f"line {number}", **more)  # type: ignore[arg-type]


def bring_in(database: Database, *found: Example, sha: str = "a" * 64, reference: str = "") -> imports.Import:
    def work(db: object) -> imports.Import:
        begun = imports.begin(
            db,  # type: ignore[arg-type]
            name="chats.jsonl",
            sha256=sha,
            format_name="messages",
            rights="ours",
            licence="",
            scope=SCOPE,
            actor="test",
        )
        imports.store(db, begun, found, permission_reference=reference)  # type: ignore[arg-type]
        return imports.finish(db, begun.id, {"empty": 2})  # type: ignore[arg-type]

    return database.write(work)


def eligible(database: Database, reference: str = "") -> eligibility.Eligibility:
    return database.read(lambda db: eligibility.eligible_rows(db, SCOPE, permission_reference=reference))


def test_imported_answers_train_with_likes_dislikes_and_better_answers(database: Database) -> None:
    done = bring_in(
        database, example(1), example(2, liked=3), example(3, disliked=1), example(4, better="Number four!")
    )
    assert (done.stored, done.known, done.state, done.left_out) == (4, 0, "done", {"empty": 2})
    found = eligible(database)
    assert found.excluded == {}
    ratings = {
        row.text[7]: sorted((rating.kind, rating.value, rating.text) for rating in row.ratings)
        for row in found.rows
    }
    assert ratings["1"] == [("thumb", 1, None)]
    assert ratings["2"] == [("thumb", 1, None)] * 3
    assert ratings["3"] == [("thumb", -1, None)]
    assert ratings["4"] == [("correction", 1, "Number four!")]
    assert not any(row.by_asker_only for row in found.rows)


def test_the_same_file_and_the_same_examples_are_never_there_twice(database: Database) -> None:
    bring_in(database, example(1))
    with pytest.raises(ImportFileError, match="already"):
        bring_in(database, example(1))
    second = bring_in(database, example(1), example(2), sha="b" * 64)
    assert (second.stored, second.known) == (1, 1)


def test_an_interrupted_import_goes_on_as_the_same_one(database: Database) -> None:
    values = {"name": "x", "sha256": "c" * 64, "format_name": "messages", "rights": "ours", "licence": ""}
    first = database.write(lambda db: imports.begin(db, **values, scope=SCOPE, actor="test"))
    database.write(lambda db: imports.store(db, first, [example(1)], permission_reference=""))
    again = database.write(lambda db: imports.begin(db, **values, scope=SCOPE, actor="test"))
    assert again.id == first.id
    stored = database.write(
        lambda db: imports.store(db, again, [example(1), example(2)], permission_reference="")
    )
    assert (stored, eligible(database).excluded) == (1, {"unfinished_import": 2}), "nothing half done trains"
    done = database.write(lambda db: imports.finish(db, first.id, {}))
    assert (done.stored, done.known) == (2, 0)
    assert len(eligible(database).rows) == 2


def test_while_an_import_is_unfinished_no_other_file_is_begun(database: Database) -> None:
    values = {"format_name": "messages", "rights": "ours", "licence": "x", "scope": SCOPE, "actor": "test"}
    first = database.write(lambda db: imports.begin(db, name="one.jsonl", sha256="c" * 64, **values))
    database.write(lambda db: imports.store(db, first, [example(1)], permission_reference=""))
    with pytest.raises(
        ImportFileError, match=r"Import 1 \(one.jsonl\) is not finished: import that file again"
    ):
        bring_in(database, example(1), example(2))
    database.write(lambda db: imports.remove(db, first.id, "test"))
    assert bring_in(database, example(1), example(2)).stored == 2
    assert len(eligible(database).rows) == 2


def test_imported_ratings_start_no_run_by_themselves_and_hide_no_members_rating(database: Database) -> None:
    bring_in(database, *map(example, range(60)))
    assert database.read(lambda db: runs.new_ratings(db, SCOPE)) == 0
    assert database.read(lambda db: runs.new_ratings(db, SCOPE, with_set_aside=True)) == 60
    (first, *_) = eligible(database).rows
    thumb = {"reply_id": first.reply_id, "kind": "thumb", "means": "reaction", "value": 1}
    database.write(lambda db: ratings.rate(db, user_id=77, **thumb))
    bring_in(database, example(61), sha="b" * 64)
    assert database.read(lambda db: runs.new_ratings(db, SCOPE)) == 1


def test_discords_messages_train_only_with_the_permission_and_everybodys_consent(database: Database) -> None:
    asked = (Turn("user", "How do I store bread?", MIA),)
    bring_in(database, Example(asked, Turn("assistant", "In a bag.", TOM), "record 2"), reference="ticket 7")
    assert eligible(database).excluded == {"no_permission": 1}
    assert eligible(database, "ticket 7").excluded == {"no_consent": 1}
    database.write(lambda db: members.set_consent(db, MIA.user_id, "in", "test"))
    assert eligible(database, "ticket 7").excluded == {"no_consent": 1}, "Tom wrote the answer"
    database.write(lambda db: members.set_consent(db, TOM.user_id, "in", "test"))
    (row,) = eligible(database, "ticket 7").rows
    assert row.text == "In a bag."


def test_imported_rows_are_those_that_a_live_conversation_leaves(database: Database) -> None:
    turns = (
        Turn("system", "Be kind."),
        Turn("user", "How do I store bread?", MIA),
        Turn("assistant", "In a bag."),
        Turn("user", "And rolls?", MIA),
    )
    database.write(lambda db: members.ensure(db, MIA.user_id, MIA.name, "discord"))
    database.write(lambda db: blocks.block(db, guild_id=1, user_id=MIA.user_id, actor="test"))
    database.write(lambda db: members.set_consent(db, TOM.user_id, "in", "test"))
    where = Channel(1, 2, 3)
    better = Example(turns, Turn("assistant", "Alike.", TOM), "1", better="In paper.", channel=where)
    raters = ((TOM, -1), (MIA, 1))
    rated = Example(turns, Turn("assistant", "No."), "2", 0, 1, raters=raters, channel=where)
    for each in (better, rated):
        done = bring_in(database, each, sha=each.place, reference="ticket 7")
        stored = rows_of(database, f"import:{done.id}:")
        database.write(partial(live, example=each, asker_id=done.member_id))
        assert stored == rows_of(database, f"live:{each.place}")
        assert [len(rows) for rows in stored.values()] == [
            1,
            len(stored["messages"]),
            1,
            3 + (each is better),
            1,
        ]


def live(db: Connection, example: Example, asker_id: int) -> None:
    """Store an example through the functions that a live conversation takes."""
    opened = conversations.open_conversation(
        db,
        key=f"live:{example.place}",
        guild_id=1,
        channel_id=2,
        scope=SCOPE,
        source="discord",
        public=True,
        parent_channel_id=3,
    )
    said: list[int] = []
    add = partial(
        conversations.add_message,
        db,
        conversation_id=opened.id,
        discord_id=None,
        permission_reference="ticket 7",
    )
    for turn in example.prompt[1:]:
        parent = said[-1] if said else None
        author_id = MIA.user_id if turn.author else None
        said.append(add(parent_id=parent, author_id=author_id, role=turn.role, content=turn.content))
    context, asked = list(said), said[-1]
    if example.answer.author:
        words = example.answer.content
        context.append(add(parent_id=asked, author_id=TOM.user_id, role="user", content=words))
    replies.start(
        db,
        reply_id=f"live-{example.place}",
        prompt_message_id=asked,
        scope=SCOPE,
        adapter_id="import",
        base_hash="",
        prompt=[{"role": turn.role, "content": turn.content} for turn in example.prompt],
        seed=None,
        sampling={},
        asker_id=asker_id,
        context=context,
        permission_reference="ticket 7",
    )
    unknown: dict[str, Any] = dict.fromkeys(
        ("finish_reason", "prompt_tokens", "completion_tokens", "queue_ms", "first_token_ms", "duration_ms")
    )
    replies.finish(db, f"live-{example.place}", content=example.answer.content, status="complete", **unknown)
    rate = partial(
        ratings.rate,
        db,
        reply_id=f"live-{example.place}",
        means="page",
        permission_reference="ticket 7",
    )
    for author, value in example.raters:
        rate(user_id=author.user_id, kind="thumb", value=value)
    if example.better:
        rate(user_id=asker_id - 1, kind="correction", value=1, text=example.better)


def rows_of(database: Database, start: str) -> dict[str, list[str]]:
    """Return the rows of the conversation whose key begins so, by table, without their ids and times."""
    whose = "SELECT id FROM replies WHERE conversation_id = :id"
    tables = {
        "conversations": "id = :id",
        "messages": "conversation_id = :id",
        "replies": "conversation_id = :id",
        "reply_context": f"reply_id = ({whose})",
        "ratings": f"reply_id = ({whose})",
    }
    names = {"id", "key", "reply_id", "message_id", "prompt_message_id", "conversation_id", "parent_id"}

    def bare(row: sql.Row) -> str:
        return str({key: value for key, value in row.items() if key not in names and key[-3:] != "_ms"})

    def work(db: Connection) -> dict[str, list[str]]:
        found = sql.value(db, "SELECT id FROM conversations WHERE key LIKE ?", (f"{start}%",))
        return {
            table: sorted(map(bare, sql.many(db, f"SELECT * FROM {table} WHERE {which}", {"id": found})))
            for table, which in tables.items()
        }

    return database.read(work)


def test_the_channel_that_a_message_was_written_in_decides_whether_it_trains(database: Database) -> None:
    for author in (MIA, TOM):
        database.write(partial(opt_in, author=author))
    asked = (Turn("user", "How do I store bread?", MIA),)
    answer = Turn("assistant", "In a bag.", TOM)
    bring_in(database, Example(asked, answer, "record 2", channel=Channel(1, 22, 2)), reference="ticket 7")
    config = Config(home=Path("home"))
    assert len(eligible(database, "ticket 7").rows) == 1
    database.write(lambda db: settings.put(db, config, Place(1, 2), "training", False, "test"))
    assert eligible(database, "ticket 7").excluded == {"channel_opted_out": 1}, "of a thread its parent's"
    database.write(lambda db: settings.reset(db, Place(1, 2), "test"))
    database.write(lambda db: channels.note(db, 22, guild_id=1, public=False))
    assert eligible(database, "ticket 7").excluded == {"not_public": 1}
    database.write(lambda db: channels.note(db, 22, guild_id=1, public=True))
    assert len(eligible(database, "ticket 7").rows) == 1
    assert database.write(lambda db: conversations.delete_channel(db, 22)) == 3
    assert eligible(database, "ticket 7").rows == []
    assert not database.read(lambda db: sql.many(db, "SELECT 1 FROM messages WHERE content <> ''"))


def test_a_message_that_is_deleted_on_discord_takes_its_imported_copies_with_it(database: Database) -> None:
    for author in (MIA, TOM):
        database.write(partial(opt_in, author=author))
    asked, answer = Turn("user", "How do I store bread?", MIA, 10), Turn("assistant", "In a bag.", TOM, 11)
    again = Turn("user", "And rolls?", MIA, 12)
    bring_in(
        database,
        Example((asked,), answer, "1"),
        Example((asked, answer, again), Turn("assistant", "Alike.", TOM, 13), "2"),
        reference="ticket 7",
    )
    assert len(eligible(database, "ticket 7").rows) == 2
    assert database.write(lambda db: conversations.delete_message(db, 13))
    (left,) = eligible(database, "ticket 7").rows
    assert left.text == "In a bag."
    assert database.write(lambda db: conversations.delete_message(db, 10))
    assert eligible(database, "ticket 7").rows == []
    said = database.read(lambda db: sql.many(db, "SELECT DISTINCT content FROM messages ORDER BY 1"))
    assert [row["content"] for row in said] == ["", "And rolls?", "In a bag."]
    assert not database.write(lambda db: conversations.delete_message(db, 10)), "it is gone already"


def opt_in(db: Connection, author: Author) -> None:
    members.ensure(db, author.user_id, author.name, "discord")
    members.set_consent(db, author.user_id, "in", "test")


def test_an_import_is_taken_back_with_what_learned_from_it_and_may_come_again(database: Database) -> None:
    done = bring_in(database, example(1), example(2, liked=1))
    reply_ids = [row.reply_id for row in eligible(database).rows]

    def trained(db: object) -> None:
        run = runs.enqueue(db, scope=SCOPE, trigger="manual", requested_by="test")  # type: ignore[arg-type]
        values = {
            "run_id": run.id,
            "reply_id": reply_ids[0],
            "split": "train",
            "label": "like",
            "weight": 1.0,
        }
        sql.insert(db, "run_rows", values)  # type: ignore[arg-type]
        where = {"scope": SCOPE, "base_hash": "b", "run_id": run.id}
        adapters.insert_candidate(db, adapter_id="a1", path="adapters/a1", **where)  # type: ignore[arg-type]

    database.write(trained)
    erased = database.write(lambda db: imports.remove(db, done.id, "test"))
    assert erased.affected_adapters == ("a1",)
    assert eligible(database).rows == []
    left = database.read(lambda db: json.dumps(sql.many(db, "SELECT content FROM messages")))
    assert "number" not in left.casefold()
    assert database.read(imports.listing)[0].state == "removed"
    assert bring_in(database, example(1)).stored == 1
