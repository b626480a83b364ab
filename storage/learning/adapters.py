"""The adapter registry: which exist, and which one is champion. Promotion is one transaction."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

import sqlite_utils

from storage import sentences
from storage.admin import audit
from storage.db import sql
from storage.db.clock import now_ms
from storage.errors import (
    AdapterNotPromotableError,
    NothingToRollBackError,
    RuleError,
    StaleChampionError,
    UnknownRowError,
)
from storage.learning import trials
from storage.sentences import Sentence

State = Literal["candidate", "promoted", "rejected", "retired", "tainted"]
PromotionKind = Literal["promote", "rollback", "erase", "initial"]


class AnyChampion(Enum):
    """The default of `expected_champion`: it may be any (None means the base model)."""

    ANY = "any"


@dataclass(frozen=True, slots=True)
class Adapter:
    """One trained adapter; its id is a content hash and its folder never changes."""

    id: str
    scope: str
    base_hash: str
    parent_id: str | None
    run_id: str | None
    state: State
    rehearsal: bool
    path: str
    manifest: dict[str, Any]
    created_ms: int


@dataclass(frozen=True, slots=True)
class Promotion:
    """One change of champion; an adapter id of None is the base model."""

    id: int
    scope: str
    base_hash: str
    adapter_id: str | None
    previous_id: str | None
    run_id: str | None
    kind: PromotionKind
    actor: str
    reason: Sentence
    created_ms: int


def insert_candidate(
    db: sqlite_utils.Database,
    *,
    adapter_id: str,
    scope: str,
    base_hash: str,
    path: str,
    run_id: str | None = None,
    parent_id: str | None = None,
    rehearsal: bool = False,
    manifest: Mapping[str, Any] | None = None,
) -> Adapter:
    """Register an adapter whose folder is in place; one that is already there is returned as it is.

    If a member's erasure overtook its run, it is registered as tainted and can never be promoted.
    """
    overtaken = sql.value(db, "SELECT repeatable = 0 FROM runs WHERE id = ?", (run_id,))
    values = {
        "id": adapter_id,
        "scope": scope,
        "base_hash": base_hash,
        "parent_id": parent_id,
        "run_id": run_id,
        "state": "tainted" if overtaken else "candidate",
        "rehearsal": int(rehearsal),
        "path": path,
        "manifest_json": json.dumps(dict(manifest or {})),
        "created_ms": now_ms(),
    }
    sql.insert(db, "adapters", values, on_conflict="DO NOTHING")
    return expect(db, adapter_id)


def get(db: sqlite_utils.Database, adapter_id: str) -> Adapter | None:
    """Return the adapter, or None."""
    row = sql.one(db, "SELECT * FROM adapters WHERE id = ?", (adapter_id,))
    return None if row is None else _adapter(row)


def listing(db: sqlite_utils.Database, scope: str | None = None, limit: int = 200) -> list[Adapter]:
    """Return the adapters of a scope (or of all), the newest first."""
    where, parameters = ("WHERE scope = ?", [scope]) if scope is not None else ("", [])
    rows = sql.many(db, f"SELECT * FROM adapters {where} ORDER BY rowid DESC LIMIT ?", [*parameters, limit])
    return [_adapter(row) for row in rows]


def set_state(db: sqlite_utils.Database, adapter_id: str, state: State) -> None:
    """Change an adapter's state; a tainted one stays tainted. Raises UnknownRowError."""
    expect(db, adapter_id)
    sql.change(db, "UPDATE adapters SET state = ? WHERE id = ? AND state <> 'tainted'", (state, adapter_id))


def champion(db: sqlite_utils.Database, scope: str, base_hash: str) -> str | None:
    """Return the adapter that answers in this scope, or None for the base model."""
    adapter_id: str | None = sql.value(
        db, "SELECT adapter_id FROM champions WHERE scope = ? AND base_hash = ?", (scope, base_hash)
    )
    return adapter_id


def ensure_champion_row(db: sqlite_utils.Database, scope: str, base_hash: str) -> str | None:
    """Return the champion, after making the base model champion of a scope that never had one."""
    known = sql.one(
        db, "SELECT adapter_id FROM champions WHERE scope = ? AND base_hash = ?", (scope, base_hash)
    )
    if known is None:
        _set_champion(
            db, scope, base_hash, None, None, "initial", "strop", Sentence("the base model starts"), None
        )
        return None
    adapter_id: str | None = known["adapter_id"]
    return adapter_id


