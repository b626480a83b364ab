"""`strop import` from the first look to taking it back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bot.playground.discord.community import GUILD_ID
from storage.config import load_config
from storage.db.database import Database
from storage.imports import imports
from tests.bot.cli.conftest import Strop


def chats(path: Path, count: int = 40) -> Path:
    lines = [{"prompt": f"question {n} of ours", "completion": f"answer {n}"} for n in range(count)]
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"prompt": "x", "completion": " "}')
    return path


def test_a_file_is_looked_at_imported_listed_and_taken_back(
    strop: Strop, database: Database, tmp_path: Path
) -> None:
    file = chats(tmp_path / "chats.jsonl")
    seen = strop("import", str(file), "--dry-run").stdout
    assert "prompt and completion" in seen and "to imitate" in seen and "held-out set" in seen
    assert "Left out: 1 that have an empty prompt or answer (the first: line 41)" in seen
    assert "  user: question 0 of ours" in seen and "  assistant: answer 0" in seen
    assert database.read(imports.listing) == []

    assert "--rights" in strop("import", str(file), code=2).stderr
    told = strop("import", str(file), "--rights", "ours", "--licence", "none", "--yes").stdout
    (done,) = database.read(imports.listing)
    assert f"Import 1: {done.stored} new examples." in told and 20 <= done.stored < 40
    assert (
        "already"
        in strop("import", str(file), "--rights", "ours", "--licence", "none", "--yes", code=1).stderr
    )

    assert "chats.jsonl" in strop("imports", "list").stdout
    assert "Right to use it: ours" in strop("imports", "show", "1").stdout
    assert "taken back" in strop("imports", "remove", "1", "--yes").stdout
    assert "taken back" in strop("imports", "list").stdout


def test_an_export_comes_back_in_another_deployment(strop: Strop, database: Database, tmp_path: Path) -> None:
    exported = tmp_path / "export.jsonl"
    strop("export", str(exported))
    record = json.loads(strop("import", str(exported), "--dry-run", "--json").stdout)
    assert (record["usable"], record["liked"]) == (3, 3)


def test_a_file_can_be_looked_at_before_the_first_start_and_brought_in_before_anybody_talked(
    strop: Strop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "fresh"
    monkeypatch.setenv("STROP_HOME", str(home))
    file = chats(tmp_path / "chats.jsonl")
    assert "29 examples: 29 to imitate" in strop("import", str(file), "--dry-run").stdout
    said = ("--rights", "ours", "--licence", "ours", "--yes")
    assert "start it once" in strop("import", str(file), *said, code=1).stderr
    config = load_config(None, {"STROP_HOME": str(home)})
    Database.open(config.database).close()
    assert "29 new examples" in strop("import", str(file), *said).stdout
    with Database.open(config.database) as database:
        assert database.read(imports.listing)[0].scope == f"guild:{GUILD_ID}"


def test_bad_input_is_one_sentence(strop: Strop, database: Database, tmp_path: Path) -> None:
    picture = tmp_path / "cat.jsonl"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    for arguments in (["none.jsonl"], [str(picture)], [str(tmp_path)]):
        assert len(strop("import", *arguments, code=1).stderr.strip().splitlines()) == 1
    assert "--columns is written as" in strop("import", str(picture), "--columns", "x", code=2).stderr
    assert "There is no import 7" in strop("imports", "show", "7", code=1).stderr
