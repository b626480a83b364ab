"""Gradient steps: supervised tuning on liked replies with replay of the base, then KTO on all ratings.

The loops are ours, over PEFT's LoRA layers: TRL's trainers drop columns that they do not know, and with them
the weight of each rating, and they have no replay term. The same examples, settings, versions and threads
give the same bytes; where a time limit cut the steps, give the steps that were taken as `max_steps`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from trainer import losses
from trainer.encoding import Example
from trainer.errors import DivergedError, GradientLostError
from trainer.losses import TokenScores

# Tokens in one forward, padding included: more gains nothing on a CPU and costs memory in the output head.
MICRO_BATCH_TOKENS_CPU = 768
MICRO_BATCH_TOKENS_GPU = 8192
WARM_UP_SHARE = 0.1
CLIP_NORM = 1.0
# After so many steps the speed is known, and the rest is planned to end in time.
PROBE_STEPS = 3
# The class masses of KTO: liked to disliked between 1:1 and 4:3 (equation 8 of arXiv 2402.01306).
LIKED_MASS = 1.15

Tick = Callable[[int, int], None]
"""Called after each optimiser step with (steps done, steps in all); may raise to stop the training."""


@dataclass(frozen=True)
class SftSettings:
    """Supervised tuning. `replay_share` is the replay's part of all completion tokens seen.

    `max_seconds` shortens a training that would take longer; `max_steps` repeats one that was shortened.
    """

    learning_rate: float
    epochs: int
    batch_size: int
    replay_share: float
    seed: int
    max_seconds: float = math.inf
    max_steps: int | None = None


@dataclass(frozen=True)
class KtoSettings:
    """Kahneman-Tversky optimisation; `beta` is the strength of the pull towards the reference."""

    learning_rate: float
    epochs: int
    batch_size: int
    beta: float
    seed: int


@dataclass
class TrainingReport:
    """What a loop did: losses by step, tokens seen and seconds taken."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    shortened: bool = False
    losses: list[float] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        """Return the measured speed, 0.0 before the first step."""
        return self.tokens / self.seconds if self.seconds else 0.0


def train_sft(
    model: nn.Module,
    liked: Sequence[Example],
    replay: Sequence[Example],
    settings: SftSettings,
    *,
    pad_id: int,
    on_step: Tick = lambda done, total: None,
) -> TrainingReport:
    """Tune the adapter on liked replies, held near the base on the base's own replies to general prompts.

    Raises:
        GradientLostError: a LoRA layer receives no gradient.
        DivergedError: the loss is not a number.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    base_logits = base_distributions(model, replay, pad_id)
    optimiser = _optimiser(model, settings.learning_rate)
    steps_per_epoch = math.ceil(len(liked) / settings.batch_size)
    total = steps_per_epoch * settings.epochs
    report = TrainingReport()
    replayed = _replay_order(replay, generator)
    model.train()
    for _ in range(settings.epochs):
        order = torch.randperm(len(liked), generator=generator).tolist()
        for at in range(0, len(order), settings.batch_size):
            started = time.monotonic()
            batch = [liked[i] for i in order[at : at + settings.batch_size]]
            beside = _replay_for(batch, replay, replayed, settings.replay_share)
            _set_rate(optimiser, settings.learning_rate, report.steps, total)
            loss = _sft_backward(model, batch, pad_id)
            if beside:
                loss += _replay_backward(model, replay, beside, base_logits, settings.replay_share, pad_id)
            _step(model, optimiser, loss)
            report.steps += 1
            report.tokens += sum(len(example.ids) for example in batch)
            report.tokens += sum(len(replay[i].ids) for i in beside)
            report.seconds += time.monotonic() - started
            report.losses.append(loss)
            on_step(report.steps, total)
            if report.steps == PROBE_STEPS:
                whole, total = total, _steps_in_time(settings, report, total)
                report.shortened = total < whole
            if report.steps >= total:
                return report
    return report


def _steps_in_time(settings: SftSettings, report: TrainingReport, total: int) -> int:
    """Return how many steps to take in all, from the speed of the first ones; never fewer than were taken."""
    if settings.max_steps is not None:
        return max(report.steps, min(total, settings.max_steps))
    in_time = settings.max_seconds / max(report.seconds / report.steps, 1e-9)
    return total if in_time >= total else max(report.steps, int(in_time))


def train_kto(
    model: nn.Module,
    rated: Sequence[Example],
    settings: KtoSettings,
    *,
    pad_id: int,
    on_step: Tick = lambda done, total: None,
) -> TrainingReport:
    """Push the adapter towards liked and away from disliked replies; its present state is the reference.

    The reference's log-probabilities are computed once, before the first step: no second copy of anything.
    Batches are drawn shuffled and the remainder is dropped, since the divergence is estimated per batch.

    Raises:
        GradientLostError: a LoRA layer receives no gradient.
        DivergedError: the loss is not a number.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    size = min(settings.batch_size, len(rated))
    per_epoch = len(rated) // size
    batches = []
    for _ in range(settings.epochs):
        order = torch.randperm(len(rated), generator=generator).tolist()
        batches += [[rated[i] for i in order[at * size : (at + 1) * size]] for at in range(per_epoch)]
    optimiser = _optimiser(model, settings.learning_rate)
    report = TrainingReport()
    model.eval()
    started = time.monotonic()
    reference = _reference_totals(model, batches, pad_id)
    report.seconds = time.monotonic() - started
    model.train()
    scale = class_weights(rated)
    for number, batch in enumerate(batches):
        started = time.monotonic()
        _set_rate(optimiser, settings.learning_rate, number, len(batches))
        loss = _kto_backward(model, batch, reference[number], scale, settings.beta, pad_id)
        _step(model, optimiser, loss)
        report.steps += 1
        report.tokens += sum(len(example.ids) for example in batch)
        report.seconds += time.monotonic() - started
        report.losses.append(loss)
        on_step(report.steps, len(batches))
    return report


