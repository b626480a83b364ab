"""What a run measured: figures with their intervals (`evaluations`), and all else (`runs.metrics_json`).

Runs of older versions lack what was not measured then, and an erasure takes every text out; figures stay.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, TypeVar

import sqlite_utils

from storage.db import sql
from storage.db.clock import now_ms
from storage.sentences import NOTHING, Sentence

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One metric of one run: `value` in [`low`, `high`] on `n` held-out items."""

    id: int
    run_id: str
    adapter_id: str | None
    champion_id: str | None
    metric: str
    value: float | None
    low: float | None
    high: float | None
    n: int | None
    detail: dict[str, Any]
    created_ms: int


def add(
    db: sqlite_utils.Database,
    *,
    run_id: str,
    adapter_id: str | None,
    champion_id: str | None,
    metric: str,
    value: float | None,
    low: float | None = None,
    high: float | None = None,
    n: int | None = None,
    detail: Mapping[str, Any] | None = None,
) -> int:
    """Store one metric and return its id."""
    values = {
        "run_id": run_id,
        "adapter_id": adapter_id,
        "champion_id": champion_id,
        "metric": metric,
        "value": value,
        "low": low,
        "high": high,
        "n": n,
        "detail_json": json.dumps(dict(detail or {})),
        "created_ms": now_ms(),
    }
    return sql.insert(db, "evaluations", values)


def list_for_run(db: sqlite_utils.Database, run_id: str) -> list[Evaluation]:
    """Return a run's metrics in the order they were measured."""
    rows = sql.many(db, "SELECT * FROM evaluations WHERE run_id = ? ORDER BY id", (run_id,))
    return [Evaluation(detail=json.loads(row.pop("detail_json")), **row) for row in rows]


def forget(db: sqlite_utils.Database, run_id: str) -> None:
    """Drop what a run has measured: it compares anew, with another champion."""
    sql.change(db, "DELETE FROM evaluations WHERE run_id = ?", (run_id,))


def record_process(db: sqlite_utils.Database, run_id: str, figures: ProcessFigures) -> None:
    """Keep what a run's process took with all else that the run measured, however it ended."""
    sql.change(
        db,
        "UPDATE runs SET metrics_json = json_set(metrics_json, '$.process', json(?)) WHERE id = ?",
        (json.dumps(asdict(figures)), run_id),
    )


@dataclass(frozen=True, slots=True)
class SplitCounts:
    """The rated replies of one split by their label, with their corrections and preference pairs."""

    liked: int = 0
    disliked: int = 0
    unclear: int = 0
    corrections: int = 0
    pairs: int = 0


@dataclass(frozen=True, slots=True)
class DataUsed:
    """What a run's snapshot held, by split, and whose ratings; `raters` is None where nobody counted."""

    splits: Mapping[str, SplitCounts] = field(default_factory=dict)
    raters: int | None = None
    quarantined_raters: int = 0
    doubted_raters: int = 0
    planted_corrections: int = 0
    replies: int = 0
    rated_by_asker_only: int = 0
    sources: Mapping[str, int] = field(default_factory=dict)
    influence: tuple[Mapping[str, Any], ...] = ()

    @property
    def train(self) -> SplitCounts | None:
        """The split that was trained on; None where the run did not record its data."""
        return self.splits.get("train")

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> DataUsed:
        """Read it as a run recorded it."""
        splits = {name: _read(SplitCounts, value[name]) for name in _SPLITS if value.get(name) is not None}
        return _read(cls, {**value, "splits": splits, "influence": tuple(value.get("influence") or ())})


_SPLITS = ("train", "development", "gate")


@dataclass(frozen=True, slots=True)
class PhaseFigures:
    """What one phase of a training did; `planned` steps before the clock shortened it, None in older runs."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    tokens_per_second: float = 0.0
    shortened: bool = False
    planned: int | None = None
    losses: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class TrainingFigures:
    """What was trained, why not on more (`reason`, may be empty), and what each phase did."""

    objective: str = ""
    reason: Sentence = NOTHING
    phases: Mapping[str, PhaseFigures] = field(default_factory=dict)

    @property
    def unranked(self) -> bool:
        """Whether a training ranked none of the model's own replies; False where nothing was trained."""
        return bool(self.objective) and "ranked" not in self.objective.split("_")

    @property
    def planned_steps(self) -> int | None:
        """The steps planned in all; None where a phase was shortened and did not say from how many."""
        found = [each.planned or (None if each.shortened else each.steps) for each in self.phases.values()]
        known = [steps for steps in found if steps is not None]
        return sum(known) if found and len(known) == len(found) else None

    @property
    def shortened(self) -> bool:
        """Whether a time limit ended a phase before its last step."""
        return any(phase.shortened for phase in self.phases.values())

    @property
    def cut_short(self) -> tuple[int, int] | None:
        """The steps done and planned of a training that its time limit ended early; None of any other."""
        done, planned = sum(each.steps for each in self.phases.values()), self.planned_steps
        return (done, planned) if planned is not None and done < planned else None

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TrainingFigures:
        """Read it as a run recorded it."""
        phases = {
            name: _read(PhaseFigures, each)
            for name, each in value.items()
            if isinstance(each, Mapping) and name != "reason_sentence"
        }
        reason = Sentence.from_json(value.get("reason_sentence") or value.get("reason") or "")
        return cls(value.get("objective") or "", reason, phases)


