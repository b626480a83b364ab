"""The engine as it works on a GPU, on a CPU: who decodes with whom, and what it writes."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from bot.serving.engine.engine import Engine, EngineOptions
from bot.serving.engine.events import SamplingOptions
from bot.serving.engine.gpu.decoder import GpuDecoder
from bot.serving.model.loading import load_base
from bot.serving.protocol import PRIORITY_BACKGROUND, PRIORITY_PEOPLE
from tests.bench.serving.strop_side import StepClock
from tests.bot.serving.builders import Caller, drain, memory_adapter

PROMPT = "Hello there! How are you today?"


@pytest.fixture
def clock() -> StepClock:
    return StepClock()


@pytest.fixture
def caller(tiny_folder: Path, clock: StepClock) -> Caller:
    """An engine that is not started: what is submitted before waits for its first step."""
    base = load_base(tiny_folder, "cpu", execution="dense")
    options = EngineOptions(
        context_tokens=256,
        slots=8,
        chunk_tokens=64,
        shared_chunk_tokens=64,
        forward_tokens=32,
        for_gpu=True,
    )
    return Caller(Engine(base, options, clock), base)


def steps(clock: StepClock) -> list[tuple[int, int]]:
    """How many prompt tokens each step read, and how many tokens it wrote."""
    counts = [(0, 0), *((step.prompt_tokens, step.generated_tokens) for step in clock.steps)]
    return [(after[0] - before[0], after[1] - before[1]) for before, after in pairwise(counts)]


def test_it_decodes_in_few_calls_and_writes_what_the_other_engine_writes(
    caller: Caller, tiny_folder: Path
) -> None:
    assert isinstance(caller.engine.runner.decoder, GpuDecoder)
    base = load_base(tiny_folder, "cpu", execution="dense")
    plain = Caller(Engine(base, EngineOptions(context_tokens=256, slots=4)), base)
    written = []
    for each in (caller, plain):
        each.engine.loaded_adapters.add(memory_adapter("one", each.engine.widths, seed=1))
        each.engine.start()
        written.append(
            [
                each.run(PROMPT, name, max_tokens=12, sampling=sampling, ignore_end=True).token_ids
                for sampling in (SamplingOptions(temperature=0.0), SamplingOptions(seed=3, top_p=0.9))
                for name in (None, "one")
            ]
        )
        each.engine.stop()
    assert written[0] == written[1]
    assert len(set(written[0])) == 4


def test_people_and_background_work_decode_in_one_forward(caller: Caller, clock: StepClock) -> None:
    waiting = [
        caller.submit(PROMPT, max_tokens=10, priority=priority, ignore_end=True)[1]
        for priority in (PRIORITY_PEOPLE, PRIORITY_BACKGROUND)
    ]
    caller.engine.start()
    for events in waiting:
        drain(events)
    caller.engine.stop()
    assert [wrote for read, wrote in steps(clock) if not read] == [2] * 8


def test_short_prompts_are_read_two_at_a_time(caller: Caller, clock: StepClock) -> None:
    prompts = [[7 + number, 8, 9] for number in range(7)]
    waiting = [
        caller.submit(prompt, max_tokens=8, ignore_end=True, user=f"user-{prompt[0]}")[1]
        for prompt in prompts
    ]
    caller.engine.start()
    for events in waiting:
        drain(events)
    caller.engine.stop()
    # A budget of 64 tokens, in which a forward counts 32 at least.
    assert [read for read, _ in steps(clock) if read] == [6, 6, 6, 3]
