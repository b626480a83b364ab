"""The second half of an erasure: the files. If a process dies in between, the next start completes it."""

from pathlib import Path

from storage import backup, privacy
from storage.database import Database


def complete(database: Database, data_dir: Path, erasure: privacy.Erasure) -> bool:
    """Delete what an erasure left in files and backups, cut the write-ahead log, and mark it done.

    Returns False if a reader still needed the log: the erasure stays pending, call again later.
    """
    privacy.scrub_files(data_dir, erasure.runs, erasure.affected_adapters)
    backup.erase_from_backups(data_dir / "backups", erasure.user_id, "erasure")
    backup.record_erasures(database)
    if not database.checkpoint_truncate():
        return False
    database.write(lambda db: privacy.mark_scrubbed(db, erasure.id))
    # The mark itself went through the log, but holds no text.
    return True


def complete_pending(database: Database, data_dir: Path) -> int:
    """Complete every erasure that is still pending (call at start); return how many were."""
    waiting = database.read(privacy.pending)
    return sum(complete(database, data_dir, erasure) for erasure in waiting)
