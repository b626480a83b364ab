"""Checkpoints of a training run: the adapter, its optimiser state and the position in the plan of steps.

There is one file. It is written beside the old one and renamed, so a kill at any point leaves the last
complete one. The steps of a phase are planned from seed and examples before the first step, so the number
of steps taken is the whole position.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from storage.learning.checkpoints import FILE, PARTIAL
from trainer.errors import RunCancelledError
from trainer.training import ranks

log = structlog.get_logger()

FORMAT = 1
# The phase of a training whose last step is taken: the adapter is complete.
DONE = "done"


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training run between two steps.

    `report` says how many steps were taken; `tensors` are those of adapter and optimiser.

    `references` are log-probabilities from before the phase's first step, against which its terms measure.
    """

    phase: str
    report: dict[str, Any]
    tensors: dict[str, Tensor]
    references: list[Tensor | None]

    @classmethod
    def of(
        cls,
        phase: str,
        report: dict[str, Any],
        model: nn.Module,
        optimiser: torch.optim.Optimizer | None = None,
        references: Sequence[Tensor | None] = (),
    ) -> Checkpoint:
        """Take the present state of a model; nothing is copied, so write it before the next step."""
        tensors = {"random": torch.get_rng_state()}
        for name, parameter in _trainable(model):
            tensors[f"adapter.{name}"] = parameter.data
            state = optimiser.state[parameter] if optimiser else {}
            if state:
                tensors[f"first.{name}"] = state["exp_avg"]
                tensors[f"second.{name}"] = state["exp_avg_sq"]
        return cls(phase, dict(report), tensors, list(references))

    def restore(self, model: nn.Module, optimiser: torch.optim.Optimizer | None = None) -> None:
        """Put a model and its optimiser back where they were."""
        torch.set_rng_state(self.tensors["random"])
        for name, parameter in _trainable(model):
            parameter.data.copy_(self.tensors[f"adapter.{name}"])
            if optimiser and f"first.{name}" in self.tensors:
                optimiser.state[parameter] = {
                    "step": torch.tensor(float(self.report["steps"])),
                    "exp_avg": self.tensors[f"first.{name}"].to(parameter.device),
                    "exp_avg_sq": self.tensors[f"second.{name}"].to(parameter.device),
                }


@dataclass
class Checkpointer:
    """Writes the newest checkpoint of one training to the run's folder, about every `every_s` seconds.

    `fingerprint` is a hash of everything that decides the training; a checkpoint with another one is ignored.
    `state` holds the decisions made before the present phase; it is stored with every checkpoint.
    """

    folder: Path
    fingerprint: str
    every_s: float
    on_written: Callable[[], None] = lambda: None
    state: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._written_at = time.monotonic()
        self.found: Checkpoint | None = None
        if ranks.is_first():
            with contextlib.suppress(FileNotFoundError):
                self.found = self._read()
        self.found, self.state = ranks.broadcast_first((self.found, self.state))

    @property
    def due(self) -> bool:
        """Whether the next checkpoint is due."""
        return time.monotonic() - self._written_at >= self.every_s

    def resume(self, phase: str) -> Checkpoint | None:
        """Return the checkpoint found on disk if it belongs to this phase."""
        return self.found if self.found is not None and self.found.phase == phase else None

    def hold(self, phase: str, model: nn.Module) -> None:
        """Keep the model as it is before a phase, or put it back where an earlier attempt kept it.

        Between two phases minutes may pass, while others answer. Raises as `write`.
        """
        before = f"before_{phase}"
        if kept := self.resume(before):
            kept.restore(model)
        elif self.resume(phase) is None:
            self.write(Checkpoint.of(before, {}, model))

    def forget(self) -> None:
        """Ignore the checkpoint found on disk and start from the beginning."""
        self.found, self.state = None, {}

    def write(self, checkpoint: Checkpoint) -> None:
        """Replace the last checkpoint; on a full disk the checkpoint is lost, not the training.

        Only the first of several ranks writes.

        Raises:
            RunCancelledError: the run's folder is gone, as after an erasure.
        """
        if not ranks.is_first():
            return
        try:
            self._write(checkpoint)
        except (OSError, SafetensorError) as error:
            if not self.folder.is_dir():
                raise RunCancelledError("The run's folder was removed, as by an erasure.") from error
            log.warning("the checkpoint could not be written", error=str(error))
            (self.folder / PARTIAL).unlink(missing_ok=True)
        else:
            self.on_written()
        self._written_at = time.monotonic()

    def _write(self, checkpoint: Checkpoint) -> None:
        partial, references = self.folder / PARTIAL, checkpoint.references
        tensors = checkpoint.tensors | {
            f"reference.{place}": kept for place, kept in enumerate(references) if kept is not None
        }
        about = {
            "format": FORMAT,
            "belongs_to": self.fingerprint,
            "phase": checkpoint.phase,
            "report": checkpoint.report,
            "story": self.state,
            "terms": len(references),
        }
        ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(ready, partial, metadata={"about": json.dumps(about)})
        _sync(partial)
        partial.replace(self.folder / FILE)
        _sync(self.folder)

    def _read(self) -> Checkpoint | None:
        path = self.folder / FILE
        try:
            with safe_open(path, "pt") as opened:
                about = json.loads((opened.metadata() or {})["about"])
                if about["format"] != FORMAT or about["belongs_to"] != self.fingerprint:
                    log.info("checkpoint.other_training", run_id=self.folder.name)
                    return None
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except FileNotFoundError:
            raise
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            log.warning("the checkpoint can't be read", run_id=self.folder.name, error=str(error))
            return None
        self.state = about["story"]
        steps = about["report"].get("steps")
        log.info("training.resumed", run_id=self.folder.name, phase=about["phase"], steps=steps)
        references = [tensors.get(f"reference.{place}") for place in range(about["terms"])]
        return Checkpoint(about["phase"], about["report"], tensors, references)


def _trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
