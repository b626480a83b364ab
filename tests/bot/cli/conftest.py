"""A data folder with a little of everything, and the command line run against it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from bot.cli.app import app
from storage.config import Config, load_config
from storage.db.database import Database
from tests.trainer.community import open_database, rated_replies

Strop = Callable[..., Result]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty STROP_HOME; commands run in a folder without a strop.toml."""
    monkeypatch.setenv("STROP_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data"


@pytest.fixture
def config(home: Path) -> Config:
    return load_config(None, {"STROP_HOME": str(home)})


@pytest.fixture
def strop(home: Path) -> Strop:
    """Run `strop` with these arguments; a traceback fails the test."""

    def run(*arguments: str, answers: str | None = None, code: int = 0) -> Result:
        result = CliRunner().invoke(app, list(arguments), input=answers)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, f"{result.exit_code}: {result.output} {result.stderr}"
        return result

    return run


@pytest.fixture
def database(home: Path, empty_database: Path) -> Iterator[Database]:
    """The playground's database with three liked replies in one guild."""
    with open_database(home, empty_database) as opened:
        opened.write(lambda db: rated_replies(db, 3))
        yield opened
