"""From a recognised file to a stored import: looked through, then taken in, some at a time.

Every batch is a transaction of its own. An import that was interrupted trains nothing until it is whole
(`eligibility`), and goes on where it stopped when the same file is imported again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from storage.db.database import Database
from storage.errors import ImportFileError
from storage.imports import imports
from storage.imports.checks import Summary
from storage.imports.examples import Unusable
from storage.imports.files import ImportFile, State
from storage.imports.imports import Import

T = TypeVar("T")
# A batch holds the write lock: so few that nobody waits a second for it, on a busy machine either.
BATCH = 50


@dataclass(frozen=True, slots=True)
class Statement:
    """What an operator says about a file: by which right it is used, under which licence, and for whom."""

    scope: str
    rights: str
    licence: str
    actor: str
    permission_reference: str = ""

    def check(self) -> None:
        """Raise ImportFileError where the right or the licence is left out."""
        if not self.rights.strip():
            raise ImportFileError("Say by which right you use the file: it is kept with the import.")
        if not self.licence.strip():
            raise ImportFileError(
                "Say under which licence the file stands, for example CC-BY-4.0 or “our own”: it is kept too."
            )


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an import is: records looked at, the share of all work that is done, seconds left if known."""

    records: int
    share: float | None
    left_s: float | None


Told = Callable[[Progress], None]


class _Clock:
    """Tells progress, by the share of the whole that is done and the time that it took."""

    def __init__(self, told: Told) -> None:
        self._told = told
        self._began_s = time.monotonic()

    def tell(self, records: int, share: float | None) -> None:
        spent_s = time.monotonic() - self._began_s
        self._told(Progress(records, share, spent_s / share * (1 - share) if share else None))


def look(found: ImportFile, told: Told = lambda _: None) -> Summary:
    """Read a file through and return what is in it. Raises ImportFileError where it can't be read."""
    summary, clock = Summary(), _Clock(told)
    for number, each in enumerate(found.prompts() if found.prompts_only else found.examples(), 1):
        summary.add(each)
        if number % BATCH == 0:
            clock.tell(number, found.source.share_read())
    return summary


@dataclass(frozen=True, slots=True)
class _Intake:
    """A file that was looked through and is being stored: as what, by which right, and who is told."""

    database: Database
    found: ImportFile
    before: State
    summary: Summary
    begun: Import
    statement: Statement
    told: Told

    def store(self) -> None:
        """Store all of the file. Raises ImportFileError where it changed meanwhile or may not be used."""
        if self.found.prompts_only:
            self._store_prompts()
        else:
            self._store_examples()

    def _store_examples(self) -> None:
        count, clock = 0, _Clock(self.told)
        for batch in batches(_usable(self.found.examples()), BATCH):
            _check_same(self.found, self.before)
            self.database.write(
                partial(
                    imports.store,
                    found=self.begun,
                    examples=batch,
                    permission_reference=self.statement.permission_reference,
                )
            )
            count += len(batch)
            clock.tell(count, min(count / max(self.summary.usable, 1), 1.0))
        _check_same(self.found, self.before)

    def _store_prompts(self) -> None:
        """Put the prompts into the bank at once: it holds a few thousand, of however many there are."""
        prompts = list(_usable(self.found.prompts()))
        _check_same(self.found, self.before)
        left_out = self.database.write(
            partial(
                imports.store_prompts,
                found=self.begun,
                prompts=prompts,
                permission_reference=self.statement.permission_reference,
            )
        )
        self.summary.left_out.update(left_out)
        _Clock(self.told).tell(len(prompts), 1.0)


def take_in(
    database: Database,
    found: ImportFile,
    before: State,
    summary: Summary,
    statement: Statement,
    told: Told = lambda _: None,
) -> Import:
    """Store a file that was looked through. `before` is its state then; an interruption leaves it resumable.

    Raises ImportFileError where the file is in already, changed since, or may not be used.
    """
    statement.check()
    _check_same(found, before)
    begun = database.write(
        partial(
            imports.begin,
            name=found.source.path.name,
            sha256=found.sha256(),
            format_name=found.format,
            rights=statement.rights.strip(),
            licence=statement.licence.strip(),
            scope=statement.scope,
            actor=statement.actor,
        )
    )
    try:
        _Intake(database, found, before, summary, begun, statement, told).store()
    except ImportFileError:
        database.write(lambda db: imports.abandon(db, begun.id))
        raise
    return database.write(lambda db: imports.finish(db, begun.id, summary.left_out))


def _check_same(found: ImportFile, before: State) -> None:
    if found.state() != before:
        raise ImportFileError(
            f"{found.source.path} changed while it was read. Import it again; what was stored of it trains "
            "nothing, and `strop imports list` and `strop imports remove` take it away."
        )


def _usable(found: Iterable[T | Unusable]) -> Iterator[T]:
    return (each for each in found if not isinstance(each, Unusable))


def batches(found: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield the elements some at a time."""
    batch: list[T] = []
    for each in found:
        batch.append(each)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