def promote(
    db: sqlite_utils.Database,
    *,
    scope: str,
    base_hash: str,
    adapter_id: str | None,
    actor: str,
    reason: str,
    run_id: str | None = None,
    expected_champion: str | AnyChampion | None = AnyChampion.ANY,
) -> int:
    """Make an adapter (or None, the base model) champion and return the promotion's id.

    With `expected_champion` this happens only if that one still is champion. Raises StaleChampionError,
    AdapterNotPromotableError, UnknownRowError.
    """
    previous = ensure_champion_row(db, scope, base_hash)
    if expected_champion is not AnyChampion.ANY and expected_champion != previous:
        raise StaleChampionError(
            "The champion of {scope} is now {now}, not {expected}: judge the challenger against it again.",
            scope=scope,
            now=display_name(previous),
            expected=display_name(expected_champion),
        )
    if adapter_id is not None:
        expect_promotable(db, adapter_id, scope, base_hash)
    return _set_champion(db, scope, base_hash, adapter_id, previous, "promote", actor, reason, run_id)


def promote_by_hand(
    db: sqlite_utils.Database,
    *,
    scope: str,
    base_hash: str,
    adapter_id: str | None,
    actor: str,
    reason: str,
    run_id: str | None = None,
    expected_champion: str | AnyChampion | None = AnyChampion.ANY,
) -> str | None:
    """Promote an adapter (None: the base) unless it is champion already; return the champion before.

    Raises what :func:`promote` raises.
    """
    previous = ensure_champion_row(db, scope, base_hash)
    if previous != adapter_id:
        promote(
            db,
            scope=scope,
            base_hash=base_hash,
            adapter_id=adapter_id,
            actor=actor,
            reason=reason,
            run_id=run_id,
            expected_champion=expected_champion,
        )
    return previous


def reject(db: sqlite_utils.Database, adapter_id: str, *, actor: str, reason: str) -> None:
    """Decide by hand that a candidate stays out of service. Raises RuleError where nothing is undecided."""
    adapter = expect(db, adapter_id)
    if adapter.state != "candidate":
        raise RuleError(
            "{adapter} is {state}: there is nothing left to reject.",
            adapter=adapter_id,
            state=Sentence(adapter.state),
        )
    set_state(db, adapter_id, "rejected")
    detail = {"adapter_id": adapter_id, "scope": adapter.scope, "run_id": adapter.run_id, "reason": reason}
    audit.record(db, actor, "adapter.reject", detail)


def rollback(
    db: sqlite_utils.Database,
    *,
    scope: str,
    base_hash: str,
    actor: str,
    reason: str,
    to: str | AnyChampion | None = AnyChampion.ANY,
) -> str | None:
    """Go back to the champion before this one, or to an earlier one; return it (None is the base model).

    Adapters that were tainted or rejected since are skipped.

    Raises NothingToRollBackError.
    """
    current = ensure_champion_row(db, scope, base_hash)
    earlier = earlier_champions(db, scope, base_hash)
    if not earlier:
        raise NothingToRollBackError(
            "There is nothing to go back to: {who} answers, and nothing came before it. "
            "To put an adapter in service, use /promote or `strop promote`.",
            who=display_name(current),
        )
    if to is not AnyChampion.ANY and to not in earlier:
        raise NothingToRollBackError(
            "{adapter} is not among the adapters that led to the current one in {scope}.",
            adapter=display_name(to),
            scope=scope,
        )
    target = earlier[-1] if isinstance(to, AnyChampion) else to
    _set_champion(db, scope, base_hash, target, current, "rollback", actor, reason, None)
    return target


def revoke_champion(
    db: sqlite_utils.Database, *, scope: str, base_hash: str, actor: str, reason: str
) -> str | None:
    """Replace a tainted champion by the newest clean one before it, else by the base model; return it."""
    current = champion(db, scope, base_hash)
    successor = next(reversed(earlier_champions(db, scope, base_hash)), None)
    _set_champion(db, scope, base_hash, successor, current, "erase", actor, reason, None)
    return successor


def promotions(db: sqlite_utils.Database, scope: str, base_hash: str) -> list[Promotion]:
    """Return every change of champion of a scope, the oldest first."""
    rows = sql.many(
        db, "SELECT * FROM promotions WHERE scope = ? AND base_hash = ? ORDER BY id", (scope, base_hash)
    )
    return [promotion_of(row) for row in rows]


def recent_promotions(db: sqlite_utils.Database, scope: str, base_hash: str, limit: int) -> list[Promotion]:
    """Return the latest changes of champion of a scope, the newest first."""
    rows = sql.many(
        db,
        "SELECT * FROM promotions WHERE scope = ? AND base_hash = ? ORDER BY id DESC LIMIT ?",
        (scope, base_hash, limit),
    )
    return [promotion_of(row) for row in rows]


