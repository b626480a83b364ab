"""What an adapter change costs the requests in flight: our swap beside PEFT's ``hotswap_adapter``."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import median

from bot.serving.engine.engine import EngineOptions
from bot.serving.engine.events import Event
from tests.bench.serving.errors import BenchError
from tests.bench.serving.peft_side import PeftSide
from tests.bench.serving.profile import Setting
from tests.bench.serving.results import Row
from tests.bench.serving.strop_side import EngineSide, Step, wait_for_end
from tests.bench.serving.timing import quantile
from tests.bench.serving.workload import random_prompts

STREAMS = 4
PROMPT_TOKENS = 32
# Steps that are watched after each event.
WINDOW_STEPS = 12
# What a newcomer writes, on the new adapter as after a promotion.
NEWCOMER_TOKENS = 4
HOTSWAP_GOAL = (10.0, None)
LONGEST_STEP_GOAL = (2.0, 1.5)
# Below this a difference of step times says nothing.
CLOCK_MS = 0.1
STEPS_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Window:
    """The steps around one event, in seconds on the clock: the median, and the longest."""

    median_s: float
    longest_s: float

    @property
    def stall_s(self) -> float:
        """How much longer than usual the longest step kept the streams waiting."""
        return self.longest_s - self.median_s


@dataclass(frozen=True, slots=True)
class SwapWatch:
    """Four windows on the same streams, one after the other."""

    alone: Window
    join: Window
    swap: Window
    join_new: Window

    def longest_step(self) -> float:
        """The longest step from the swap to the new adapter's first reply, in median steps."""
        return max(self.swap.longest_s, self.join_new.longest_s) / self.alone.median_s


class EngineUnderSwaps:
    """Streams that go on writing while adapters are loaded and newcomers join."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._side = EngineSide(
            setting.folder,
            setting.adapters_dir,
            device=setting.device,
            options=EngineOptions(slots=STREAMS + 1, threads=setting.threads),
        )
        self._side.use(setting.adapters[0])
        self._old = setting.adapters[0].name
        self._seed = 0

    def watch(self) -> SwapWatch:
        """Watch the same streams: left alone, with a join, with a swap, with a join on the new adapter."""
        new = self._setting.adapters[1]
        events: queue.Queue[Event] = queue.Queue()
        # As long as there is room: they are cancelled when everything has been watched.
        tokens = self._side.engine.context_tokens - PROMPT_TOKENS - 1
        jobs = [self._side.submit(prompt, tokens, events, self._old) for prompt in self._prompts(STREAMS)]
        self._wait_steps(WINDOW_STEPS)
        watch = SwapWatch(
            alone=self._window(lambda: None),
            join=self._window(lambda: self._join(self._old)),
            swap=self._window(lambda: self._side.runtime.load_adapter(new.name, new)),
            join_new=self._window(lambda: self._join(new.name)),
        )
        for job in jobs:
            self._side.engine.cancel(job)
        for _ in jobs:
            wait_for_end(events)
        self._side.engine.loaded_adapters.remove(new.name)
        return watch

    def close(self) -> None:
        """End the engine."""
        self._side.close()

    def _join(self, model: str) -> None:
        """Let a request join the streams, write a little, and leave."""
        newcomer: queue.Queue[Event] = queue.Queue()
        [prompt] = self._prompts(1)
        self._side.submit(prompt, NEWCOMER_TOKENS, newcomer, model)
        wait_for_end(newcomer)

    def _window(self, work: Callable[[], None]) -> Window:
        """Watch the steps while another thread does its work, and for some more."""
        begin = len(self._side.clock.steps) - 1
        thread = threading.Thread(target=work, name="swap")
        thread.start()
        thread.join()
        self._wait_steps(WINDOW_STEPS)
        return window_of(self._side.clock.steps[begin:])

    def _prompts(self, count: int) -> list[list[int]]:
        self._seed += 1
        return random_prompts(count, PROMPT_TOKENS, self._setting.vocabulary, seed=self._seed)

    def _wait_steps(self, count: int) -> None:
        goal = len(self._side.clock.steps) + count
        deadline = time.monotonic() + STEPS_TIMEOUT_S
        while len(self._side.clock.steps) < goal:
            if time.monotonic() > deadline:
                raise BenchError("The streams ended before the swap was watched; their context is too short.")
            time.sleep(0.001)


def window_of(steps: Sequence[Step]) -> Window:
    """Summarise consecutive steps by the time between their ends."""
    gaps = [after.wall_s - before.wall_s for before, after in pairwise(steps)]
    return Window(median(gaps), max(gaps))


def measure_swap(setting: Setting) -> list[Row]:
    """Swap back and forth on both sides, in turns."""
    engine = EngineUnderSwaps(setting)
    peft = PeftSide(setting.folder, setting.adapters[0], device=setting.device)
    watches, hotswaps = [], []
    try:
        engine.watch()
        peft.swap(setting.adapters[0])
        for turn in range(setting.profile.swaps):
            hotswaps.append(peft.swap(setting.adapters[(turn + 1) % 2]))
            watches.append(engine.watch())
    finally:
        engine.close()
        peft.close()
    return swap_rows(watches, hotswaps)


def swap_rows(watches: Sequence[SwapWatch], hotswaps: Sequence[float]) -> list[Row]:
    """Compare the stalls that a change alone causes, and the longest step with the median one."""
    stalls = [1000 * watch.swap.stall_s for watch in watches]
    alone = [1000 * watch.alone.stall_s for watch in watches]
    theirs_ms = 1000 * median(hotswaps)
    longest = [watch.longest_step() for watch in watches]
    joins = [watch.join.longest_s / watch.alone.median_s for watch in watches]
    ours_ms = max(median(stalls), CLOCK_MS)
    least, aim = HOTSWAP_GOAL
    return [
        Row(
            section="swap",
            case="stall of requests in flight",
            unit="ms",
            ours=ours_ms,
            theirs=theirs_ms,
            ratio=theirs_ms / ours_ms,
            at_least=least,
            aim=aim,
            note=f"longest step minus median step, {STREAMS} streams; as much without any swap: "
            f"{median(alone):.1f} ms, which is this machine's noise",
            raw={"windows": [asdict(watch) for watch in watches], "hotswap_s": list(hotswaps)},
        ),
        Row(
            section="swap",
            case="longest step until the new adapter replies",
            unit="times the median",
            ours=median(longest),
            theirs=median(joins),
            low=min(longest),
            high=max(longest),
            at_least=LONGEST_STEP_GOAL[0],
            aim=LONGEST_STEP_GOAL[1],
            at_most=True,
            note="the other figure: a request joins on the old adapter, so that only its prompt is read; "
            f"90 % of swaps stay below {quantile(longest, 0.9):.2f}",
        ),
    ]
