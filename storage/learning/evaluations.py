"""Evaluations: what was measured of a challenger and its champion, with the interval."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlite_utils

from storage.db import sql
from storage.db.clock import now_ms


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One metric of one run: `value` in [`low`, `high`] on `n` held-out items."""

    id: int
    run_id: str
    adapter_id: str | None
    champion_id: str | None
    metric: str
    value: float | None
    low: float | None
    high: float | None
    n: int | None
    detail: dict[str, Any]
    created_ms: int


def add(
    db: sqlite_utils.Database,
    *,
    run_id: str,
    adapter_id: str | None,
    champion_id: str | None,
    metric: str,
    value: float | None,
    low: float | None = None,
    high: float | None = None,
    n: int | None = None,
    detail: Mapping[str, Any] | None = None,
) -> int:
    """Store one metric and return its id."""
    values = {
        "run_id": run_id,
        "adapter_id": adapter_id,
        "champion_id": champion_id,
        "metric": metric,
        "value": value,
        "low": low,
        "high": high,
        "n": n,
        "detail_json": json.dumps(dict(detail or {})),
        "created_ms": now_ms(),
    }
    return sql.insert(db, "evaluations", values)


def for_run(db: sqlite_utils.Database, run_id: str) -> list[Evaluation]:
    """Return a run's metrics in the order they were measured."""
    rows = sql.many(db, "SELECT * FROM evaluations WHERE run_id = ? ORDER BY id", (run_id,))
    return [Evaluation(detail=json.loads(row.pop("detail_json")), **row) for row in rows]