# ------------------------------------------------------------------------------------------------ one forward
def score(model: nn.Module, examples: Sequence[Example], pad_id: int) -> TokenScores:
    """Run one forward over a few examples and return what it says about their completions.

    Prompts are padded on the left, so that all completions end in the last column and only the last
    `T + 1` positions pass through the output head.
    """
    device = next(model.parameters()).device
    width = max(len(example.ids) for example in examples)
    keep = max(example.completion_length for example in examples)
    ids = torch.full((len(examples), width), pad_id, dtype=torch.long)
    attention = torch.zeros((len(examples), width), dtype=torch.long)
    mask = torch.zeros((len(examples), keep))
    for row, example in enumerate(examples):
        ids[row, width - len(example.ids) :] = torch.tensor(example.ids)
        attention[row, width - len(example.ids) :] = 1
        mask[row, keep - example.completion_length :] = 1.0
    ids, attention, mask = ids.to(device), attention.to(device), mask.to(device)
    positions = (attention.cumsum(-1) - 1).clamp(min=0)
    output = model(
        input_ids=ids,
        attention_mask=attention,
        position_ids=positions,
        use_cache=False,
        logits_to_keep=keep + 1,
    )
    logits = output.logits[:, -(keep + 1) : -1].float()
    targets = ids[:, width - keep :]
    logps = logits.log_softmax(-1).gather(-1, targets[..., None]).squeeze(-1)
    return TokenScores(logps=logps, mask=mask, logits=logits)


def micro_batches(examples: Sequence[Example], limit: int) -> Iterator[list[int]]:
    """Yield groups of indices whose padded size stays within `limit` tokens, of similar length together."""
    order = sorted(range(len(examples)), key=lambda i: (len(examples[i].ids), i))
    group: list[int] = []
    for i in order:
        if group and (len(group) + 1) * len(examples[i].ids) > limit:
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def base_distributions(model: nn.Module, replay: Sequence[Example], pad_id: int) -> list[Tensor]:
    """Return the base's logits `(T, V)` over each replay completion, the adapter switched off.

    Kept as bfloat16: 64 replies of 40 tokens take 250 MB with a vocabulary of 49,152.
    """
    was_training = model.training
    model.eval()
    with torch.no_grad(), model.disable_adapter():  # type: ignore[operator]
        kept = [score(model, [example], pad_id).logits[0].to(torch.bfloat16) for example in replay]
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


