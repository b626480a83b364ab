"""An import in the database: provenance, ratings, nothing doubled, and taken back whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.chat import members
from storage.db import sql
from storage.db.database import Database
from storage.errors import ImportFileError
from storage.imports import imports
from storage.imports.examples import Author, Example, Turn
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
