"""What came of a training: one file in its folder, beside the adapter."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from storage.learning.evaluations import ProcessFigures
from storage.sentences import NOTHING, Sentence
from trainer.errors import RequestError, TrainingError
from trainer.training.challenger import Challenger
from trainer.training.loop import TrainingReport
from trainer.training.objectives import Plan

FILE = "outcome.json"
ADAPTERS = "adapters"
FORMAT = 1
NO_ADAPTER = Sentence("The training ended without an adapter.")

State = Literal["trained", "asks", "failed"]


@dataclass(frozen=True)
class Outcome:
    """How far a training came.

    `trained`: the adapter is complete, `plan` and `reports` by phase say what was done. `asks`: the adapter
    is the model as it is before round `asks_round`, whose ranked replies have to be put into the folder;
    then the training goes on from its checkpoint. `failed`: `error` says why. `process` is what it took so
    far, all attempts together.
    """

    state: State
    adapter_id: str = ""
    asks_round: int = 0
    error: Sentence = NOTHING
    plan: Plan | None = None
    reports: Mapping[str, TrainingReport] = field(default_factory=dict)
    process: ProcessFigures | None = None

    @classmethod
    def of(cls, trained: Challenger) -> Outcome:
        """Return the outcome of a training that ended."""
        return cls("trained", trained.adapter_id, plan=trained.plan, reports=trained.reports)

    def challenger(self, adapters_dir: Path) -> Challenger:
        """Return what was trained, lying in this folder.

        Raises:
            TrainingError: with the sentence of a training that failed.
        """
        if self.state != "trained" or self.plan is None:
            raise TrainingError(self.error or NO_ADAPTER)
        return Challenger(self.adapter_id, adapters_dir / self.adapter_id, self.plan, self.reports)

    def to_json(self) -> dict[str, Any]:
        """Return the outcome as plain JSON values."""
        plan = self.plan
        return {
            "format": FORMAT,
            "state": self.state,
            "adapter": self.adapter_id,
            "asks_round": self.asks_round,
            "error": self.error.as_json(),
            "plan": plan and {"objective": plan.objective, "reason": plan.reason.as_json()},
            "reports": {phase: asdict(report) for phase, report in self.reports.items()},
            "process": self.process and asdict(self.process),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Outcome:
        """Return the outcome of a file.

        Raises:
            RequestError: it is of another version, or not complete.
        """
        if value.get("format") != FORMAT:
            raise RequestError("The training's {file} is of another version of Strop.", file=FILE)
        try:
            plan, process = value["plan"], value["process"]
            return cls(
                state=value["state"],
                adapter_id=value["adapter"],
                asks_round=value["asks_round"],
                error=Sentence.from_json(value["error"]),
                plan=Plan(plan["objective"], Sentence.from_json(plan["reason"])) if plan else None,
                reports={phase: TrainingReport(**report) for phase, report in value["reports"].items()},
                process=ProcessFigures(**process) if process else None,
            )
        except (KeyError, TypeError) as error:
            raise RequestError(
                "The training's {file} can't be read: {reason}", file=FILE, reason=str(error)
            ) from error


def write(outcome: Outcome, folder: Path) -> Outcome:
    """Write an outcome into a training's folder; what earlier attempts took is added to its figures."""
    before = read(folder)
    if outcome.process and before and before.process:
        outcome = replace(outcome, process=_sum(before.process, outcome.process))
    partial = folder / f"{FILE}.partial"
    # Not sorted: the reports are in the order of the phases.
    partial.write_text(json.dumps(outcome.to_json(), indent=2), encoding="utf-8")
    partial.replace(folder / FILE)
    return outcome


def read(folder: Path) -> Outcome | None:
    """Return the outcome of a training's folder, None where there is none yet. Raises RequestError."""
    try:
        value = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RequestError(
            "The training's {file} can't be read: {reason}", file=FILE, reason=str(error)
        ) from error
    return Outcome.from_json(value)


def together(figures: Sequence[ProcessFigures]) -> ProcessFigures:
    """Return what processes took that trained side by side: the energy of several machines isn't known."""
    first, *others = figures
    gpu = [each.gpu_peak_bytes for each in figures if each.gpu_peak_bytes is not None]
    return ProcessFigures(
        seconds=first.seconds,
        cpu_s=round(sum(each.cpu_s for each in figures), 1),
        peak_bytes=max(each.peak_bytes for each in figures),
        gpu_peak_bytes=max(gpu, default=None),
        energy_j=None if others else first.energy_j,
    )


def _sum(before: ProcessFigures, now: ProcessFigures) -> ProcessFigures:
    gpu = [each.gpu_peak_bytes for each in (before, now) if each.gpu_peak_bytes is not None]
    energy = [each.energy_j for each in (before, now) if each.energy_j is not None]
    return ProcessFigures(
        seconds=round(before.seconds + now.seconds, 1),
        cpu_s=round(before.cpu_s + now.cpu_s, 1),
        peak_bytes=max(before.peak_bytes, now.peak_bytes),
        gpu_peak_bytes=max(gpu, default=None),
        energy_j=sum(energy) if energy else None,
    )
