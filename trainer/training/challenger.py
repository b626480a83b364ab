"""A challenger: a fresh LoRA adapter on all eligible training rows, saved under its content hash.

Never continued from the champion: drift doesn't compound, and erasing a member's data is an omission.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import structlog
import torch
from peft import PeftModel

from bot.serving.model.loading import LoadedBase
from bot.serving.model.training_memory import Load
from storage.config_sections import TrainerConfig
from storage.sentences import Sentence
from trainer.data.encoding import Codec, PreferenceExample
from trainer.data.examples import BaseCodec, Material, dpo_examples, gather
from trainer.data.general_replies import BaseReply
from trainer.data.rows import PreferencePair
from trainer.data.snapshot import Snapshot
from trainer.errors import TrainingError
from trainer.training import fitting, forward, objectives, phases, ranks, saving
from trainer.training.adapter import add_adapter, recompute_activations
from trainer.training.checkpoints import DONE, Checkpoint, Checkpointer
from trainer.training.fitting import Claim, Task
from trainer.training.loop import Clock, Tick, TrainingReport
from trainer.training.memory import load_of, widths_of
from trainer.training.objectives import Plan
from trainer.training.phases import DpoSettings, KtoSettings, SftSettings
from trainer.training.terms import BaseLogits

log = structlog.get_logger()

# How the training's progress is shared among its phases, as far as they take place.
PHASE_PARTS = {"sft": 0.35, "kto": 0.65, "dpo": 0.4, "ranked": 0.8}
# The time that supervised tuning may take of a training in which the model's own replies are ranked after it.
SFT_SHARE = 0.4
# And the most liked replies that it imitates there. They are only a start: a fresh adapter that learns them
# all learns to be its champion, a little less well (EXPERIMENTS, 15).
SFT_MOST = 48
# Settings that decide what is trained, as the adapter's card names them.
DECIDING = {
    "rank",
    "alpha",
    "sft_learning_rate",
    "kto_learning_rate",
    "dpo_learning_rate",
    "epochs",
    "kto_epochs",
    "dpo_epochs",
    "dpo_sft_weight",
    "ranked_rounds",
    "ranked_replies",
    "judge_hidden_states",
    "sft_batch_size",
    "beta",
    "batch_size",
    "dpo_batch_size",
    "batch_tokens",
    "max_length",
    "replay_share",
    "seed",
}

Progress = Callable[[float, Sentence], None]
OwnPairs = Callable[[PeftModel, int], list[PreferencePair]]
"""Asks the model as it is now for replies, in round 1, 2, ..., and returns the pairs that they make."""


@dataclass(frozen=True)
class Challenger:
    """A saved adapter. `plan` is what was really trained; the reports by phase say how."""

    adapter_id: str
    folder: Path
    plan: Plan
    reports: Mapping[str, TrainingReport]

    @property
    def seconds(self) -> float:
        """Return how long the gradient steps took."""
        return sum(report.seconds for report in self.reports.values())


def train_challenger(
    base: LoadedBase,
    snapshot: Snapshot,
    replay: Sequence[BaseReply],
    plan: Plan,
    settings: TrainerConfig,
    *,
    work: Path,
    adapters_dir: Path,
    steps: Mapping[str, int] | None = None,
    claim: Claim = fitting.alone,
    on_checkpoint: Callable[[], None] = lambda: None,
    own_pairs: OwnPairs | None = None,
    on_progress: Progress = lambda share, note: None,
    clock: Clock = time.monotonic,
) -> Challenger:
    """Train and save one challenger; `work` is the run's own folder, in which a checkpoint is kept.

    The same snapshot, replay, plan, settings, versions and thread count give the same adapter id, whether or
    not the training was interrupted. `steps` by phase repeats one that the clock shortened to so many;
    `claim` is how it comes by its memory; `own_pairs` is called in each round of an objective that ranks the
    model's own replies.

    Raises:
        MemoryShortError: it would not fit; nothing was allocated.
        TrainingError: nothing to learn from, no gradient, or a loss that is not a number.
        RunCancelledError: the run's folder was removed in the middle of it.
    """
    settings = objectives.fill_in(
        settings,
        base.info.linear_parameters + base.info.other_parameters,
        ranks=_ranks(plan, own_pairs),
    )
    codec = BaseCodec(base.tokenizer)
    most_liked = SFT_MOST if _ranks(plan, own_pairs) else None
    material = gather(codec, snapshot, replay, settings.max_length, most_liked)
    if not material.liked:
        raise TrainingError("There is no liked reply to train on.")
    checkpointer = Checkpointer(
        work,
        _fingerprint(base, snapshot, material, plan, settings, steps),
        settings.checkpoint_seconds,
        on_checkpoint,
    )
    task = Task(
        widths_of(base.model),
        _load(material, settings, ranks=_ranks(plan, own_pairs)),
        settings,
        base.device,
        exactly=steps is not None,
    )
    form = claim(partial(fitting.choose_beside, task, checkpointer))
    asked, settings = settings, settings.model_copy(update={"batch_tokens": form.batch_tokens})
    recompute_activations(base.model, form.recompute)
    model = add_adapter(base.model, settings)
    schedule = TrainingSchedule(
        model, codec, material, plan, settings, checkpointer, steps or {}, on_progress, clock, own_pairs
    )
    schedule.run()
    # A repeat takes its original's forwards as they are; in an older card they are left to the device.
    settings = asked if steps is not None else settings
    card = describe(base, snapshot, schedule.plan, settings, material, schedule.reports)
    adapter_id, folder = saving.save(
        model, base, card, snapshot=snapshot, work=work, adapters_dir=adapters_dir
    )
    return Challenger(adapter_id, folder, schedule.plan, schedule.reports)


@dataclass
class TrainingSchedule:
    """The phases of one training, in order. Decisions made on the way are stored with the checkpoint."""

    model: PeftModel
    codec: Codec
    material: Material
    plan: Plan
    settings: TrainerConfig
    checkpointer: Checkpointer
    steps: Mapping[str, int]
    on_progress: Progress
    clock: Clock
    own_pairs: OwnPairs | None = None
    reports: dict[str, TrainingReport] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._replay = BaseLogits(self.material.replay)

    def run(self) -> None:
        """Take every phase, or those that an interrupted process left."""
        self._recall()
        if finished := self.checkpointer.resume(DONE):
            finished.restore(self.model)
            return
        for phase, train in self._phases():
            if kind_of(phase) not in self.plan.phases or phase in self.reports:
                continue
            self.reports[phase] = train(self._tick(phase))
            if phase == "sft" and not self.steps:
                self.plan = ranks.broadcast_first(self._affordable())
            self._remember()
        self.checkpointer.write(Checkpoint.of(DONE, {}, self.model))

    def _phases(self) -> list[tuple[str, Callable[[Tick], TrainingReport]]]:
        rounds = range(1, self.settings.ranked_rounds + 1 if self.own_pairs else 1)
        ranked = [(f"ranked_{number}", partial(self._ranked, number)) for number in rounds]
        return [("sft", self._sft), ("kto", self._kto), ("dpo", self._dpo), *ranked]

    def _affordable(self) -> Plan:
        sft = self.reports["sft"]
        return objectives.within_budget(
            self.plan,
            tokens=self.material.tokens(self.settings),
            tokens_per_second=sft.tokens_per_second,
            spent_s=sft.seconds,
            settings=self.settings,
        )

    def _remember(self) -> None:
        self.checkpointer.state |= {
            "plan": {"objective": self.plan.objective, "reason": self.plan.reason.as_json()},
            "reports": {phase: asdict(report) for phase, report in self.reports.items()},
        }

    def _recall(self) -> None:
        if "plan" in self.checkpointer.state:
            plan = self.checkpointer.state["plan"]
            self.plan = Plan(plan["objective"], Sentence.from_json(plan["reason"]))
            found = self.checkpointer.state["reports"]
            self.reports = {phase: TrainingReport(**report) for phase, report in found.items()}

    def _tick(self, phase: str) -> Tick:
        parts = [kind_of(name) for name, _ in self._phases() if kind_of(name) in self.plan.phases]
        whole = sum(PHASE_PARTS[part] for part in parts)
        before = sum(PHASE_PARTS[kind_of(each)] for each in self.reports)
        part = PHASE_PARTS[kind_of(phase)]
        return lambda done, total: self.on_progress(
            (before + part * done / total) / whole,
            phases.step_note(kind_of(phase), done, total),
        )

    def _sft(self, on_step: Tick) -> TrainingReport:
        share = SFT_SHARE if _ranks(self.plan, self.own_pairs) else 1
        settings = SftSettings(
            learning_rate=self.settings.sft_learning_rate,
            epochs=self.settings.epochs,
            batch_size=self.settings.sft_batch_size,
            replay_share=self.settings.replay_share,
            seed=self.settings.seed,
            max_seconds=self.settings.max_train_minutes * 60 * share,
            max_steps=self.steps.get("sft"),
            batch_tokens=self.settings.batch_tokens,
        )
        return phases.train_sft(
            self.model, self.material.liked, self._replay, settings, **self._kept(on_step)
        )

    def _kto(self, on_step: Tick) -> TrainingReport:
        settings = KtoSettings(
            learning_rate=self.settings.kto_learning_rate,
            epochs=self.settings.kto_epochs,
            batch_size=self.settings.batch_size,
            beta=self.settings.beta,
            seed=self.settings.seed,
            batch_tokens=self.settings.batch_tokens,
        )
        return phases.train_kto(self.model, self.material.rated, settings, **self._kept(on_step))

    def _ranked(self, number: int, on_step: Tick) -> TrainingReport:
        """Learn from the model's own replies as it is now, and from what members preferred beside them."""
        phase = f"ranked_{number}"
        self.checkpointer.hold(phase, self.model)
        found = self.own_pairs(self.model, number) if self.own_pairs else []
        pairs = [*dpo_examples(self.codec, found, self.settings.max_length), *self.material.pairs]
        if not pairs:
            return TrainingReport()
        left_s = self.settings.max_train_minutes * 60 - sum(each.seconds for each in self.reports.values())
        rounds_left = self.settings.ranked_rounds - number + 1
        settings = replace(
            self._dpo_settings(),
            max_seconds=max(0.0, left_s) / rounds_left,
            max_steps=self.steps.get(phase),
        )
        return phases.train_dpo(
            self.model,
            pairs,
            settings,
            replay=self._replay,
            name=phase,
            **self._kept(on_step),
        )

    def _dpo(self, on_step: Tick) -> TrainingReport:
        return phases.train_dpo(
            self.model,
            self.material.pairs,
            self._dpo_settings(),
            replay=self._replay,
            **self._kept(on_step),
        )

    def _kept(self, on_step: Tick) -> dict[str, Any]:
        """Return what every phase keeps to, whatever it learns."""
        return {"checkpointer": self.checkpointer, "on_step": on_step, "clock": self.clock}

    def _dpo_settings(self) -> DpoSettings:
        return DpoSettings(
            learning_rate=self.settings.dpo_learning_rate,
            epochs=self.settings.dpo_epochs,
            batch_size=self.settings.dpo_batch_size,
            beta=self.settings.beta,
            sft_weight=self.settings.dpo_sft_weight,
            replay_share=self.settings.replay_share,
            seed=self.settings.seed,
            batch_tokens=self.settings.batch_tokens,
        )


