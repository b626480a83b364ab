"""The kinds of phases: which examples each of their steps sees, and which terms make up the loss."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from storage.sentences import Sentence
from trainer.data.encoding import Example, PreferenceExample
from trainer.training.checkpoints import Checkpointer
from trainer.training.forward import batch_tokens
from trainer.training.loop import Clock, Phase, Step, Tick, TrainingReport, train
from trainer.training.terms import BaseLogits, Dpo, Indices, Kto, Replay, Supervised


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


def train_sft(
    model: nn.Module,
    liked: Sequence[Example],
    replay: Sequence[Example] | BaseLogits,
    settings: SftSettings,
    *,
    checkpointer: Checkpointer | None = None,
    on_step: Tick = lambda done, total: None,
    clock: Clock = time.monotonic,
) -> TrainingReport:
    """Tune the adapter on liked replies, held near the base on the base's own replies to general prompts.

    `replay` may know already what the base says of them.

    Raises what :func:`train` raises.
    """
    replayed = _known(replay)
    steps = _beside_replay([example.completion_length for example in liked], replayed.examples, settings)
    limit = settings.batch_tokens or batch_tokens(model)
    phase = Phase(
        "sft",
        settings.learning_rate,
        steps,
        (Supervised(liked, limit), Replay(replayed, settings.replay_share, limit)),
        settings.max_seconds,
        settings.max_steps,
    )
    return train(model, phase, checkpointer=checkpointer, on_step=on_step, clock=clock)


def train_kto(
    model: nn.Module,
    rated: Sequence[Example],
    settings: KtoSettings,
    *,
    checkpointer: Checkpointer | None = None,
    on_step: Tick = lambda done, total: None,
    clock: Clock = time.monotonic,
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
        model,
        Phase("kto", settings.learning_rate, tuple(steps), (term,)),
        checkpointer=checkpointer,
        on_step=on_step,
        clock=clock,
    )


def train_dpo(
    model: nn.Module,
    pairs: Sequence[PreferenceExample],
    settings: DpoSettings,
    *,
    replay: Sequence[Example] | BaseLogits = (),
    name: str = "dpo",
    checkpointer: Checkpointer | None = None,
    on_step: Tick = lambda done, total: None,
    clock: Clock = time.monotonic,
) -> TrainingReport:
    """Push the adapter from rejected to chosen replies; its present state is the reference.

    With replies to `replay` it is held near the base as in supervised tuning.
    `name` tells a checkpoint of this phase from those of others.

    Raises what :func:`train` raises.
    """
    replayed = _known(replay)
    steps = _beside_replay([pair.chosen.completion_length for pair in pairs], replayed.examples, settings)
    limit = settings.batch_tokens or batch_tokens(model)
    phase = Phase(
        name,
        settings.learning_rate,
        steps,
        (
            Dpo(pairs, settings.beta, settings.sft_weight, limit),
            Replay(replayed, settings.replay_share, limit),
        ),
        settings.max_seconds,
        settings.max_steps,
    )
    return train(model, phase, checkpointer=checkpointer, on_step=on_step, clock=clock)


def _known(replay: Sequence[Example] | BaseLogits) -> BaseLogits:
    return replay if isinstance(replay, BaseLogits) else BaseLogits(replay)


def _beside_replay(
    lengths: Sequence[int], replay: Sequence[Example], settings: SftSettings | DpoSettings
) -> tuple[Step, ...]:
    """Plan batches of shuffled examples, whose completions have `lengths`, with their share of replay."""
    generator = torch.Generator().manual_seed(settings.seed)
    replayed = _replay_order(replay, generator)
    steps: list[Step] = []
    for _ in range(settings.epochs):
        order = torch.randperm(len(lengths), generator=generator).tolist()
        for at in range(0, len(order), settings.batch_size):
            batch = tuple(order[at : at + settings.batch_size])
            wanted = sum(lengths[i] for i in batch)
            steps.append((batch, _replay_for(wanted, replay, replayed, settings.replay_share)))
    return tuple(steps)


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


def step_note(kind: str, done: int, total: int) -> Sentence:
    """Say where a phase of a kind ("sft", "kto", "dpo", else the ranked replies) is."""
    step = {"done": done, "total": total}
    match kind:
        case "sft":
            return Sentence("liked replies, step {done} of {total}", **step)
        case "kto":
            return Sentence("all ratings, step {done} of {total}", **step)
        case "dpo":
            return Sentence("preference pairs, step {done} of {total}", **step)
        case _:
            return Sentence("own replies, ranked, step {done} of {total}", **step)
