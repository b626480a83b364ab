"""One reader for all that reads prompts, and Discord's rule for those that members wrote."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storage.admin import settings
from storage.admin.settings import Place
from storage.chat import channels, conversations, members, replies
from storage.config import Config
from storage.db import sql
from storage.db.database import Connection, Database
from storage.errors import ImportFileError, TastingError
from storage.feedback import prompt_bank, ratings, tastings
from storage.imports import files, imports
from storage.imports.examples import Author, Channel, Prompt, Unusable
from storage.imports.importing import Statement, look, take_in
from storage.imports.prompts import permitted, read_prompts
from storage.learning import adapters, eligibility, runs
from storage.privacy import consent, erasure
from tests.storage.imports.test_formats import EXPORT, QUESTION, RECORDS

SCOPE = "guild:100000000000000001"
MIA = Author(5, "mia")
SAID = "Which flour is best for a rye loaf?"


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database.open(tmp_path / "strop.db")
    yield opened
    opened.close()


def texts(path: Path) -> list[str]:
    return [prompt.text for prompt in read_prompts(path)[0]]


def package(folder: Path, layout: str = "json") -> Path:
    """Write a package as Discord sends it: one open channel, one direct message, an account."""
    rows = [
        {"ID": 1, "Timestamp": "2024-05-01", "Contents": text, "Attachments": ""} for text in (SAID, "ok")
    ]
    channels: dict[str, Any] = {
        "11": {"id": "11", "type": "GUILD_TEXT", "name": "general", "guild": {"id": "1", "name": "Bakery"}},
        "12": {"id": "12", "type": 1, "recipients": ["5", "6"]},
    }
    root = folder / "package"
    for number, facts in channels.items():
        channel = root / ("Messages" if layout == "json" else "messages") / f"c{number}"
        channel.mkdir(parents=True)
        (channel / "channel.json").write_text(json.dumps(facts))
        if layout == "json":
            (channel / "messages.json").write_text(json.dumps(rows))
        else:
            lines = "".join(f'{row["ID"]},{row["Timestamp"]},"{row["Contents"]}",\n' for row in rows)
            (channel / "messages.csv").write_text(f"ID,Timestamp,Contents,Attachments\n{lines}")
    (root / "Account").mkdir()
    (root / "Account" / "user.json").write_text(json.dumps({"id": "5", "username": "mia"}))
    return root


def packed(root: Path) -> Path:
    path = root.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(root.rglob("*")):
            archive.write(file, file.relative_to(root.parent))
    return path


def stated(reference: str = "ticket 7") -> Statement:
    return Statement(SCOPE, "ours", "internal", "test", reference)


def bring_in(database: Database, path: Path, reference: str = "ticket 7") -> imports.Import:
    found = files.recognise(path)
    return take_in(database, found, found.state(), look(found), stated(reference))


def opt_in(database: Database, author: Author = MIA) -> None:
    database.write(lambda db: members.set_consent(db, author.user_id, "in", "test"))


def bank(database: Database) -> list[tuple[str, int | None]]:
    return [(each.text, each.author_id) for each in database.read(prompt_bank.prompts)]


def test_prompts_are_lines_of_a_text_or_what_a_conversation_begins_with(tmp_path: Path) -> None:
    text = tmp_path / "prompts.txt"
    text.write_bytes("\ufeff# mine\n\nHello there\nWhy?\nHello there\n".encode())
    assert texts(text) == ["Hello there", "Why?"]
    records = tmp_path / "prompts.jsonl"
    records.write_text("\n".join(map(json.dumps, ["First", {"prompt": "Second"}, *RECORDS.values()])))
    assert texts(records) == ["First", "Second", QUESTION]
    asked = [{"messages": [{"role": "user", "content": word}]} for word in ("One", "Two")]
    records.write_text(json.dumps(asked))
    assert texts(records) == ["One", "Two"]
    export = tmp_path / "export.json"
    export.write_text(json.dumps(EXPORT, indent=2))
    assert read_prompts(export)[0] == [Prompt(QUESTION, "record 2", MIA, Channel(1, 2), 10)]


def test_records_without_a_prompt_are_counted_and_a_file_of_them_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('"fine"\n{"answer": 1}\n"<|im_start|>"\n"fine"')
    found, left_out = read_prompts(path)
    assert [each.text for each in found] == ["fine"]
    assert left_out == {"no_prompt": 1, "control_tokens": 1, "duplicate": 1}
    path.write_text('{"answer": 1}')
    with pytest.raises(ImportFileError, match="No known format"):
        read_prompts(path)
    path.write_text('" "')
    with pytest.raises(ImportFileError, match="There are no prompts in"):
        read_prompts(path)
    with pytest.raises(ImportFileError, match="can't be read"):
        read_prompts(tmp_path / "none.txt")


def test_an_import_and_a_prompt_reader_find_the_same_prompts(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("Hello there\nWhy?\n")
    found = files.recognise(path)
    assert found.prompts_only and look(found).usable == 2
    table = tmp_path / "Bakery - general [100000000000000011].csv"
    where = Channel(None, 100000000000000011)
    table.write_text(
        f'AuthorID,Author,Date,Content,Attachments,Reactions\n5,mia,2024,"{SAID}",,\n5,mia,2024,ok,,\n'
    )
    found = files.recognise(table)
    assert (found.format, found.prompts_only) == ("discord-csv", True)
    assert list(found.prompts()) == [
        Prompt(SAID, "row 2", MIA, where),
        Unusable("row 3", "too_short"),
    ]
    assert read_prompts(table)[0] == [Prompt(SAID, "row 2", MIA, where)]


@pytest.mark.parametrize("layout", ["json", "csv"])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_data_package_holds_its_owners_prompts_and_no_direct_messages(
    tmp_path: Path, layout: str, zipped: bool
) -> None:
    root = package(tmp_path, layout)
    found = files.recognise(packed(root) if zipped else root)
    assert found.title == "Discord's data package of mia"
    prompts, left_out = read_prompts(found.source.path)
    assert [(each.text, each.author, each.channel) for each in prompts] == [(SAID, MIA, Channel(1, 11))]
    assert left_out == {"too_short": 1, "private": 2}
    assert found.sha256() == files.recognise(found.source.path).sha256()


def test_a_package_without_its_account_and_other_folders_and_zips_are_refused(tmp_path: Path) -> None:
    root = package(tmp_path)
    (root / "Account" / "user.json").unlink()
    with pytest.raises(ImportFileError, match="whose messages these are"):
        files.recognise(root)
    with pytest.raises(ImportFileError, match="folder without the messages"):
        files.recognise(root / "Account")
    path = tmp_path / "other.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("chat.jsonl", "{}")
    with pytest.raises(ImportFileError, match="zip file without the messages"):
        files.recognise(path)


def test_members_words_are_asked_only_with_discords_permission_and_their_own(
    database: Database, tmp_path: Path
) -> None:
    root = package(tmp_path)
    with pytest.raises(ImportFileError, match="training_permission_reference"):
        bring_in(database, root, reference="")
    with pytest.raises(ImportFileError, match="has opted in"):
        bring_in(database, root)
    assert database.read(imports.listing) == [] and bank(database) == []
    opt_in(database)
    done = bring_in(database, root)
    assert (done.stored, done.format) == (1, "discord-package")
    assert bank(database) == [(SAID, MIA.user_id)]
    own, other = Prompt("Mine", "line 1"), Prompt("Theirs", "line 2", Author(9, "x"))
    assert database.read(lambda db: permitted(db, [own, other], "ticket 7")) == (
        [own],
        {"no_consent": 1},
    )


def test_prompts_follow_the_settings_and_the_fate_of_the_channel_that_they_were_written_in(
    database: Database, tmp_path: Path
) -> None:
    opt_in(database)
    switch(database, Place(1, 11), False)
    with pytest.raises(ImportFileError, match=r"training is switched off \(/settings\)"):
        bring_in(database, package(tmp_path))
    switch(database, Place(1, 11), True)
    bring_in(database, tmp_path / "package")
    assert started(database)
    switch(database, Place(1, 11), False)
    with pytest.raises(TastingError, match="There are no prompts yet"):
        started(database)
    switch(database, Place(1, 11), True)
    database.write(lambda db: channels.note(db, 11, guild_id=1, public=False))
    with pytest.raises(TastingError, match="There are no prompts yet"):
        started(database)
    assert database.write(lambda db: prompt_bank.remove_by_channel(db, 11)) == 1 and bank(database) == []
    # An export as CSV names the channel only, and that in its own name: its server is looked up.
    table = tmp_path / "Bakery - general [100000000000000012].csv"
    table.write_text(f'AuthorID,Author,Date,Content\n5,mia,2024,"{SAID}"\n')
    switch(database, Place(1, 100000000000000012), False)
    with pytest.raises(ImportFileError, match="training is switched off"):
        bring_in(database, table)


def switch(database: Database, place: Place, on: bool) -> None:
    database.write(lambda db: settings.put(db, Config(home=Path("home")), place, "training", on, "test"))


def started(database: Database) -> tastings.Tasting:
    """Begin a tasting in a channel of its own, and end it."""

    def work(db: Connection) -> tastings.Tasting:
        where = {"guild_id": 1, "channel_id": 21, "scope": SCOPE, "base_hash": "b", "champion_id": None}
        how = {"wanted": None, "every_s": 5.0, "pairs": False, "again": False, "requested_by": "test"}
        begun = tastings.start(db, **where, **how)
        tastings.end(db, begun.id, "stopped")
        return begun

    return database.write(work)


def test_an_imported_prompt_trains_by_its_authors_consent_and_goes_with_it(
    database: Database, tmp_path: Path
) -> None:
    opt_in(database)
    done = bring_in(database, package(tmp_path))
    assert _asked_and_liked(database, done) == {"no_permission": 1}
    (row,) = _eligible(database, "ticket 7").rows
    assert row.prompt_messages == [{"role": "user", "content": SAID}]
    database.write(lambda db: consent.decide(db, MIA.user_id, "out", "test", permission_reference="ticket 7"))
    assert _eligible(database, "ticket 7").excluded == {"opted_out": 1}
    assert bank(database) == []
    opt_in(database)
    assert len(_eligible(database, "ticket 7").rows) == 1
    database.write(lambda db: prompt_bank.add(db, [prompt_bank.NewPrompt("Again?", MIA.user_id)], "test"))
    database.write(lambda db: erasure.erase_member(db, MIA.user_id, "test"))
    assert bank(database) == [] and _eligible(database, "ticket 7").rows == []


def test_an_import_of_prompts_is_taken_back_with_the_answers_and_what_learned_from_them(
    database: Database, tmp_path: Path
) -> None:
    opt_in(database)
    done = bring_in(database, package(tmp_path))
    _asked_and_liked(database, done)

    def trained(db: Connection) -> None:
        run = runs.enqueue(db, scope=SCOPE, trigger="manual", requested_by="test")
        values = {"run_id": run.id, "reply_id": "r1", "split": "train", "label": "like", "weight": 1.0}
        sql.insert(db, "run_rows", values)
        where = {"scope": SCOPE, "base_hash": "b", "run_id": run.id}
        adapters.insert_candidate(db, adapter_id="a1", path="adapters/a1", **where)

    database.write(trained)
    erased = database.write(lambda db: imports.remove(db, done.id, "test"))
    assert erased.affected_adapters == ("a1",)
    assert bank(database) == [] and _eligible(database, "ticket 7").rows == []
    assert database.read(lambda db: sql.many(db, "SELECT 1 FROM messages WHERE content LIKE '%rye%'")) == []


def _asked_and_liked(database: Database, done: imports.Import) -> dict[str, int]:
    """Ask the prompt as a tasting does, and let somebody who opted in like the answer."""

    def work(db: Connection) -> None:
        conversation = conversations.open_conversation(
            db, key="1:2:3", guild_id=1, channel_id=2, scope=SCOPE, source="operator", public=True
        )
        where = {"conversation_id": conversation.id, "discord_id": 3, "parent_id": None}
        asked = conversations.add_message(db, **where, author_id=MIA.user_id, role="user", content=SAID)
        prompt = [{"role": "user", "content": SAID}]
        made = {"adapter_id": None, "base_hash": "b", "seed": None, "sampling": {}, "scope": SCOPE}
        replies.start(
            db, reply_id="r1", prompt_message_id=asked, prompt=prompt, asker_id=done.member_id, **made
        )
        unknown = dict.fromkeys(
            (
                "finish_reason",
                "prompt_tokens",
                "completion_tokens",
                "queue_ms",
                "first_token_ms",
                "duration_ms",
            )
        )
        replies.finish(db, "r1", content="Medium rye.", status="complete", **unknown)
        members.ensure(db, 77, "ann", "discord")
        members.set_consent(db, 77, "in", "test")
        ratings.rate(db, reply_id="r1", user_id=77, kind="thumb", means="reaction", value=1)

    database.write(work)
    return _eligible(database, "").excluded


def _eligible(database: Database, reference: str) -> eligibility.Eligibility:
    return database.read(lambda db: eligibility.eligible_rows(db, SCOPE, permission_reference=reference))