def _load(material: Material, settings: TrainerConfig, *, ranks: bool) -> Load:
    """Measure what will go through the model: rows, pairs, and pairs of replies that are yet to come."""
    rows = list(material.forwarded)
    steps = [
        (material.liked, settings.sft_batch_size),
        (material.rated, settings.batch_size),
        ([pair.joined for pair in material.pairs], settings.dpo_batch_size),
    ]
    if ranks:
        longest = max((*material.liked, *material.rated), key=lambda each: len(each.ids))
        own = PreferenceExample(longest, longest).joined
        rows.append(own)
        steps.append(([own] * settings.dpo_batch_size, settings.dpo_batch_size))
    most = max(sum(sorted((len(each.ids) for each in kind), reverse=True)[:size]) for kind, size in steps)
    return load_of(rows, material.replay, most)


def _ranks(plan: Plan, own_pairs: OwnPairs | None) -> bool:
    return "ranked" in plan.phases and own_pairs is not None


def kind_of(phase: str) -> str:
    """Return which kind of phase it is: "ranked" of "ranked_2"."""
    return phase.partition("_")[0]


def _fingerprint(
    base: LoadedBase,
    snapshot: Snapshot,
    material: Material,
    plan: Plan,
    settings: TrainerConfig,
    steps: Mapping[str, int] | None,
) -> str:
    """Return a hash of everything that decides the bytes of a training: where one differs, start anew."""
    deciding = {
        "base": base.info.hash,
        "held_as": [base.execution, base.device],
        "snapshot": snapshot.content_hash,
        "material": material.content_hash,
        "objective": plan.objective,
        "settings": settings.model_dump(include=DECIDING | {"objective", "max_train_minutes"}),
        "steps": steps,
        "versions": _versions(base.device),
    }
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