# -----------------------------------------------------------------------------------------one optimiser step
def _sft_backward(model: nn.Module, batch: Sequence[Example], pad_id: int) -> float:
    """Accumulate the gradient of the mean weighted token loss of one batch; return that loss."""
    mass = sum(example.weight * example.completion_length for example in batch)
    total = 0.0
    for group in micro_batches(batch, _token_limit(model)):
        examples = [batch[i] for i in group]
        scores = score(model, examples, pad_id)
        weights = scores.logps.new_tensor([example.weight for example in examples])
        loss = losses.supervised(scores, weights) / mass
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    return total


def _replay_backward(
    model: nn.Module,
    replay: Sequence[Example],
    chosen: Sequence[int],
    base_logits: Sequence[Tensor],
    share: float,
    pad_id: int,
) -> float:
    """Accumulate the gradient of the mean KL to the base over replay tokens, in proportion to their share."""
    examples = [replay[i] for i in chosen]
    mass = sum(example.completion_length for example in examples)
    factor = share / max(1 - share, 1e-6) / mass
    total = 0.0
    for group in micro_batches(examples, _token_limit(model)):
        scores = score(model, [examples[i] for i in group], pad_id)
        reference = torch.zeros_like(scores.logits)
        for row, i in enumerate(group):
            length = examples[i].completion_length
            reference[row, -length:] = base_logits[chosen[i]].float()
        loss = losses.divergence_from_base(scores, reference) * factor
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    return total


def _kto_backward(
    model: nn.Module,
    batch: Sequence[Example],
    reference: tuple[Tensor, Tensor],
    scale: tuple[float, float],
    beta: float,
    pad_id: int,
) -> float:
    """Accumulate the gradient of one KTO batch; return its mean loss."""
    limit = _token_limit(model)
    reference_totals, reference_mismatched = reference
    with torch.no_grad():
        divergence = losses.mismatch_divergence(
            _totals(model, mismatched(batch), pad_id, limit), reference_mismatched
        )
    total = 0.0
    for group in micro_batches(batch, limit):
        examples = [batch[i] for i in group]
        policy = score(model, examples, pad_id).totals
        liked = torch.tensor([example.liked for example in examples], device=policy.device)
        weights = policy.new_tensor([e.weight * scale[0 if e.liked else 1] for e in examples])
        loss = losses.kto(
            policy, reference_totals[group], liked, weights, divergence=divergence, beta=beta
        ).sum() / len(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    return total


def mismatched(batch: Sequence[Example]) -> list[Example]:
    """Pair each prompt with the completion of the example before it, as TRL does for its KL estimate."""
    rotated = [batch[-1], *batch[:-1]]
    return [
        Example(ids=(*own.ids[: own.start], *other.ids[other.start :]), start=own.start)
        for own, other in zip(batch, rotated, strict=True)
    ]


def _reference_totals(
    model: nn.Module, batches: Sequence[Sequence[Example]], pad_id: int
) -> list[tuple[Tensor, Tensor]]:
    limit = _token_limit(model)
    with torch.no_grad():
        return [
            (_totals(model, batch, pad_id, limit), _totals(model, mismatched(batch), pad_id, limit))
            for batch in batches
        ]


def _totals(model: nn.Module, examples: Sequence[Example], pad_id: int, limit: int) -> Tensor:
    """Return summed completion log-probabilities `(B,)` in the order of the examples."""
    totals = torch.zeros(len(examples), device=next(model.parameters()).device)
    for group in micro_batches(examples, limit):
        totals[group] = score(model, [examples[i] for i in group], pad_id).totals.detach()
    return totals


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
        raise DivergedError("The training loss is not a number: lower trainer.sft_learning_rate.")
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


def _replay_for(
    batch: Sequence[Example], replay: Sequence[Example], order: Iterator[int], share: float
) -> list[int]:
    """Return as many replay examples as make up `share` of the batch's completion tokens."""
    if not replay or share <= 0:
        return []
    wanted = sum(example.completion_length for example in batch) * share / max(1 - share, 1e-6)
    chosen: list[int] = []
    have = 0
    while have < wanted and len(chosen) < len(replay):
        chosen.append(next(order))
        have += replay[chosen[-1]].completion_length
    return chosen


def _token_limit(model: nn.Module) -> int:
    on_gpu = next(model.parameters()).device.type == "cuda"
    return MICRO_BATCH_TOKENS_GPU if on_gpu else MICRO_BATCH_TOKENS_CPU
