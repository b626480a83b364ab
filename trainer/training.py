"""Gradient steps: supervised tuning with replay of the base, KTO on all ratings, DPO on preference pairs.

One loop takes them all: a phase is a list of steps, planned before the first one, and a few terms whose
weighted sum is the loss. The loop is ours, over PEFT's LoRA layers: TRL's trainers drop columns that they
do not know, and with them the weight of each rating, and they have no replay term. The same examples,
settings, versions and threads give the same bytes, also where a training was interrupted and went on from
its checkpoint; where a time limit cut the steps, give the steps that were taken as `max_steps`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn

from trainer import losses
from trainer.checkpoints import Keeper, Moment
from trainer.encoding import Example
from trainer.errors import DivergedError, GradientLostError
from trainer.losses import TokenScores
from trainer.packing import bins, pack, within_blocks

# Tokens in one forward: more gains nothing on a CPU and costs memory in the output head.
BATCH_TOKENS_CPU = 768
BATCH_TOKENS_GPU = 8192
WARM_UP_SHARE = 0.1
CLIP_NORM = 1.0
# After so many steps the speed is known, and the rest is planned to end in time.
PROBE_STEPS = 3
# The class masses of KTO: liked to disliked between 1:1 and 4:3 (equation 8 of arXiv 2402.01306).
LIKED_MASS = 1.15

Tick = Callable[[int, int], None]
"""Called after each optimiser step with (steps done, steps in all); may raise to stop the training."""

Indices: TypeAlias = tuple[int, ...]
Step: TypeAlias = tuple[Indices, ...]
"""What one optimiser step looks at: for each term of its phase the indices of that term's examples."""


@dataclass(frozen=True)
class SftSettings:
    """Supervised tuning. `replay_share` is the replay's part of all completion tokens seen.

    `max_seconds` shortens a training that would take longer; `max_steps` repeats one that was shortened.
    `batch_tokens` 0, here and below: what suits the device.
    """

    learning_rate: float
    epochs: int
    batch_size: int
    replay_share: float
    seed: int
    max_seconds: float = math.inf
    max_steps: int | None = None
    batch_tokens: int = 0


@dataclass(frozen=True)
class KtoSettings:
    """Kahneman-Tversky optimisation; `beta` is the strength of the pull towards the reference."""

    learning_rate: float
    epochs: int
    batch_size: int
    beta: float
    seed: int
    batch_tokens: int = 0


@dataclass(frozen=True)
class DpoSettings:
    """Direct preference optimisation, with `sft_weight` of supervised loss on the chosen replies."""

    learning_rate: float
    epochs: int
    batch_size: int
    beta: float
    sft_weight: float
    seed: int
    replay_share: float = 0.0
    max_seconds: float = math.inf
    max_steps: int | None = None
    batch_tokens: int = 0


@dataclass
class TrainingReport:
    """What a phase did: losses by step, tokens seen and seconds taken; `planned` steps in all, once known."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    shortened: bool = False
    losses: list[float] = field(default_factory=list)
    planned: int | None = None

    @property
    def tokens_per_second(self) -> float:
        """Return the measured speed, 0.0 before the first step."""
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class PreferenceExample:
    """Two completions of one prompt, and how much the preference of the first counts."""

    chosen: Example
    rejected: Example
    weight: float = 1.0


class Term(Protocol):
    """One part of a phase's loss."""

    def prepare(self, model: nn.Module, steps: Sequence[Indices], kept: Tensor | None) -> Tensor | None:
        """Compute, before the phase's first step, what the term measures against; return what to keep of it.

        `kept` is what it returned in a process that was interrupted: the reference it began with.
        """

    def backward(self, model: nn.Module, number: int, chosen: Indices) -> float:
        """Accumulate the gradient of step `number` on the chosen examples; return the (weighted) loss."""

    def tokens(self, chosen: Indices) -> int:
        """Return how many tokens the chosen examples have."""


@dataclass(frozen=True)
class Phase:
    """Steps with one optimiser. `max_seconds` and `max_steps` may end it after fewer than planned."""

    name: str
    learning_rate: float
    steps: tuple[Step, ...]
    terms: tuple[Term, ...]
    max_seconds: float = math.inf
    max_steps: int | None = None