def earlier_champions(db: sqlite_utils.Database, scope: str, base_hash: str) -> list[str | None]:
    """Return the earlier champions that a rollback may choose, the latest last."""
    *earlier, current = _champion_history(promotions(db, scope, base_hash))
    return [adapter_id for adapter_id in earlier if adapter_id != current and _may_return(db, adapter_id)]


def _may_return(db: sqlite_utils.Database, adapter_id: str | None) -> bool:
    return adapter_id is None or expect(db, adapter_id).state not in ("tainted", "rejected")


def _champion_history(history: list[Promotion]) -> list[str | None]:
    """Return the champions that led to the present one, the base first; a rollback removes what it undid."""
    stack: list[str | None] = [None]
    for promotion in history:
        if promotion.kind == "promote":
            stack.append(promotion.adapter_id)
            continue
        while len(stack) > 1 and stack[-1] != promotion.adapter_id:
            stack.pop()
        if stack[-1] != promotion.adapter_id:
            stack.append(promotion.adapter_id)
    return stack


def _set_champion(
    db: sqlite_utils.Database,
    scope: str,
    base_hash: str,
    adapter_id: str | None,
    previous: str | None,
    kind: PromotionKind,
    actor: str,
    reason: str,
    run_id: str | None,
) -> int:
    row = {"scope": scope, "base_hash": base_hash, "adapter_id": adapter_id}
    promoted = {
        **row,
        "previous_id": previous,
        "run_id": run_id,
        "kind": kind,
        "actor": actor,
        "reason": reason,
        "reason_sentence": sentences.dump(reason),
        "created_ms": now_ms(),
    }
    promotion_id = sql.insert(db, "promotions", promoted)
    sql.insert(
        db,
        "champions",
        {**row, "promotion_id": promotion_id},
        on_conflict="DO UPDATE SET adapter_id = excluded.adapter_id, promotion_id = excluded.promotion_id",
    )
    trials.end_all(
        db, scope, base_hash, Sentence("another champion answers ({kind})", kind=kind), actor=actor
    )
    if previous is not None and previous != adapter_id:
        set_state(db, previous, "retired")
    if adapter_id is not None:
        set_state(db, adapter_id, "promoted")
    detail = {**row, "previous_id": previous, "run_id": run_id, "reason": reason}
    audit.record(db, actor, f"champion.{kind}", detail)
    return promotion_id


def expect_promotable(db: sqlite_utils.Database, adapter_id: str, scope: str, base_hash: str) -> Adapter:
    """Return an adapter that may answer here; raises AdapterNotPromotableError or UnknownRowError."""
    adapter = expect(db, adapter_id)
    if adapter.state == "tainted":
        raise AdapterNotPromotableError(tainted(adapter.id))
    if adapter.scope != scope:
        raise AdapterNotPromotableError(
            "{adapter} belongs to {scope}, not to {wanted}.",
            adapter=adapter.id,
            scope=adapter.scope,
            wanted=scope,
        )
    if adapter.base_hash != base_hash:
        raise AdapterNotPromotableError("{adapter} was trained for another base model.", adapter=adapter.id)
    return adapter


def expect(db: sqlite_utils.Database, adapter_id: str, scope: str | None = None) -> Adapter:
    """Return the adapter, with `scope` only if it is one of this scope; raises UnknownRowError."""
    adapter = get(db, adapter_id)
    if adapter is None or scope not in (None, adapter.scope):
        raise UnknownRowError("There is no adapter {adapter}.", adapter=adapter_id)
    return adapter


def tainted(adapter_id: str) -> Sentence:
    """Say why a tainted adapter can't be promoted."""
    return Sentence(
        "{adapter} was trained on words that their author has since erased: it can't be promoted.",
        adapter=adapter_id,
    )


def display_name(adapter_id: str | None) -> Sentence:
    """Return an adapter's name for a sentence; None is the base model."""
    return Sentence("adapter {adapter}", adapter=adapter_id) if adapter_id else Sentence("the base model")


def promotion_of(row: dict[str, Any]) -> Promotion:
    """Return a row of `promotions` as what it says."""
    reason = sentences.load(row.pop("reason"), row.pop("reason_sentence"))
    return Promotion(reason=reason, **row)


def _adapter(row: dict[str, Any]) -> Adapter:
    manifest = json.loads(row.pop("manifest_json"))
    return Adapter(manifest=manifest, **{**row, "rehearsal": bool(row["rehearsal"])})
