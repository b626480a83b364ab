"""What a report tells, read from the run's row and folder; what an erasure scrubbed is simply not there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import sqlite_utils

from storage.config import Config
from storage.db import sql
from storage.db.database import Database
from storage.errors import UnknownRowError
from storage.learning import adapters, evaluations, runs
from storage.learning.adapters import Adapter
from storage.learning.evaluations import Evaluation, Metrics
from storage.learning.runs import Run
from trainer.data import snapshot
from trainer.data.rows import Row
from trainer.errors import SnapshotError
from trainer.evaluation import scores
from trainer.evaluation.regressions import ScoredCase
from trainer.evaluation.safety import Probed
from trainer.evaluation.scores import Pair, Scores


@dataclass(frozen=True)
class Source:
    """One run with its adapter, its evaluations and what was compared; `rows` are those with corrections."""

    run: Run
    adapter: Adapter | None
    evaluations: tuple[Evaluation, ...]
    pairs: tuple[Pair, ...]
    corrections: tuple[ScoredCase, ...] = ()
    safety: tuple[Probed, ...] = ()
    rows: Mapping[str, Row] = field(default_factory=dict)

    @property
    def metrics(self) -> Metrics:
        """Return what the run recorded."""
        return self.run.metrics


def read(database: Database, config: Config, run_id: str) -> Source:
    """Read a run by its id or its beginning; an empty one means the newest that has ended.

    Raises:
        UnknownRowError: there is no such run, or more than one.
    """
    run = database.read(lambda db: _find(db, run_id))
    adapter = database.read(lambda db: adapters.get(db, run.adapter_id) if run.adapter_id else None)
    found = database.read(lambda db: evaluations.list_for_run(db, run.id))
    folder = folder_of(config, run)
    scores = _scores(folder)
    return Source(
        run,
        adapter,
        tuple(found),
        _pairs(folder),
        scores.corrections if scores else (),
        scores.safety if scores else (),
        _corrected(folder, run.snapshot_hash),
    )


def folder_of(config: Config, run: Run) -> Path:
    """Return the run's folder."""
    return config.runs / run.id


def _find(db: sqlite_utils.Database, run_id: str) -> Run:
    rows = sql.many(
        db,
        """SELECT id FROM runs WHERE substr(id, 1, length(?1)) = ?1 AND (?1 <> '' OR outcome IS NOT NULL)
           ORDER BY created_ms DESC, rowid DESC LIMIT 2""",
        (run_id,),
    )
    if not rows:
        if not run_id:
            raise UnknownRowError("There is no run that has ended: `strop status` shows the newest one.")
        raise UnknownRowError("There is no run {run}: `strop status` shows the newest one.", run=repr(run_id))
    if run_id and len(rows) > 1 and rows[0]["id"] != run_id:
        raise UnknownRowError(
            "More than one run begins with {beginning}; write more of its id.", beginning=repr(run_id)
        )
    return runs.expect(db, rows[0]["id"])


def _scores(folder: Path) -> Scores | None:
    try:
        return scores.read(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _corrected(folder: Path, content_hash: str | None) -> dict[str, Row]:
    """Return the rows with corrections by reply; none where the snapshot is gone."""
    try:
        rows = snapshot.read(folder, content_hash or "").rows
    except (SnapshotError, ValueError, KeyError, TypeError):
        return {}
    return {row.reply_id: row for row in rows if row.corrections}


def _pairs(folder: Path) -> tuple[Pair, ...]:
    try:
        return scores.read_pairs(folder)
    except (OSError, ValueError, KeyError, TypeError):
        # Scrubbed by an erasure, or written by another version: the page says that there are none.
        return ()
