"""Where a training that is on keeps its checkpoint, and who removes it: a run that is over needs none.

What is in it is the trainer's business (trainer/training/checkpoints.py). It lies in the run's folder, so
that an erasure removes it with the snapshot.
"""

from pathlib import Path

from storage.db import sql
from storage.db.database import Database

FILE = "checkpoint.safetensors"
PARTIAL = "checkpoint.partial"


def remove(folder: Path) -> bool:
    """Remove a run's checkpoint, a half-written one too; return whether there was any."""
    found = [path for path in (folder / FILE, folder / PARTIAL) if path.exists()]
    for path in found:
        path.unlink(missing_ok=True)
    return bool(found)


def remove_leftover(database: Database, runs_dir: Path) -> list[str]:
    """Remove the checkpoints of runs that are neither waiting nor on; return the runs' ids.

    A run's process removes its own when it ends; one that was killed with its run can't.
    """
    folders = {path.parent for path in runs_dir.glob("*/checkpoint.*")}
    if not folders:
        return []
    alive = database.read(
        lambda db: {
            row["id"] for row in sql.many(db, "SELECT id FROM runs WHERE state IN ('queued', 'running')")
        }
    )
    return [folder.name for folder in sorted(folders) if folder.name not in alive and remove(folder)]
