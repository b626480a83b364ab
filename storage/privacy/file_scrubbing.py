"""The second half of an erasure: the files. If a process dies in between, the next start completes it."""

import time
from collections.abc import Iterable
from pathlib import Path

import sqlite_utils

from storage.db import key_values, sql
from storage.db.clock import now_ms
from storage.db.database import Database
from storage.privacy import backup_erasure
from storage.privacy import erasure as privacy
from storage.process import memory

_DELETIONS_SEEN = "privacy.deletions_seen_ms"
_DELETIONS_CUT = "privacy.deletions_cut_ms"
_CUT_TRIES = 20
_CUT_PAUSE_S = 0.1
#: What a run keeps without anybody's words: its card and its outcome, an experiment's table and page.
_FIGURES = frozenset({"card.json", "card.md", "report.json", "experiment.json", "experiment.html"})


def complete(database: Database, data_dir: Path, erasure: privacy.Erasure) -> bool:
    """Delete what an erasure left in files and backups, cut the write-ahead log, and mark it done.

    Returns False if a reader still needed the log: the erasure stays pending, call again later.
    """
    database.release_memory()
    memory.return_freed()
    privacy.scrub_files(data_dir, erasure.runs, erasure.affected_adapters)
    backup_erasure.erase_from_backups(data_dir / "backups", erasure.user_id, "erasure")
    backup_erasure.record_erasures(database)
    if not database.checkpoint_truncate():
        return False
    database.write(lambda db: privacy.mark_scrubbed(db, erasure.id))
    # The mark itself went through the log, but holds no text.
    return True


def complete_pending(database: Database, data_dir: Path) -> int:
    """Complete every erasure that is still pending (call at start and now and then); return how many were.

    Then take away what came to be afterwards: files of a run that was still on, copies of deleted messages.
    """
    waiting = database.read(privacy.pending)
    completed = sum(complete(database, data_dir, erasure) for erasure in waiting)
    backup_erasure.erase_missed(database, data_dir / "backups")
    forget_deleted(database, data_dir)
    sweep(database, data_dir)
    return completed


def sweep(database: Database, data_dir: Path) -> list[Path]:
    """Delete folders of erased runs and tainted adapters that a run wrote while it was being ended."""
    runs, adapters = database.read(_left_to_scrub)
    return privacy.scrub_files(data_dir, runs, adapters)


def forget_deleted(database: Database, data_dir: Path) -> int:
    """Delete the texts of runs that used a message which its author deleted since; return how many runs.

    Their figures and cards stay, and their adapters go on: a deleted message is left out of the next run.
    """
    cut_log(database)
    until_ms = now_ms()
    affected = database.read(_runs_with_deleted)
    for run_id in affected:
        for file in _with_words(data_dir / "runs" / run_id):
            file.unlink(missing_ok=True)
    database.write(lambda db: _note_deletions_seen(db, until_ms, affected))
    return len(affected)


def cut_log(database: Database) -> bool:
    """Take messages that were deleted since the last cut out of the write-ahead log; return whether they are.

    It waits for no reader, since nobody could write meanwhile: a reader that is there is let finish, a few
    times, and then the next call tries again.
    """
    until_ms = now_ms()
    if not database.read(_deleted_since_cut):
        return True
    for _ in range(_CUT_TRIES):
        if database.checkpoint_truncate(wait_ms=0):
            database.write(lambda db: key_values.put(db, _DELETIONS_CUT, str(until_ms)))
            return True
        time.sleep(_CUT_PAUSE_S)
    return False


def _deleted_since_cut(db: sqlite_utils.Database) -> bool:
    cut_ms = int(key_values.get(db, _DELETIONS_CUT, "0") or 0)
    since_ms = cut_ms if cut_ms <= now_ms() else 0
    return sql.value(db, "SELECT 1 FROM messages WHERE deleted_ms >= ? LIMIT 1", (since_ms,)) is not None


def _with_words(folder: Path) -> list[Path]:
    """Return a run's files that may hold members' words: all but its figures."""
    return [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name not in _FIGURES]


def _left_to_scrub(db: sqlite_utils.Database) -> tuple[list[str], list[str]]:
    """Return runs that an erasure ended and adapters that it tainted: no folder of theirs may be there."""
    ended = sql.many(
        db,
        """SELECT json_each.value AS id FROM erasures, json_each(erasures.scrub_json, '$.runs')
           JOIN runs ON runs.id = json_each.value
           WHERE runs.state NOT IN ('queued', 'running') ORDER BY id""",
    )
    tainted = sql.many(db, "SELECT id FROM adapters WHERE state = 'tainted' ORDER BY id")
    return [row["id"] for row in ended], [row["id"] for row in tainted]


def _runs_with_deleted(db: sqlite_utils.Database) -> list[str]:
    """Return runs that keep messages in files whose authors deleted them since the last look.

    Also those that wait, for their turn or for votes; a queued one begins anew. Only running ones keep
    their files until they are over.
    """
    seen_ms = int(key_values.get(db, _DELETIONS_SEEN, "0") or 0)
    rows = sql.many(
        db,
        """SELECT DISTINCT runs.id FROM messages
           JOIN reply_context ON reply_context.message_id = messages.id
           JOIN run_rows ON run_rows.reply_id = reply_context.reply_id
           JOIN runs ON runs.id = run_rows.run_id
           WHERE messages.deleted_ms >= ? AND runs.repeatable = 1
                 AND runs.state <> 'running'
           ORDER BY runs.id""",
        # A clock that was ahead left a mark in the future: then everything is looked at once more.
        (seen_ms if seen_ms <= now_ms() else 0,),
    )
    return [row["id"] for row in rows]


def _note_deletions_seen(db: sqlite_utils.Database, until_ms: int, forgotten: Iterable[str]) -> None:
    """Record that these runs have lost their texts, and that deletions before then were looked at."""
    for run_id in forgotten:
        sql.change(db, "UPDATE runs SET repeatable = 0 WHERE id = ?", (run_id,))
    # A run that is still on keeps its texts until it is over: what was deleted since it began is seen again.
    begun_ms = sql.value(db, "SELECT min(created_ms) FROM runs WHERE state = 'running'")
    key_values.put(db, _DELETIONS_SEEN, str(until_ms if begun_ms is None else min(until_ms, begun_ms)))
