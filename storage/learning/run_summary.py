"""A run as people are shown it: its figures in a row, and samples of what its challenger says.

The trainer keeps sample replies in the run's folder, never in the database: an erasure removes the folder,
and with it every copy of a member's words.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sqlite_utils

from storage.db import sql
from storage.errors import UnknownRowError
from storage.learning import runs
from storage.learning.evaluations import Headline, SplitCounts
from storage.learning.runs import Run
from storage.sentences import Sentence

FILE = "replies.jsonl"
# One prompt in so many is shown with both replies, the others are kept for blind votes.
SHOWN_IN = 3


@dataclass(frozen=True, slots=True)
class Sample:
    """Two replies to one prompt; `held_out` says that a member wrote it, in a held-out conversation."""

    prompt: str
    challenger: str
    champion: str
    held_out: bool


def find_by_prefix(db: sqlite_utils.Database, beginning: str) -> Run:
    """Return the run whose id begins so. Raises UnknownRowError where it is none, or not one."""
    rows = sql.many(db, "SELECT id FROM runs WHERE substr(id, 1, ?) = ?", (len(beginning), beginning))
    if not rows:
        raise UnknownRowError("No run begins with {beginning}.", beginning=repr(beginning))
    if len(rows) > 1:
        raise UnknownRowError("Several runs begin with {beginning}.", beginning=repr(beginning))
    return runs.expect(db, rows[0]["id"])


def may_be_shown(prompt: str) -> bool:
    """Whether replies to a prompt may be shown under their writers' names, in a report or on a card.

    By the prompt's text alone: whoever has read an earlier run's report would know the champion's words
    again, and not vote blindly.
    """
    return zlib.crc32(prompt.encode()) % SHOWN_IN == 0


def samples(runs_dir: Path, run_id: str, limit: int, *, general_only: bool = False) -> list[Sample]:
    """Return up to `limit` samples that may be shown and differ; none where a run has none or lost them.

    With `general_only` prompts that a member wrote are left out.
    """
    found: list[Sample] = []
    try:
        with (runs_dir / run_id / FILE).open(encoding="utf-8") as lines:
            for sample in _differing(lines):
                if len(found) == limit:
                    break
                if not (general_only and sample.held_out):
                    found.append(sample)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # Scrubbed by an erasure, cut short by a crash, or written by another version: nothing to show.
        return []
    return found


def _differing(lines: Iterable[str]) -> Iterator[Sample]:
    for line in lines:
        pair = json.loads(line)
        challenger, champion = pair["challenger"]["text"].strip(), pair["champion"]["text"].strip()
        asked = [message["content"] for message in pair["messages"] if message["role"] == "user"]
        if asked and may_be_shown(asked[-1]) and challenger and champion and challenger != champion:
            yield Sample(asked[-1], challenger, champion, pair["group"] is not None)


@dataclass(frozen=True, slots=True)
class Summary:
    """One run: how it came out, on what, and what it took. None: the run did not record it, or not yet.

    `seconds`, `cpu_s`, `peak_bytes` and `energy_j` are of the run's process, without votes and canary.
    """

    id: str
    scope: str
    trigger: str
    state: str
    outcome: str | None
    message: Sentence
    adapter_id: str | None
    champion_id: str | None
    created_ms: int
    started_ms: int | None
    finished_ms: int | None
    gain: Headline | None
    train: SplitCounts | None
    raters: int | None
    objective: str
    steps: int | None
    planned_steps: int | None
    training_s: float
    seconds: float | None
    cpu_s: float | None
    peak_bytes: int | None
    gpu_peak_bytes: int | None
    energy_j: float | None

    @classmethod
    def of(cls, run: Run) -> Summary:
        """Sum a run up."""
        found, process = run.metrics, run.metrics.process
        phases = found.training.phases.values()
        return cls(
            **{name: getattr(run, name) for name in _OF_THE_RUN},
            gain=found.headline,
            train=found.data.train,
            raters=found.data.raters,
            objective=found.training.objective,
            steps=sum(each.steps for each in phases) if phases else None,
            planned_steps=found.training.planned_steps,
            training_s=sum(each.seconds for each in phases),
            seconds=process.seconds if process else None,
            cpu_s=process.cpu_s if process else None,
            peak_bytes=process.peak_bytes if process else None,
            gpu_peak_bytes=process.gpu_peak_bytes if process else None,
            energy_j=process.energy_j if process else None,
        )

    def as_json(self) -> dict[str, Any]:
        """Return it for scripts."""
        return asdict(self) | {"message": str(self.message)}


_OF_THE_RUN = (
    "id", "scope", "trigger", "state", "outcome", "message", "adapter_id", "champion_id", "created_ms",
    "started_ms", "finished_ms",
)  # fmt: skip


def count(db: sqlite_utils.Database, scope: str | None) -> int:
    """Return how many runs there are, of a scope or of all."""
    return int(sql.value(db, "SELECT count(*) FROM runs WHERE ?1 IS NULL OR scope = ?1", (scope,)))


def page(db: sqlite_utils.Database, scope: str | None, *, skip: int = 0, limit: int = 20) -> list[Summary]:
    """Return runs of a scope, or of all, the newest first."""
    rows = sql.many(
        db,
        "SELECT id FROM runs WHERE ?1 IS NULL OR scope = ?1 ORDER BY rowid DESC LIMIT ?2 OFFSET ?3",
        (scope, limit, skip),
    )
    return [Summary.of(runs.expect(db, row["id"])) for row in rows]


@dataclass(frozen=True, slots=True)
class Cost:
    """What the runs of some time took together; `energy_j` is None where no machine told it."""

    runs: int
    seconds: float
    cpu_s: float
    peak_bytes: int
    energy_j: float | None

    def text(self) -> str:
        """Say it in one sentence."""
        energy = "" if self.energy_j is None else f", {self.energy_j / 3600:.1f} Wh"
        return (
            f"{self.runs} training runs took {self.seconds / 60:.0f} min, {self.cpu_s / 60:.0f} min of "
            f"processor time and at most {self.peak_bytes / 1e9:.1f} GB of memory{energy}."
        )


def cost_since(db: sqlite_utils.Database, scope: str, since_ms: int) -> Cost | None:
    """Return what a scope's runs since then took, of those that recorded it; None where there are none."""
    ids = sql.many(db, "SELECT id FROM runs WHERE scope = ? AND created_ms >= ?", (scope, since_ms))
    found = [each for row in ids if (each := runs.expect(db, row["id"]).metrics.process) is not None]
    if not found:
        return None
    energy = [each.energy_j for each in found if each.energy_j is not None]
    return Cost(
        len(found),
        sum(each.seconds for each in found),
        sum(each.cpu_s for each in found),
        max(each.peak_bytes for each in found),
        sum(energy) if energy else None,
    )
