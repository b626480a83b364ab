"""Adapters that version 0.1 rejected by mistake: with a relative home their path was joined twice."""

from __future__ import annotations

import json

import sqlite_utils

from storage.admin import audit
from storage.db import sql
from storage.learning import adapters
from storage.learning.adapters import Adapter

# How that version's check began and went on, in the audit log and in the reason of the change of champion.
_PATH_REASON = "The adapter path "
_PATH_REASONS = ("is not a folder directly inside", "contains '..'")
RESTORED = "adapter.restore"
REASON = "its files are sound: an earlier version misjudged its path"


def find(db: sqlite_utils.Database) -> list[Adapter]:
    """Return the adapters that are still rejected for their path, and were not restored since."""
    blamed: dict[str, None] = {}
    for entry in sql.many(
        db,
        "SELECT action, detail_json FROM audit WHERE action IN (?, ?) ORDER BY id",
        ("trainer.reconcile", RESTORED),
    ):
        detail = json.loads(entry["detail_json"])
        if entry["action"] == RESTORED:
            blamed.pop(str(detail.get("adapter_id")), None)
            continue
        blamed |= {name: None for name, why in detail.get("refused_adapters", {}).items() if _is_ours(why)}
    known = (adapters.get(db, adapter_id) for adapter_id in blamed)
    return [adapter for adapter in known if adapter is not None and adapter.state == "rejected"]


def restore(db: sqlite_utils.Database, adapter_id: str, *, actor: str) -> bool:
    """Give an adapter the state back that it had; return whether it is champion again.

    It becomes champion again where it was when it was rejected, and nothing but such rejections changed the
    champion since.
    """
    served = sql.one(
        db,
        "SELECT scope, base_hash FROM promotions WHERE adapter_id = ? ORDER BY id DESC LIMIT 1",
        (adapter_id,),
    )
    adapters.set_state(db, adapter_id, "candidate" if served is None else "retired")
    audit.record(db, actor, RESTORED, {"adapter_id": adapter_id, "reason": REASON})
    if served is None or _last_rightful(db, **served) != adapter_id:
        return False
    adapters.promote(db, **served, adapter_id=adapter_id, actor=actor, reason=REASON)
    return True


def _last_rightful(db: sqlite_utils.Database, scope: str, base_hash: str) -> str | None:
    """Return the champion before the unbroken row of mistaken changes that ends the history."""
    champion = adapters.champion(db, scope, base_hash)
    for change in reversed(adapters.promotions(db, scope, base_hash)):
        if not _is_ours(change.reason.partition(": ")[2]):
            break
        champion = change.previous_id
    return champion


def _is_ours(reason: str) -> bool:
    return reason.startswith(_PATH_REASON) and any(part in reason for part in _PATH_REASONS)
