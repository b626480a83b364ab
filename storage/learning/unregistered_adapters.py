"""Adapters that a run has made and not yet registered: noted in its folder, so that none is ever left behind.

A run serves its half-trained adapter for a while to ask it for replies, and moves a finished one into place
before the registry knows it. If it is killed in between, the note says what has to go.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

FILE = "interim"


def note(run_folder: Path, adapter_id: str) -> None:
    """Remember that a run is about to make an adapter's folder."""
    known = list_unregistered(run_folder)
    if adapter_id not in known:
        (run_folder / FILE).write_text(
            "".join(f"{name}\n" for name in [*known, adapter_id]), encoding="utf-8"
        )


def list_unregistered(run_folder: Path) -> list[str]:
    """Return what a run has made, the oldest first."""
    try:
        return (run_folder / FILE).read_text(encoding="utf-8").split()
    except FileNotFoundError:
        return []


def remove(run_folder: Path, adapters_dir: Path, registered: Collection[str]) -> list[str]:
    """Remove the folders of a run's adapters that the registry does not know; return their names."""
    left = [name for name in list_unregistered(run_folder) if name not in registered]
    for name in left:
        shutil.rmtree(adapters_dir / name, ignore_errors=True)
    (run_folder / FILE).unlink(missing_ok=True)
    return left
