"""Hundreds of requests that end in every way there is, at random moments: each ends exactly once."""

import queue
import random
import threading
import time
from collections import Counter
from typing import Any

import pytest

from bot.serving.engine.engine import Engine, EngineOptions
from bot.serving.engine.events import Event, Failed, Finished, SamplingOptions
from bot.serving.engine.request import Job
from bot.serving.errors import ServerBusyError, ServerUnavailableError
from bot.serving.model.loading import LoadedBase
from tests.bot.serving.builders import Caller, memory_adapter

FATES = ("finish", "finish", "cancel", "cancel at once", "deadline", "stop string", "score")
ADAPTERS = (None, "one", "two")


class Storm:
    """Submits requests of every fate, and cancels some of them from another thread."""

    def __init__(self, caller: Caller, seed: int) -> None:
        self.caller = caller
        self.random = random.Random(seed)
        self.submitted: list[tuple[Job, queue.Queue[Event]]] = []
        self.refused = 0
        self._timers: list[threading.Timer] = []

    def one(self) -> None:
        draw, fate = self.random, self.random.choice(FATES)
        options: dict[str, Any] = {
            "max_tokens": draw.randint(1, 60),
            "priority": draw.choice((0, 0, 0, 1)),
            "user": draw.choice(("", "ann", "bob", "cyd", "dee")),
            "score": fate == "score",
            "stop": ("e", "the") if fate == "stop string" else (),
            "deadline_s": draw.uniform(0.0, 0.15) if fate == "deadline" else None,
            "sampling": SamplingOptions(temperature=1.5, seed=draw.randrange(100)),
        }
        prompt = [draw.randint(5, 200)] * draw.randint(1, 120)
        try:
            job, events = self.caller.submit(prompt, draw.choice(ADAPTERS), **options)
        except ServerBusyError:
            self.refused += 1
            time.sleep(0.01)
            return
        self.submitted.append((job, events))
        if fate.startswith("cancel"):
            delay_s = 0.0 if fate == "cancel at once" else draw.uniform(0.0, 0.2)
            timer = threading.Timer(delay_s, self.caller.engine.cancel, (job,))
            timer.start()
            self._timers.append(timer)

    def outcomes(self) -> Counter[str]:
        """Wait for every end; fails where one has none in time, or anything comes after it."""
        for timer in self._timers:
            timer.join()
        counts: Counter[str] = Counter()
        for _, events in self.submitted:
            while not isinstance(event := events.get(timeout=60), Finished | Failed):
                pass
            counts[event.reason if isinstance(event, Finished) else event.code] += 1
        time.sleep(0.05)
        assert all(events.empty() for _, events in self.submitted)
        return counts


def with_adapters(base: LoadedBase) -> Caller:
    engine = Engine(base, EngineOptions(context_tokens=192, slots=4, chunk_tokens=32))
    engine.start()
    for seed, name in enumerate(ADAPTERS[1:], start=1):
        engine.loaded_adapters.add(memory_adapter(str(name), engine.widths, seed=seed))
    return Caller(engine, base)


def everything_is_free(engine: Engine) -> bool:
    pinned = any(entry.pins for entry in engine.loaded_adapters._entries.values())
    return engine.counts() == (0, 0) and not pinned


# The module that fails here must take part in each step.
@pytest.mark.parametrize("precision", ["exact"])
def test_hundreds_of_requests_end_once_each_whatever_happens(base: LoadedBase) -> None:
    caller = with_adapters(base)
    luck = random.Random(5)

    def sometimes_explode(*_: object) -> None:
        if luck.random() < 0.005:
            raise RuntimeError("out of luck")

    handle = base.model.model.norm.register_forward_pre_hook(sometimes_explode)
    storm = Storm(caller, seed=1)
    for _ in range(400):
        storm.one()
    counts = storm.outcomes()
    print(f"{len(storm.submitted)} requests: {dict(counts)}; {storm.refused} refused")
    assert everything_is_free(caller.engine)
    assert sum(counts.values()) == len(storm.submitted) == 400 - storm.refused
    assert set(counts) == {"stop", "length", "cancelled", "deadline", "internal"}
    handle.remove()
    assert caller.run([7] * 20, "one", max_tokens=5).completion_tokens >= 1
    assert caller.engine.metrics.rejected == storm.refused
    caller.engine.stop()


def test_a_server_that_stops_under_load_ends_every_request_once(base: LoadedBase) -> None:
    caller = with_adapters(base)
    storm = Storm(caller, seed=2)
    stopping = threading.Timer(0.4, caller.engine.stop, (0.2,))
    stopping.start()
    try:
        while True:
            storm.one()
    except ServerUnavailableError:
        pass
    stopping.join()
    counts = storm.outcomes()
    assert sum(counts.values()) == len(storm.submitted)
    assert everything_is_free(caller.engine)
