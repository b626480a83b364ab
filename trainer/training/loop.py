"""One loop for every phase: a list of steps, planned before the first one, and terms whose sum is the loss.

The loop is ours, over PEFT's LoRA layers: TRL's trainers drop columns that they do not know, and with them
the weight of each rating, and they have no replay term. The same examples, settings, versions and threads
give the same bytes, also where a training was interrupted and went on from its checkpoint; where a time limit
cut the steps, give the steps that were taken as `max_steps`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor, nn

from trainer.errors import DivergedError, GradientLostError
from trainer.training import ranks
from trainer.training.checkpoints import Checkpoint, Checkpointer
from trainer.training.terms import Indices, Term, backward_of

# Adam's second moments are noise in its first steps: https://arxiv.org/abs/1910.04209.
WARM_UP_SHARE = 0.1
# The L2 norm of all gradients together, as transformers and TRL clip: one odd batch can't undo the rest.
CLIP_NORM = 1.0
# After so many steps the speed is known, and the rest is planned to end in time.
PROBE_STEPS = 3

Tick = Callable[[int, int], None]
"""Called after each optimiser step with (steps done, steps in all); may raise to stop the training."""

Clock: TypeAlias = Callable[[], float]

Step: TypeAlias = tuple[Indices, ...]
"""What one optimiser step looks at: for each term of its phase the indices of that term's examples."""


@dataclass(frozen=True)
class Phase:
    """Steps with one optimiser. `max_seconds` and `max_steps` may end it after fewer than planned."""

    name: str
    learning_rate: float
    steps: tuple[Step, ...]
    terms: tuple[Term, ...]
    max_seconds: float = math.inf
    max_steps: int | None = None


@dataclass
class TrainingReport:
    """What a phase did: losses by step, tokens seen and seconds taken; `planned` steps in all, once known.

    `scheduled` are the steps that its examples ask for, which the clock may cut to `planned`.
    """

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    shortened: bool = False
    losses: list[float] = field(default_factory=list)
    planned: int | None = None
    scheduled: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Return the measured speed, 0.0 before the first step."""
        return self.tokens / self.seconds if self.seconds else 0.0


def train(
    model: nn.Module,
    phase: Phase,
    *,
    checkpointer: Checkpointer | None = None,
    on_step: Tick = lambda done, total: None,
    clock: Clock = time.monotonic,
) -> TrainingReport:
    """Take a phase's steps, or those that an interrupted process left to take.

    `clock` is in seconds; one that stands still while the training does keeps its plan as it is.

    Raises:
        GradientLostError: a LoRA layer receives no gradient.
        DivergedError: the loss is not a number.
    """
    optimiser = _optimiser(model, phase.learning_rate)
    checkpoint = checkpointer.resume(phase.name) if checkpointer else None
    report = TrainingReport(**checkpoint.report) if checkpoint else TrainingReport()
    report.scheduled = len(phase.steps)
    started = clock()
    references = _prepare(model, phase, checkpoint)
    if checkpoint:
        checkpoint.restore(model, optimiser)
    else:
        report.seconds = clock() - started
        if checkpointer:
            checkpointer.write(Checkpoint.of(phase.name, report.__dict__, model, optimiser, references))
    model.train()
    while report.steps < _total(phase, report):
        started = clock()
        step = phase.steps[report.steps]
        _set_rate(optimiser, phase.learning_rate, report.steps, _total(phase, report))
        work = list(zip(phase.terms, step, strict=True))
        loss = backward_of(model, work, report.steps)
        loss = ranks.add_gradients(model, loss)
        _step(model, optimiser, loss)
        report.steps += 1
        report.tokens += sum(term.tokens(chosen) for term, chosen in work)
        report.seconds += clock() - started
        report.losses.append(loss)
        whole = _total(phase, report)
        if report.steps == PROBE_STEPS:
            report.planned = ranks.broadcast_first(_steps_in_time(phase, report))
            report.shortened = report.planned < len(phase.steps)
        if checkpointer and (report.steps == PROBE_STEPS or checkpointer.due):
            checkpointer.write(Checkpoint.of(phase.name, report.__dict__, model, optimiser, references))
        on_step(report.steps, whole)
    return report


def _total(phase: Phase, report: TrainingReport) -> int:
    return len(phase.steps) if report.planned is None else report.planned


def _steps_in_time(phase: Phase, report: TrainingReport) -> int:
    """Return how many steps to take in all, from the speed of the first ones; never fewer than were taken."""
    total = len(phase.steps)
    if phase.max_steps is not None:
        return max(report.steps, min(total, phase.max_steps))
    # The references' time is in the mean too, so that the plan is on the safe side.
    in_time = phase.max_seconds / max(report.seconds / report.steps, 1e-9)
    return total if in_time >= total else max(report.steps, int(in_time))


def _prepare(model: nn.Module, phase: Phase, checkpoint: Checkpoint | None) -> list[Tensor | None]:
    """Let each term compute its reference, or take the one that the phase began with."""
    kept = checkpoint.references if checkpoint else [None] * len(phase.terms)
    model.eval()
    with torch.no_grad():
        return [
            term.prepare(model, [step[place] for step in phase.steps], kept[place])
            for place, term in enumerate(phase.terms)
        ]


def _optimiser(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise GradientLostError("The model has no adapter to train: no parameter requires a gradient.")
    # No decay: replay and the references hold the adapter near the base, and decay would do it blindly.
    return torch.optim.AdamW(trainable, lr=rate, weight_decay=0.0)


def _set_rate(optimiser: torch.optim.Optimizer, rate: float, step: int, total: int) -> None:
    """Linear warm-up over the first tenth, then linear decay to a tenth of the rate."""
    warm_up = max(1, round(total * WARM_UP_SHARE))
    if step < warm_up:
        # From 1 / (n + 1), not 0: a first step at rate 0 would be wasted.
        factor = (step + 1) / (warm_up + 1)
    else:
        # Not to 0: the last steps would see examples and learn nothing from them.
        factor = 1 - 0.9 * (step - warm_up) / max(1, total - warm_up)
    for group in optimiser.param_groups:
        group["lr"] = rate * factor


def _step(model: nn.Module, optimiser: torch.optim.Optimizer, loss: float) -> None:
    if not math.isfinite(loss):
        raise DivergedError(
            "The training loss is not a number: lower trainer.sft_learning_rate, "
            "trainer.kto_learning_rate or trainer.dpo_learning_rate."
        )
    check_gradients(model)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    torch.nn.utils.clip_grad_norm_(trainable, CLIP_NORM, error_if_nonfinite=True)
    optimiser.step()
    # None and not zeros: the next step's first group then writes its gradient without adding to a buffer.
    optimiser.zero_grad(set_to_none=True)


def check_gradients(model: nn.Module) -> None:
    """Make sure that every LoRA layer received a gradient.

    After one eval forward a packed 4-bit base passes none back and says so only in a warning. `lora_B` is the
    one to look at: while B is still zero, A's gradient is zero by construction.

    Raises:
        GradientLostError: with the name of the first silent layer.
    """
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or "lora_B" not in name:
            continue
        if parameter.grad is None or not bool(parameter.grad.count_nonzero()):
            raise GradientLostError(
                "No gradient reaches {layer}: the base passes none back, and nothing would be learned.",
                layer=name,
            )