@dataclass(frozen=True, slots=True)
class Headline:
    """The gain in predicted P(liked) on `n` prompts, with its interval where there is one."""

    value: float
    n: int = 0
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Limit:
    """One guardrail: what was measured and the most that was allowed; an erasure takes its name."""

    value: float
    limit: float
    kept: bool
    name: str = ""


@dataclass(frozen=True, slots=True)
class VotesCast:
    """How the blind votes came out for the challenger."""

    wins: int
    losses: int
    ties: int


@dataclass(frozen=True, slots=True)
class CanaryFigures:
    """Rated conversations of both sides of a canary, and the share of them that was liked."""

    newcomer: int
    incumbent: int
    newcomer_liked: float
    incumbent_liked: float
    raters: int


@dataclass(frozen=True, slots=True)
class ProcessFigures:
    """What the run's process took, its children included: wall clock and processor time in seconds.

    `peak_bytes` is the resident memory of the largest process. `energy_j` is what the processors of the whole
    machine used meanwhile, `gpu_peak_bytes` what tensors held on a GPU; None where nobody says.
    """

    seconds: float
    cpu_s: float
    peak_bytes: int
    gpu_peak_bytes: int | None = None
    energy_j: float | None = None


@dataclass(frozen=True, slots=True)
class Metrics:
    """All that a run measured, as far as it came. `evaluation` holds the figures that only reports show.

    `votes_needed` is between how many and how many votes are likely to decide, `experiment` the table of a
    run that was one, `signals` what members' free signals told.
    """

    data: DataUsed = DataUsed()
    excluded: Mapping[str, int] | None = None
    training: TrainingFigures = TrainingFigures()
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    headline: Headline | None = None
    guardrails: tuple[Limit, ...] = ()
    decision: str = ""
    votes_needed: tuple[int, int] | None = None
    votes: VotesCast | None = None
    canary: CanaryFigures | None = None
    process: ProcessFigures | None = None
    experiment: Mapping[str, Any] | None = None
    signals: Mapping[str, Any] | None = None
    _stored: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Metrics:
        """Read them as the database keeps them."""
        return cls(
            data=DataUsed.from_json(value.get("data") or {}),
            excluded=value.get("excluded"),
            training=TrainingFigures.from_json(value.get("training") or {}),
            evaluation=value.get("evaluation") or {},
            headline=_whole(Headline, value.get("headline")),
            guardrails=tuple(filter(None, (_whole(Limit, each) for each in value.get("guardrails") or ()))),
            decision=value.get("decision") or "",
            votes_needed=_between(value.get("votes_needed")),
            votes=_whole(VotesCast, value.get("votes")),
            canary=_whole(CanaryFigures, value.get("canary")),
            process=_whole(ProcessFigures, value.get("process")),
            experiment=value.get("experiment"),
            signals=value.get("signals"),
            _stored=value,
        )

    def as_json(self) -> dict[str, Any]:
        """Return them as they are kept, also what this version does not know."""
        return dict(self._stored)


def _read(kind: type[T], value: Mapping[str, Any]) -> T:
    """Make a value of the fields that it knows; null is the same as absent."""
    known = {each.name for each in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: found for name, found in value.items() if name in known and found is not None})


def _between(stored: Any) -> tuple[int, int] | None:
    """Return a range; earlier versions kept one number."""
    if isinstance(stored, int):
        return stored, stored
    return (int(stored[0]), int(stored[1])) if isinstance(stored, list) and len(stored) == 2 else None


def _whole(kind: type[T], value: Mapping[str, Any] | None) -> T | None:
    """Make a value where all that it can't do without is there."""
    needed = [each.name for each in fields(kind) if each.default is MISSING]  # type: ignore[arg-type]
    if not value or any(value.get(name) is None for name in needed):
        return None
    return _read(kind, value)
