"""Measure what thousands of adapters cost: `python -m tests.bench.many_adapters --adapters 5000`.

Writes so many adapters of a tiny base, of 200 servers, with their files and changes of champion, and takes
the processor time of what a person or a start waits for.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import sqlite_utils
import structlog
from rich.console import Console
from rich.table import Table

from bot.cli.adapters import list_adapters
from bot.learning.adapters import PAGE
from bot.serving.model import adapter_files
from storage.config import Config, load_config
from storage.db.database import Database
from storage.learning import adapters, lineage
from trainer.schedule.recovery import reconcile

SERVERS = 200
BASE = "b" * 64
# The weights of a tiny base's adapter; a 135M base's have 10 MB, of which a start reads the champions' alone.
WEIGHTS_BYTES = 64 * 1024


def fill(database: Database, config: Config, count: int) -> None:
    """Write the adapters' folders and register each, the newest of a server as its champion."""
    written = [_write(config.adapters, number) for number in range(count)]
    database.write(lambda db: _register(db, written))


def _write(folder: Path, number: int) -> str:
    work = folder / f"new-{number}"
    work.mkdir(parents=True)
    (work / adapter_files.CONFIG).write_text('{"r": 4}')
    (work / adapter_files.WEIGHTS).write_bytes(number.to_bytes(8, "big") * (WEIGHTS_BYTES // 8))
    name = adapter_files.write_manifest(work, base_hash=BASE, chat_template_hash="c" * 64, extra={})
    work.rename(folder / name)
    return name


def _register(db: sqlite_utils.Database, names: Sequence[str]) -> None:
    for number, name in enumerate(names):
        scope = f"guild:{1 + number % SERVERS}"
        adapters.insert_candidate(db, adapter_id=name, scope=scope, base_hash=BASE, path=f"adapters/{name}")
        adapters.promote(db, scope=scope, base_hash=BASE, adapter_id=name, actor="bench", reason="bench")


def measured(database: Database, config: Config, file: Path) -> Iterator[tuple[str, float]]:
    """Yield what was waited for, and its processor time in seconds."""

    def page() -> None:
        database.read(lambda db: lineage.page(db, "guild:1", skip=0, limit=PAGE))

    def listed() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            list_adapters(file)

    works: dict[str, Callable[[], object]] = {
        "opening the database": lambda: Database.open(config.database).close(),
        "/adapters": page,
        "strop adapters": listed,
        "the trainer's look at a start": lambda: reconcile(database, config),
    }
    for name, work in works.items():
        begun = time.process_time()
        work()
        yield name, time.process_time() - begun


def main() -> None:
    """Parse the command line, write, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.many_adapters", description=__doc__)
    parser.add_argument("--adapters", type=int, default=5000)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    table = Table(f"with {options.adapters:,} adapters", "processor seconds")
    with tempfile.TemporaryDirectory(prefix="strop-adapters-") as folder:
        file = Path(folder) / "strop.toml"
        file.write_text("[discord]\n")
        os.environ["STROP_HOME"] = folder
        config = load_config(file, os.environ)
        with Database.open(config.database) as database:
            fill(database, config, options.adapters)
            for name, seconds in measured(database, config, file):
                table.add_row(name, f"{seconds:.2f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
