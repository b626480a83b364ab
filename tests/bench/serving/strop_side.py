"""Strop's own engine, as the model server runs it, with a clock on its steps."""

from __future__ import annotations

import queue
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from bot.serving.engine.engine import Engine, EngineOptions
from bot.serving.engine.events import Event, Failed, Finished, JobOptions, SamplingOptions, TextPiece
from bot.serving.engine.metrics import Metrics
from bot.serving.engine.request import Job
from bot.serving.engine.runtime import Runtime
from bot.serving.first_word import FirstWordSign
from bot.serving.model.loading import LoadedBase, load_base
from bot.serving.protocol import PRIORITY_BACKGROUND
from tests.bench.serving.errors import BenchError
from tests.bench.serving.timing import Timing

GREEDY = SamplingOptions(temperature=0.0)
# Fewer requests at a time than the engine's bounded queue takes.
SCORED_AT_ONCE = 64
SETTLE_S = 10.0


@dataclass(frozen=True, slots=True)
class Step:
    """The end of one engine step: clocks in seconds, and the tokens read and written until then."""

    wall_s: float
    cpu_s: float
    prompt_tokens: int
    generated_tokens: int


class StepClock(Metrics):
    """The server's metrics, which also remember when each step ended."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []

    def observe_step(self, seconds: float) -> None:
        """Count one engine step, and keep the clocks."""
        super().observe_step(seconds)
        self.steps.append(self.now())

    def now(self) -> Step:
        """Return the clocks and counts of this moment."""
        return Step(time.perf_counter(), time.process_time(), self.prompt_tokens, self.generated_tokens)

    def settle(self, generated_tokens: int) -> None:
        """Wait for the clock of the step that wrote the last of ``generated_tokens``.

        A request's terminal event leaves a moment before its step is counted.
        """
        deadline = time.monotonic() + SETTLE_S
        while not self.steps or self.steps[-1].generated_tokens < generated_tokens:
            if time.monotonic() > deadline:
                raise BenchError("The engine has not counted its last step.")
            time.sleep(0.001)


class EngineSide:
    """An engine on a base, or on that in a folder as it is served by default.

    Adapters come from folders inside ``adapters_dir``.
    """

    name = "strop"

    def __init__(
        self,
        base: Path | LoadedBase,
        adapters_dir: Path,
        *,
        device: str = "cpu",
        options: EngineOptions | None = None,
        run_dir: Path | None = None,
    ) -> None:
        """``run_dir`` is where a training on this machine sees that somebody waits for a first word."""
        self.clock = StepClock()
        self.base = base if isinstance(base, LoadedBase) else load_base(base, device, precision="fast")
        waiting = {} if run_dir is None else {"on_waiting": FirstWordSign(run_dir).show}
        self.engine = Engine(self.base, options or EngineOptions(), self.clock, **waiting)
        self.runtime = Runtime(self.base, self.engine, adapters_dir)
        self.model = self.runtime.description.id
        self.engine.start()

    def use(self, adapter: Path) -> None:
        """Load an adapter folder; later requests use it."""
        self.runtime.load_adapter(adapter.name, adapter)
        self.model = adapter.name

    def submit(
        self, prompt: list[int], tokens: int, events: queue.Queue[Event], model: str | None = None
    ) -> Job:
        """Queue a greedy request that writes exactly ``tokens`` tokens."""
        options = JobOptions(max_tokens=tokens, sampling=GREEDY, ignore_end=True)
        return self.runtime.submit(model or self.model, prompt, options, events.put)

    def run(self, prompts: list[list[int]], tokens: int) -> Timing:
        """Write ``tokens`` tokens after every prompt, all streams together."""
        events: queue.Queue[Event] = queue.Queue()
        self.clock.steps.clear()
        start = self.clock.now()
        # No step before the last is queued: a small model's first stream could end before.
        with self.engine._wake:
            for prompt in prompts:
                self.submit(prompt, tokens, events)
        for _ in prompts:
            wait_for_end(events)
        self.clock.settle(start.generated_tokens + len(prompts) * tokens)
        return _timing([start, *self.clock.steps], len(prompts), len(prompts) * tokens)

    def score(self, prompts: Sequence[list[int]], model: str) -> list[tuple[float, ...]]:
        """Return the log-probability of every token but the first of each prompt, at low priority."""
        options = JobOptions(max_tokens=1, sampling=GREEDY, priority=PRIORITY_BACKGROUND, score=True)
        sinks: list[queue.Queue[Event]] = [queue.Queue() for _ in prompts]
        for at, prompt in enumerate(prompts):
            if at >= SCORED_AT_ONCE:
                _wait_until_ready(sinks[at - SCORED_AT_ONCE])
            self.runtime.submit(model, prompt, options, sinks[at].put)
        return [wait_for_end(sink).scores or () for sink in sinks]

    def close(self) -> None:
        """End the engine."""
        self.engine.stop()


def wait_for_end(events: queue.Queue[Event]) -> Finished:
    """Drop text until a request ends, and return how.

    Raises:
        BenchError: the request failed.
    """
    while isinstance(event := events.get(), TextPiece):
        pass
    if isinstance(event, Failed):
        raise BenchError(event.message)
    return event


def _wait_until_ready(events: queue.Queue[Event]) -> None:
    """Wait for the end of a request whose events stay for a later reader."""
    event = events.get()
    while isinstance(event, TextPiece):
        event = events.get()
    events.put(event)


def decode_steps(steps: Sequence[Step], streams: int) -> list[tuple[Step, Step]]:
    """Return (before, after) of the steps in which all streams wrote a token and no prompt was read."""
    return [
        (before, after)
        for before, after in pairwise(steps)
        if after.prompt_tokens == before.prompt_tokens
        and after.generated_tokens - before.generated_tokens == streams
    ]


def _timing(steps: Sequence[Step], streams: int, tokens: int) -> Timing:
    decoding = decode_steps(steps, streams)
    if not decoding:
        raise BenchError(f"No step had all {streams} streams writing; measure more tokens.")
    return Timing(
        streams=streams,
        whole_tokens=tokens,
        whole_cpu_s=steps[-1].cpu_s - steps[0].cpu_s,
        whole_wall_s=steps[-1].wall_s - steps[0].wall_s,
        decode_tokens=len(decoding) * streams,
        decode_cpu_s=sum(after.cpu_s - before.cpu_s for before, after in decoding),
        decode_wall_s=sum(after.wall_s - before.wall_s for before, after in decoding),
    )
