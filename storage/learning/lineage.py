"""Each adapter's training run and its time as champion: promotion, predecessor and replacement."""

from dataclasses import dataclass

import sqlite_utils

from storage.db import sql
from storage.learning import adapters, runs
from storage.learning.adapters import Adapter, Promotion
from storage.learning.runs import Run


@dataclass(frozen=True, slots=True)
class AdapterHistory:
    """One adapter with its run and the changes of champion that it was part of, the oldest first."""

    adapter: Adapter
    run: Run | None
    changes: tuple[Promotion, ...]
    answers: bool

    @property
    def came(self) -> Promotion | None:
        """Its last promotion or return."""
        return next((each for each in reversed(self.changes) if each.adapter_id == self.adapter.id), None)

    @property
    def went(self) -> Promotion | None:
        """The change that ended its last time as champion; None while it is champion or if it never was."""
        came = self.came
        if came is None or self.answers:
            return None
        return next(
            (each for each in self.changes if each.id > came.id and each.adapter_id != self.adapter.id), None
        )


def unheard_of_in(db: sqlite_utils.Database, channel_id: int) -> bool:
    """Whether a server's adapter is champion, and the bot hasn't answered in a channel since the first one.

    For direct messages, where no server's adapter answers: it is worth saying once.
    """
    first = sql.value(
        db,
        """SELECT min(promotions.created_ms) FROM champions
           JOIN promotions ON promotions.id = champions.promotion_id
           WHERE champions.adapter_id IS NOT NULL AND champions.scope LIKE 'guild:%'""",
    )
    answered = """SELECT EXISTS (SELECT 1 FROM reply_parts JOIN replies ON replies.id = reply_parts.reply_id
                  WHERE reply_parts.channel_id = ? AND replies.created_ms > ?)"""
    return first is not None and not sql.value(db, answered, (channel_id, first))


def page(db: sqlite_utils.Database, scope: str, *, skip: int, limit: int) -> list[AdapterHistory]:
    """Return the histories of a scope's adapters, the newest first, without the newest `skip`."""
    rows = sql.many(
        db,
        "SELECT id FROM adapters WHERE scope = ? ORDER BY rowid DESC LIMIT ? OFFSET ?",
        (scope, limit, skip),
    )
    return [history for row in rows if (history := of(db, row["id"])) is not None]


def of(db: sqlite_utils.Database, adapter_id: str) -> AdapterHistory | None:
    """Return one adapter's history, or None where the registry doesn't have it."""
    adapter = adapters.get(db, adapter_id)
    if adapter is None:
        return None
    changes = sql.many(
        db,
        """SELECT * FROM promotions WHERE scope = ? AND base_hash = ? AND (adapter_id = ? OR previous_id = ?)
           ORDER BY id""",
        (adapter.scope, adapter.base_hash, adapter.id, adapter.id),
    )
    return AdapterHistory(
        adapter,
        runs.get(db, adapter.run_id) if adapter.run_id else None,
        tuple(adapters.promotion_of(row) for row in changes),
        answers=adapters.champion(db, adapter.scope, adapter.base_hash) == adapter.id,
    )


def count(db: sqlite_utils.Database, scope: str) -> int:
    """Return how many adapters a scope has had."""
    return int(sql.value(db, "SELECT count(*) FROM adapters WHERE scope = ?", (scope,)))
