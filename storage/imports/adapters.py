"""Adapters that were trained elsewhere: candidates like any other, judged by a run that trains nothing."""

from collections.abc import Mapping
from typing import Any

import sqlite_utils

from storage.admin import audit
from storage.db import sql
from storage.errors import AdapterNotPromotableError
from storage.learning import adapters, runs
from storage.learning.adapters import tainted
from storage.learning.runs import Run


def judge(
    db: sqlite_utils.Database,
    *,
    adapter_id: str,
    scope: str,
    base_hash: str,
    manifest: Mapping[str, Any],
    rehearsal: bool,
    actor: str,
) -> Run:
    """Register an adapter as a candidate and queue the run that judges it; return that run.

    One that is known stands for judgement once more. It belongs to its run as a trained one does: what it
    learned from is not known, so an erasure that touches that run's rows takes it out of service. If another
    run of the scope is queued or on, that one is returned and nothing is registered.

    Raises AdapterNotPromotableError where an erasure has tainted it.
    """
    settings = {"judge": adapter_id}
    run = runs.enqueue(db, scope=scope, trigger="manual", requested_by=actor, settings=settings)
    if run.settings != settings:
        return run
    found = adapters.insert_candidate(
        db,
        adapter_id=adapter_id,
        scope=scope,
        base_hash=base_hash,
        path=f"adapters/{adapter_id}",
        run_id=run.id,
        rehearsal=rehearsal,
        manifest=manifest,
    )
    if found.state == "tainted":
        raise AdapterNotPromotableError(tainted(adapter_id))
    sql.change(db, "UPDATE adapters SET run_id = ?, state = 'candidate' WHERE id = ?", (run.id, adapter_id))
    audit.record(db, actor, "adapter.import", {"adapter_id": adapter_id, "scope": scope, "run_id": run.id})
    return run