def train_sft(
    model: nn.Module,
    liked: Sequence[Example],
    replay: Sequence[Example],
    settings: SftSettings,
    *,
    keeper: Keeper | None = None,
    on_step: Tick = lambda done, total: None,
) -> TrainingReport:
    """Tune the adapter on liked replies, held near the base on the base's own replies to general prompts.

    Raises what :func:`train` raises.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    replayed = _replay_order(replay, generator)
    steps: list[Step] = []
    for _ in range(settings.epochs):
        order = torch.randperm(len(liked), generator=generator).tolist()
        for at in range(0, len(order), settings.batch_size):
            batch = tuple(order[at : at + settings.batch_size])
            wanted = sum(liked[i].completion_length for i in batch)
            steps.append((batch, _replay_for(wanted, replay, replayed, settings.replay_share)))
    limit = settings.batch_tokens or batch_tokens(model)
    phase = Phase(
        "sft",
        settings.learning_rate,
        tuple(steps),
        (Supervised(liked, limit), Replay(replay, settings.replay_share, limit)),
        settings.max_seconds,
        settings.max_steps,
    )
    return train(model, phase, keeper=keeper, on_step=on_step)


def train_kto(
    model: nn.Module,
    rated: Sequence[Example],
    settings: KtoSettings,
    *,
    keeper: Keeper | None = None,
    on_step: Tick = lambda done, total: None,
) -> TrainingReport:
    """Push the adapter towards liked and away from disliked replies; its present state is the reference.

    Batches are drawn shuffled and the remainder is dropped, since the divergence is estimated per batch.

    Raises what :func:`train` raises.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    size = min(settings.batch_size, len(rated))
    steps: list[Step] = []
    for _ in range(settings.epochs):
        order = torch.randperm(len(rated), generator=generator).tolist()
        steps += [(tuple(order[at * size : (at + 1) * size]),) for at in range(len(rated) // size)]
    term = Kto(rated, settings.beta, settings.batch_tokens or batch_tokens(model))
    return train(
        model, Phase("kto", settings.learning_rate, tuple(steps), (term,)), keeper=keeper, on_step=on_step
    )


def train_dpo(
    model: nn.Module,
    pairs: Sequence[PreferenceExample],
    settings: DpoSettings,
    *,
    replay: Sequence[Example] = (),
    name: str = "dpo",
    keeper: Keeper | None = None,
    on_step: Tick = lambda done, total: None,
) -> TrainingReport:
    """Push the adapter from rejected to chosen replies; its present state is the reference.

    With replies to `replay` it is held near the base as in supervised tuning.
    `name` tells a checkpoint of this phase from those of others.

    Raises what :func:`train` raises.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    replayed = _replay_order(replay, generator)
    steps: list[Step] = []
    for _ in range(settings.epochs):
        order = torch.randperm(len(pairs), generator=generator).tolist()
        for at in range(0, len(order), settings.batch_size):
            batch = tuple(order[at : at + settings.batch_size])
            wanted = sum(pairs[i].chosen.completion_length for i in batch)
            steps.append((batch, _replay_for(wanted, replay, replayed, settings.replay_share)))
    limit = settings.batch_tokens or batch_tokens(model)
    phase = Phase(
        name,
        settings.learning_rate,
        tuple(steps),
        (
            Dpo(pairs, settings.beta, settings.sft_weight, limit),
            Replay(replay, settings.replay_share, limit),
        ),
        settings.max_seconds,
        settings.max_steps,
    )
    return train(model, phase, keeper=keeper, on_step=on_step)


def train(
    model: nn.Module,
    phase: Phase,
    *,
    keeper: Keeper | None = None,
    on_step: Tick = lambda done, total: None,
) -> TrainingReport:
    """Take a phase's steps, or those that an interrupted process left to take.

    Raises:
        GradientLostError: a LoRA layer receives no gradient.
        DivergedError: the loss is not a number.
    """
    optimiser = _optimiser(model, phase.learning_rate)
    moment = keeper.resume(phase.name) if keeper else None
    report = TrainingReport(**moment.report) if moment else TrainingReport()
    started = time.monotonic()
    references = _prepare(model, phase, moment)
    if moment:
        moment.restore(model, optimiser)
    else:
        report.seconds = time.monotonic() - started
        if keeper:
            keeper.keep(Moment.of(phase.name, report.__dict__, model, optimiser, references))
    model.train()
    while report.steps < _total(phase, report):
        started = time.monotonic()
        step = phase.steps[report.steps]
        _set_rate(optimiser, phase.learning_rate, report.steps, _total(phase, report))
        work = list(zip(phase.terms, step, strict=True))
        loss = sum(term.backward(model, report.steps, chosen) for term, chosen in work)
        _step(model, optimiser, loss)
        report.steps += 1
        report.tokens += sum(term.tokens(chosen) for term, chosen in work)
        report.seconds += time.monotonic() - started
        report.losses.append(loss)
        whole = _total(phase, report)
        if report.steps == PROBE_STEPS:
            report.planned = _steps_in_time(phase, report)
            report.shortened = report.planned < len(phase.steps)
        if keeper and (report.steps == PROBE_STEPS or keeper.due):
            keeper.keep(Moment.of(phase.name, report.__dict__, model, optimiser, references))
        on_step(report.steps, whole)
    return report


def _total(phase: Phase, report: TrainingReport) -> int:
    return len(phase.steps) if report.planned is None else report.planned


def _steps_in_time(phase: Phase, report: TrainingReport) -> int:
    """Return how many steps to take in all, from the speed of the first ones; never fewer than were taken."""
    total = len(phase.steps)
    if phase.max_steps is not None:
        return max(report.steps, min(total, phase.max_steps))
    in_time = phase.max_seconds / max(report.seconds / report.steps, 1e-9)
    return total if in_time >= total else max(report.steps, int(in_time))


def _prepare(model: nn.Module, phase: Phase, moment: Moment | None) -> list[Tensor | None]:
    """Let each term compute its reference, or take the one that the phase began with."""
    kept = moment.references if moment else [None] * len(phase.terms)
    model.eval()
    with torch.no_grad():
        return [
            term.prepare(model, [step[place] for step in phase.steps], kept[place])
            for place, term in enumerate(phase.terms)
        ]


# ---------------------------------------------------------------------------------------------------- terms
class Supervised:
    """The mean loss of a token, each counted with its example's weight."""

    def __init__(self, examples: Sequence[Example], limit: int) -> None:
        self._examples = examples
        self._limit = limit

    def prepare(self, model: nn.Module, steps: Sequence[Indices], kept: Tensor | None) -> None:
        """It measures against nothing."""

    def backward(self, model: nn.Module, number: int, chosen: Indices) -> float:
        """Accumulate the gradient of the mean weighted token loss of one batch; return that loss."""
        batch = [self._examples[i] for i in chosen]
        mass = sum(example.weight * example.completion_length for example in batch)
        total = 0.0
        for group in bins(batch, self._limit):
            examples = [batch[i] for i in group]
            scores = score(model, examples)
            weights = scores.logps.new_tensor([example.weight for example in examples])
            total += _backward(losses.supervised(scores, weights) / mass)
        return total

    def tokens(self, chosen: Indices) -> int:
        """Return how many tokens the chosen examples have."""
        return sum(len(self._examples[i].ids) for i in chosen)


class Replay:
    """The mean divergence from the base over replayed tokens, in proportion to their share of all tokens."""

    def __init__(self, examples: Sequence[Example], share: float, limit: int) -> None:
        self._examples = examples
        self._factor = share / max(1 - share, 1e-6)
        self._limit = limit
        self._base: list[Tensor] = []

    def prepare(self, model: nn.Module, steps: Sequence[Indices], kept: Tensor | None) -> None:
        """Ask the base; it answers the same at any time."""
        if any(steps):
            self._base = base_distributions(model, self._examples)

    def backward(self, model: nn.Module, number: int, chosen: Indices) -> float:
        """Accumulate the gradient of the mean KL to the base; return it."""
        examples = [self._examples[i] for i in chosen]
        mass = sum(example.completion_length for example in examples)
        total = 0.0
        for group in bins(examples, self._limit):
            scores = score(model, [examples[i] for i in group])
            base = torch.cat([self._base[chosen[i]] for i in group])
            total += _backward(losses.divergence_from_base(scores, base) * (self._factor / mass))
        return total

    def tokens(self, chosen: Indices) -> int:
        """Return how many tokens the chosen examples have."""
        return sum(len(self._examples[i].ids) for i in chosen)


class Kto:
    """KTO's mean loss of a batch. The reference is computed once: no second copy of anything."""

    def __init__(self, rated: Sequence[Example], beta: float, limit: int) -> None:
        self._rated = rated
        self._beta = beta
        self._limit = limit
        self._scale = class_weights(rated)
        self._reference = torch.empty(0)

    def prepare(self, model: nn.Module, steps: Sequence[Indices], kept: Tensor | None) -> Tensor:
        """Score every batch and its mismatched twin, shape (steps, 2, batch)."""
        if kept is None:
            found = [self._both_totals(model, [self._rated[i] for i in chosen]) for chosen in steps]
            kept = torch.stack(found) if found else torch.empty(0)
        self._reference = kept.to(_device(model))
        return self._reference

    def _both_totals(self, model: nn.Module, batch: Sequence[Example]) -> Tensor:
        return torch.stack([totals(model, batch, self._limit), totals(model, mismatched(batch), self._limit)])

    def backward(self, model: nn.Module, number: int, chosen: Indices) -> float:
        """Accumulate the gradient of one batch; return its mean loss."""
        batch = [self._rated[i] for i in chosen]
        reference, reference_mismatched = self._reference[number]
        with torch.no_grad():
            divergence = losses.mismatch_divergence(
                totals(model, mismatched(batch), self._limit), reference_mismatched
            )
        total = 0.0
        for group in bins(batch, self._limit):
            examples = [batch[i] for i in group]
            policy = score(model, examples).totals
            liked = torch.tensor([example.liked for example in examples], device=policy.device)
            weights = policy.new_tensor([e.weight * self._scale[0 if e.liked else 1] for e in examples])
            loss = losses.kto(
                policy, reference[group], liked, weights, divergence=divergence, beta=self._beta
            )
            total += _backward(loss.sum() / len(batch))
        return total

    def tokens(self, chosen: Indices) -> int:
        """Return how many tokens the chosen examples have."""
        return sum(len(self._rated[i].ids) for i in chosen)


class Dpo:
    """DPO's mean loss of a batch of pairs, and the supervised loss of their chosen replies beside it.

    Without the second the likelihood of both may fall, as long as that of the rejected one falls faster
    (https://arxiv.org/abs/2404.19733).
    """

    def __init__(
        self, pairs: Sequence[PreferenceExample], beta: float, sft_weight: float, limit: int
    ) -> None:
        self._pairs = pairs
        self._beta = beta
        self._sft_weight = sft_weight
        self._limit = limit
        self._reference = torch.empty(0)

    def prepare(self, model: nn.Module, steps: Sequence[Indices], kept: Tensor | None) -> Tensor:
        """Score every pair, shape (pairs, 2): the chosen reply and the rejected one."""
        if kept is None:
            both = [example for pair in self._pairs for example in (pair.chosen, pair.rejected)]
            kept = totals(model, both, self._limit).view(-1, 2)
        self._reference = kept.to(_device(model))
        return self._reference

    def backward(self, model: nn.Module, number: int, chosen: Indices) -> float:
        """Accumulate the gradient of one batch; return its mean loss."""
        batch = [self._pairs[i] for i in chosen]
        mass = sum(pair.weight * pair.chosen.completion_length for pair in batch)
        total = 0.0
        for group in bins([joined(pair) for pair in batch], self._limit):
            pairs = [batch[i] for i in group]
            scores = score(model, [example for pair in pairs for example in (pair.chosen, pair.rejected)])
            policy = scores.totals.view(-1, 2)
            weights = policy.new_tensor([pair.weight for pair in pairs])
            reference = self._reference[[chosen[i] for i in group]]
            loss = losses.dpo(policy, reference, weights, beta=self._beta).sum() / len(batch)
            if self._sft_weight:
                loss = loss - self._sft_weight * (policy[:, 0] * weights).sum() / mass
            total += _backward(loss)
        return total

    def tokens(self, chosen: Indices) -> int:
        """Return how many tokens both sides of the chosen pairs have."""
        return sum(len(joined(self._pairs[i]).ids) for i in chosen)


def joined(pair: PreferenceExample) -> Example:
    """Return both sides as one example, to count their tokens: they go through the model together."""
    return Example(ids=(*pair.chosen.ids, *pair.rejected.ids), start=pair.chosen.start)


def _backward(loss: Tensor) -> float:
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item()


# ------------------------------------------------------------------------------------------------ one forward
def score(model: nn.Module, examples: Sequence[Example]) -> TokenScores:
    """Run one forward over a few examples and return what it says about their completions."""
    device = _device(model)
    packed = pack(examples)
    with within_blocks(model):
        output = model(
            input_ids=packed.ids.to(device),
            position_ids=packed.positions.to(device),
            use_cache=False,
            logits_to_keep=packed.predicting.to(device),
            blocks=packed.blocks,
        )
    logits = output.logits[0].float()
    targets = packed.targets.to(device)
    logps = logits.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
    return TokenScores(logps=logps, logits=logits, lengths=packed.lengths)


def totals(model: nn.Module, examples: Sequence[Example], limit: int) -> Tensor:
    """Return summed completion log-probabilities `(B,)` in the order of the examples, without a gradient."""
    found = torch.zeros(len(examples), device=_device(model))
    with torch.no_grad():
        for group in bins(examples, limit):
            found[group] = score(model, [examples[i] for i in group]).totals
    return found


def base_distributions(model: nn.Module, replay: Sequence[Example]) -> list[Tensor]:
    """Return the base's logits `(T, V)` over each replay completion, the adapter switched off.

    Kept as bfloat16: 64 replies of 40 tokens take 250 MB with a vocabulary of 49,152.
    """
    was_training = model.training
    model.eval()
    with torch.no_grad(), model.disable_adapter():  # type: ignore[operator]
        kept = [score(model, [example]).logits.to(torch.bfloat16) for example in replay]
    model.train(was_training)
    return kept


def class_weights(rated: Sequence[Example]) -> tuple[float, float]:
    """Return factors for liked and disliked examples that bring their masses to LIKED_MASS : 1, mean 1."""
    liked = sum(example.weight for example in rated if example.liked)
    disliked = sum(example.weight for example in rated if not example.liked)
    if not liked or not disliked:
        return 1.0, 1.0
    whole = liked + disliked
    return whole * LIKED_MASS / (1 + LIKED_MASS) / liked, whole / (1 + LIKED_MASS) / disliked


def mismatched(batch: Sequence[Example]) -> list[Example]:
    """Pair each prompt with the completion of the example before it, as TRL does for its KL estimate."""
    rotated = [batch[-1], *batch[:-1]]
    return [
        Example(ids=(*own.ids[: own.start], *other.ids[other.start :]), start=own.start)
        for own, other in zip(batch, rotated, strict=True)
    ]


def batch_tokens(model: nn.Module) -> int:
    """Return how many tokens one forward takes on the model's device, unless the operator says otherwise."""
    return BATCH_TOKENS_GPU if _device(model).type == "cuda" else BATCH_TOKENS_CPU


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


# -----------------------------------------------------------------------------------------one optimiser step
def _optimiser(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise GradientLostError("The model has no adapter to train: no parameter requires a gradient.")
    return torch.optim.AdamW(trainable, lr=rate, weight_decay=0.0)


def _set_rate(optimiser: torch.optim.Optimizer, rate: float, step: int, total: int) -> None:
    """Linear warm-up over the first tenth, then linear decay to a tenth of the rate."""
    warm_up = max(1, round(total * WARM_UP_SHARE))
    if step < warm_up:
        factor = (step + 1) / (warm_up + 1)
    else:
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
                f"No gradient reaches {name}: the base passes none back, and nothing would be learned."
            )


def _replay_order(replay: Sequence[Example], generator: torch.Generator) -> Iterator[int]:
    """Yield replay indices for ever, every one once before any twice."""
    while replay:
        yield from torch.randperm(len(replay), generator=generator).tolist()


def _replay_for(tokens: int, replay: Sequence[Example], order: Iterator[int], share: float) -> Indices:
    """Return as many replay examples as make up `share` of all completion tokens beside `tokens` others."""
    if not replay or share <= 0:
        return ()
    wanted = tokens * share / max(1 - share, 1e-6)
    chosen: list[int] = []
    have = 0
    while have < wanted and len(chosen) < len(replay):
        chosen.append(next(order))
        have += replay[chosen[-1]].completion_length
    return tuple(chosen)
