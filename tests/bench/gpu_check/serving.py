"""Tokens a second and the time between tokens, by our engine, alone and beside a training."""

from __future__ import annotations

import contextlib
import queue
import select
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bot.serving.engine.engine import EngineOptions
from bot.serving.engine.events import Event, JobOptions, SamplingOptions
from tests.bench.gpu_check.random_base import as_adapter, build, lora_tensors
from tests.bench.gpu_check.results import Row
from tests.bench.gpu_check.setting import Setting
from tests.bench.serving.errors import BenchError
from tests.bench.serving.strop_side import EngineSide, decode_steps, wait_for_end
from tests.bench.serving.timing import quantile
from tests.bench.serving.workload import random_prompts
from tests.bench.shapes import Size

# As the bot asks, but that replies have one length.
SAMPLING = SamplingOptions(temperature=0.7, top_p=0.9, seed=1)
MOST_ADAPTERS = 8
BESIDE_STREAMS = (8, 1)
# Building a base and two steps of a training.
FIRST_STEPS_S = 120.0


@dataclass(frozen=True)
class Speed:
    """Seconds between tokens while all streams write, and tokens a second then and with prompts."""

    gaps_s: tuple[float, ...]
    streams: int
    whole_rate: float

    @property
    def rate(self) -> float:
        """Return tokens a second of all streams together."""
        return self.streams * len(self.gaps_s) / sum(self.gaps_s)

    @property
    def p99_ms(self) -> float:
        """Return the time between tokens that 99 % do not exceed."""
        return 1000 * quantile(self.gaps_s, 0.99)


def measure(setting: Setting, size: Size) -> Iterator[Row]:
    """Measure each number of streams with each number of adapters."""
    with _engine(setting, size) as side:
        serve(side, setting, setting.stream_counts[0])
        for counts in setting.stream_counts:
            streams, adapters = counts
            speed = serve(side, setting, counts)
            yield Row(
                "serving",
                size.name,
                f"{_named(streams, 'stream')}, {_named(adapters, 'adapter')}, {setting.precision} base",
                f"{speed.rate:.0f} tokens/s, with prompts {speed.whole_rate:.0f}; between two tokens "
                f"{1000 * statistics.median(speed.gaps_s):.1f} ms, 99 % {speed.p99_ms:.1f} ms",
                numbers={"rate": speed.rate, "whole_rate": speed.whole_rate, "p99_ms": speed.p99_ms},
            )


def measure_beside_training(setting: Setting, size: Size, training: Sequence[str]) -> Iterator[Row]:
    """Measure while a training runs on the same card, and while it is stopped.

    `training` is the command that trains for ever, without the name of the base's size.
    """
    counts = min(BESIDE_STREAMS, setting.stream_counts[-1])
    with _engine(setting, size) as side, _child([*training, size.name]) as child:
        serve(side, setting, counts)
        child.send_signal(signal.SIGSTOP)
        alone = serve(side, setting, counts)
        child.send_signal(signal.SIGCONT)
        beside = serve(side, setting, counts)
        if child.poll() is not None:
            raise BenchError("the training ended while it was measured")
    yield Row(
        "beside training",
        size.name,
        f"{_named(counts[0], 'stream')}, another process trains a base of the same size on the device",
        f"99 % between two tokens {beside.p99_ms:.1f} ms, without it {alone.p99_ms:.1f} ms; "
        f"{beside.rate:.0f} and {alone.rate:.0f} tokens/s",
        numbers={"beside_p99_ms": beside.p99_ms, "alone_p99_ms": alone.p99_ms},
    )


def serve(side: EngineSide, setting: Setting, counts: tuple[int, int]) -> Speed:
    """Let so many streams write under so many adapters, in turn."""
    streams, adapters = counts
    events: queue.Queue[Event] = queue.Queue()
    side.clock.steps.clear()
    start = side.clock.now()
    prompts = random_prompts(
        streams, setting.prompt_tokens, len(side.base.tokenizer), seed=start.generated_tokens
    )
    options = JobOptions(max_tokens=setting.tokens, sampling=SAMPLING, ignore_end=True)
    for number, prompt in enumerate(prompts):
        side.runtime.submit(f"adapter-{number % adapters}", prompt, options, events.put)
    for _ in prompts:
        wait_for_end(events)
    side.clock.settle(start.generated_tokens + streams * setting.tokens)
    steps = [start, *side.clock.steps]
    gaps = tuple(after.wall_s - before.wall_s for before, after in decode_steps(steps, streams))
    if not gaps:
        raise BenchError(f"no step had all {streams} streams writing")
    return Speed(gaps, streams, streams * setting.tokens / (steps[-1].wall_s - steps[0].wall_s))


@contextlib.contextmanager
def _engine(setting: Setting, size: Size) -> Iterator[EngineSide]:
    base = build(size, setting.device, in_4_bits=setting.in_4_bits)
    adapters = [
        as_adapter(f"adapter-{number}", lora_tensors(base.model, number)) for number in range(MOST_ADAPTERS)
    ]
    slots = max(streams for streams, _ in setting.stream_counts)
    context = setting.prompt_tokens + setting.tokens + 1
    # All prompts are read at once, so that all streams write for most of their replies.
    options = EngineOptions(
        context_tokens=context,
        slots=slots,
        chunk_tokens=8192,
        shared_chunk_tokens=8192,
        threads=1,
        for_gpu=True,
    )
    side = EngineSide(base, Path(), options=options)
    for adapter in adapters:
        side.engine.loaded_adapters.add(adapter)
    try:
        yield side
    finally:
        side.close()


@contextlib.contextmanager
def _child(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """Start a training and wait until it says that it is under way."""
    child = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
    try:
        if child.stdout is None or not select.select([child.stdout], [], [], FIRST_STEPS_S)[0]:
            raise BenchError(f"the training took no step within {FIRST_STEPS_S:.0f} s")
        if not child.stdout.readline():
            raise BenchError("the training ended at once; its error is above")
        yield child
    finally:
        child.kill()
        child.wait()


def _named(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