def _versions(device: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "forward": forward.VERSION,
    }
    found |= {"workers": ranks.count()} if ranks.count() > 1 else {}
    return found | ({"gpu": torch.cuda.get_device_name(device)} if device.startswith("cuda") else {})


def describe(
    base: LoadedBase,
    snapshot: Snapshot,
    plan: Plan,
    settings: TrainerConfig,
    material: Material,
    reports: Mapping[str, TrainingReport],
) -> dict[str, Any]:
    """Return the adapter's card: what it is and what made it. No words of members, no times."""
    trained = {"sft": material.liked, "kto": material.rated, "dpo": material.pairs}
    counts = {phase: len(seen) if phase in reports else 0 for phase, seen in trained.items()}  # type: ignore[arg-type]
    return {
        "base": base.info.id,
        "base_hash": base.info.hash,
        "objective": plan.objective,
        "snapshot": snapshot.content_hash,
        "rehearsal": snapshot.rehearsal,
        "supervised_examples": counts["sft"],
        "kto_examples": counts["kto"],
        "dpo_pairs": counts["dpo"],
        "material": material.content_hash,
        "raters": snapshot.raters,
        "settings": settings.model_dump(include=DECIDING),
        "ranked_rounds": sum(kind_of(phase) == "ranked" for phase in reports),
        "steps": dict.fromkeys(trained, 0) | {phase: each.steps for phase, each in reports.items()},
        "versions": _versions(base.device),
    }
