"""Small facts that must survive a restart, by key (a hash of the synced commands, a time, a count)."""

import sqlite_utils

from storage.db import sql

#: When the trainer's schedule next starts a run, in ms since the epoch; empty if it never does.
NEXT_RUN = "trainer.next_run_ms"
#: When the trainer's interval last began, in ms since the epoch.
LAST_INTERVAL = "trainer.last_interval_ms"
#: From when on the trainer's cron line is reckoned, in ms since the epoch, a blank, and its zone and line.
LAST_CRON = "trainer.last_cron"
#: How many ratings the bot missed while it was away and found again, over its lifetime.
RECOVERED_RATINGS = "ratings.recovered"

#: After which message's id the playground shows its chat again: what was before was cleared by "Start over".
SHOWN_AFTER = "playground.shown_after"
#: The hash of the base that was served last.
SERVED_BASE = "bot.base_hash"


def get(db: sqlite_utils.Database, key: str, default: str | None = None) -> str | None:
    """Return the fact, or `default`."""
    value: str | None = sql.value(db, "SELECT value FROM facts WHERE key = ?", (key,))
    return default if value is None else value


def put(db: sqlite_utils.Database, key: str, value: str) -> None:
    """Store the fact in place of an earlier one."""
    sql.change(
        db,
        "INSERT INTO facts (key, value) VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value",
        (key, value),
    )
