"""What goes wrong with files that people bring: each has its sentence, and leaves nothing half done."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.db.database import Database
from storage.errors import ImportFileError
from storage.imports import files, importing, imports
from storage.imports.importing import Progress, Statement, look, take_in
from storage.learning import eligibility
from tests.storage.imports.test_prompts import package

SCOPE = "guild:1"
STATED = Statement(SCOPE, "ours", "internal", "test")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database.open(tmp_path / "strop.db")
    yield opened
    opened.close()


def chats(path: Path, count: int) -> Path:
    lines = (
        json.dumps({"prompt": f"what is {n} times {n}?", "completion": f"it is {n * n}"})
        for n in range(count)
    )
    path.write_text("\n".join(lines))
    return path


def bring_in(database: Database, path: Path, **more: object) -> imports.Import:
    found = files.recognise(path)
    return take_in(database, found, found.state(), look(found), STATED, **more)  # type: ignore[arg-type]


def refused(path: Path) -> str:
    with pytest.raises(ImportFileError) as raised:
        look(files.recognise(path))
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_two_gigabytes_without_a_line_end_are_refused_after_a_few_megabytes(tmp_path: Path) -> None:
    path = tmp_path / "huge.jsonl"
    with path.open("wb") as file:
        file.write(b'{"prompt": "')
        file.truncate(2 * 1024**3)
    assert "longer than" in refused(path) or "not valid JSON" in refused(path)
    with path.open("r+b") as file:
        file.truncate(21 * 1024**3)
    assert "is larger than 20 GB: split it" in refused(path)


def test_bombs_are_refused_packed_either_way(tmp_path: Path) -> None:
    path = tmp_path / "bomb.jsonl.gz"
    line = json.dumps({"prompt": "x", "completion": "y" * 100_000}).encode() + b"\n"
    path.write_bytes(gzip.compress(line * 700, 1))
    assert "unpacks to more than 200 times its size" in refused(path)
    bomb = tmp_path / "package.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("messages/c1/channel.json", "{}")
        archive.writestr("messages/c1/messages.json", b" " * 66 * 1024**2)
    assert "unpacks to more than 200 times its size" in refused(bomb)


def test_a_damaged_zip_and_a_deep_one_are_sentences(tmp_path: Path) -> None:
    path = tmp_path / "package.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in package(tmp_path).rglob("*"):
            archive.write(file, file.relative_to(tmp_path))
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"Contents", b"Kontents", 1))
    assert "zip file that can't be read" in refused(path)


def test_a_file_that_changes_while_it_is_read_is_said_and_trains_nothing(
    database: Database, tmp_path: Path
) -> None:
    path = chats(tmp_path / "chats.jsonl", 700)

    def changes(_: Progress) -> None:
        with path.open("a") as file:
            file.write("\n")

    with pytest.raises(ImportFileError, match="changed while it was read"):
        bring_in(database, path, told=changes)
    (begun,) = database.read(imports.listing)
    assert begun.state == "running" and begun.stored
    assert _trains(database) == 0
    database.write(lambda db: imports.remove(db, begun.id, "test"))
    found = files.recognise(path)
    before = found.state()
    path.write_text(path.read_text() + "{}")
    with pytest.raises(ImportFileError, match="changed while it was read"):
        take_in(database, found, before, look(found), STATED)
    assert len(database.read(imports.listing)) == 1, "nothing was begun"


def test_mixed_formats_are_counted_by_their_reason(tmp_path: Path) -> None:
    path = tmp_path / "mixed.jsonl"
    first = {"prompt": "what is bread?", "completion": "baked dough"}
    other = {"instruction": "what is butter?", "output": "fat of milk"}
    path.write_text("\n".join(map(json.dumps, [first, other, {"note": 1}])))
    summary = look(files.recognise(path))
    assert summary.left_out["other_format"] == 1 and summary.first_left_out["other_format"] == "line 2"
    assert summary.left_out["not_messages"] == 1


def test_a_wrong_encoding_is_said_and_a_guess_is_marked(tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    line = json.dumps({"prompt": "Où est le café?", "completion": "À côté de l'église."}, ensure_ascii=False)
    path.write_bytes(line.encode("latin-1"))
    assert files.recognise(path).source.encoding_guessed
    with pytest.raises(ImportFileError, match="is not ascii text: name its encoding with --encoding"):
        files.recognise(path, encoding="ascii")
    with pytest.raises(ImportFileError, match="is not klingon text"):
        files.recognise(path, encoding="klingon")
    # What begins as UTF-8 and goes on otherwise, beyond what the recognition looks at.
    plain = json.dumps({"prompt": "a", "completion": "b" * 1000}).encode() + b"\n"
    path.write_bytes(plain * 400 + line.encode("latin-1"))
    assert "is not utf-8 text: name its encoding with --encoding" in refused(path)


@pytest.mark.parametrize(
    ("rights", "licence", "said"), [("", "x", "which right"), ("x", " ", "which licence")]
)
def test_the_right_and_the_licence_have_to_be_stated(
    database: Database, tmp_path: Path, rights: str, licence: str, said: str
) -> None:
    found = files.recognise(chats(tmp_path / "chats.jsonl", 3))
    with pytest.raises(ImportFileError, match=said):
        take_in(database, found, found.state(), look(found), Statement(SCOPE, rights, licence, "test"))
    assert database.read(imports.listing) == []


def test_the_same_file_twice_doubles_nothing(database: Database, tmp_path: Path) -> None:
    path = chats(tmp_path / "chats.jsonl", 30)
    done = bring_in(database, path)
    with pytest.raises(ImportFileError, match="is import 1 already"):
        bring_in(database, path)
    copy = chats(tmp_path / "copy.jsonl", 31)
    again = bring_in(database, copy)
    assert again.known == done.stored and _trains(database) == done.stored + again.stored


_KILLED = """
import os, signal, sys
from pathlib import Path
from storage.db.database import Database
from storage.imports import files
from storage.imports.importing import Statement, look, take_in

def die(progress):
    os.kill(os.getpid(), signal.SIGKILL)

found = files.recognise(Path(sys.argv[2]))
statement = Statement("guild:1", "ours", "internal", "test")
take_in(Database.open(Path(sys.argv[1])), found, found.state(), look(found), statement, die)
"""


def test_an_import_that_is_killed_trains_nothing_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path, file = chats(tmp_path / "chats.jsonl", 700), tmp_path / "strop.db"
    ended = subprocess.run([sys.executable, "-c", _KILLED, str(file), str(path)], check=False)
    assert ended.returncode == -signal.SIGKILL
    with Database.open(file) as database:
        (begun,) = database.read(imports.listing)
        assert (begun.state, begun.stored) == ("running", importing.BATCH)
        assert _trains(database) == 0
        done = bring_in(database, path)
        assert (done.id, done.known) == (begun.id, 0)
        assert done.stored == look(files.recognise(path)).usable == _trains(database)


def test_a_pipe_a_device_and_a_file_nobody_may_read_are_sentences(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert "is not a file" in refused(pipe)
    assert "can't be read" in refused(tmp_path / "none.jsonl")


def _trains(database: Database) -> int:
    return len(database.read(lambda db: eligibility.eligible_rows(db, SCOPE, permission_reference="")).rows)
