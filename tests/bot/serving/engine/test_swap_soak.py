"""Swaps under load: the served adapter changes again and again while others are being answered."""

import itertools
import queue
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bot.serving.engine.engine import Engine, EngineOptions
from bot.serving.engine.events import Event, Failed, Finished, JobOptions, SamplingOptions
from bot.serving.engine.metrics import Metrics
from bot.serving.engine.runtime import Runtime
from bot.serving.errors import UnknownModelError
from bot.serving.model.loading import LoadedBase
from tests.bot.serving.builders import lora_tensors, write_adapter

ADAPTERS = 6
WORKERS = 6
TOKENS = 24
OPENING = "You are a friendly member of this community. Answer briefly. " * 3
PROMPTS = tuple(
    OPENING + end for end in ("How are you?", "I like tea.", "Again and again.", "Answer briefly.")
)
NEAR_TIE = 2e-2
MAX_GROWTH_BYTES = 64 * 2**20


class StepTimes(Metrics):
    """Metrics that also remember each step's processor time, and which ended while an adapter was read.

    A step's wall time on a busy machine says more about the other programs than about the swap.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps_s: list[float] = []
        self.during_s: list[float] = []
        self.swapping = False
        self._before_s = 0.0

    def observe_step(self, seconds: float) -> None:
        super().observe_step(seconds)
        now_s = time.thread_time()
        self.steps_s.append(now_s - self._before_s)
        if self.swapping:
            self.during_s.append(now_s - self._before_s)
        self._before_s = now_s


class Community:
    """Asks on the adapter that is current, compares every reply with what that adapter alone says."""

    def __init__(self, runtime: Runtime, names: list[str]) -> None:
        self.runtime = runtime
        self.current = names[0]
        self.replies = 0
        self.late = 0
        self.failures: list[str] = []
        self.stop = threading.Event()
        self._prompts = [runtime.encode(prompt) for prompt in PROMPTS]
        self.alone = {
            (name, number): self.ask(name, prompt)
            for name in names
            for number, prompt in enumerate(self._prompts)
            if self._load(name)
        }

    def _load(self, name: str) -> bool:
        self.runtime.load_adapter(name, self.runtime._adapters_dir / name)
        return True

    def voices(self) -> int:
        """How many different replies the adapters give to the first prompt."""
        return len({ids for (_, number), ids in self.alone.items() if number == 0})

    def ask(self, name: str, prompt: list[int], user: str = "", **options: bool) -> tuple[int, ...]:
        end = self._end(
            name, prompt, JobOptions(TOKENS, SamplingOptions(temperature=0.0), user=user, **options)
        )
        return end.token_ids

    def _end(self, name: str, prompt: list[int], options: JobOptions) -> Finished:
        events: queue.Queue[Event] = queue.Queue()
        self.runtime.submit(name, prompt, options, events.put)
        while True:
            event = events.get(timeout=120)
            if isinstance(event, Failed):
                raise AssertionError(f"dropped: {event.message}")
            if isinstance(event, Finished):
                return event

    def talk(self, worker: int) -> None:
        for number in itertools.cycle(range(len(PROMPTS))):
            if self.stop.is_set():
                return
            name = self.current
            try:
                said = self.ask(name, self._prompts[number], f"member {worker}")
            except UnknownModelError:
                # The swap came between reading the name and asking: a client asks again, as the bot does.
                self.late += 1
                continue
            except Exception as error:
                self.failures.append(repr(error))
                return
            self.replies += 1
            if said != self.alone[name, number] and not self._is_near_tie(name, number, said):
                self.failures.append(f"{name} said {said} instead of {self.alone[name, number]}")

    def _is_near_tie(self, name: str, number: int, said: tuple[int, ...]) -> bool:
        """Whether both replies part where their two tokens are equally likely, as batches may round."""
        alone = self.alone[name, number]
        same = sum(
            1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(said, alone, strict=False))
        )
        if same >= min(len(said), len(alone)):
            return False
        start = [*self._prompts[number], *alone[:same]]
        options = JobOptions(1, score=True)
        first, second = (self._end(name, [*start, ids[same]], options).scores for ids in (said, alone))
        return bool(first and second) and abs(first[-1] - second[-1]) < NEAR_TIE

    def swap(self, name: str) -> threading.Event:
        """Load and switch as the bot's registry does, then let the old one go."""
        old = self.current
        self._load(name)
        self.current = name
        return self.runtime.engine.loaded_adapters.remove(old)


def test_a_name_that_is_given_to_other_weights_reuses_nothing_of_the_old_ones(
    served: tuple[Community, StepTimes, list[str]],
) -> None:
    """vLLM's callers may do this; keys and values of the old weights would answer for the new ones."""
    community, _, names = served
    loaded_adapters, folder = community.runtime.engine.loaded_adapters, community.runtime._adapters_dir
    prompt = community.runtime.encode(PROMPTS[0])
    for name in names[:3]:
        community.runtime.load_adapter("mine", folder / name)
        assert community.ask("mine", prompt) == community.alone[name, 0]
        assert loaded_adapters.remove("mine").wait(5)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


@pytest.fixture
def served(base: LoadedBase, tmp_path: Path) -> Iterator[tuple[Community, StepTimes, list[str]]]:
    times = StepTimes()
    engine = Engine(base, EngineOptions(context_tokens=128, slots=4, chunk_tokens=32), times)
    engine.start()
    folders = [
        write_adapter(
            tmp_path / "adapters",
            base_hash=base.info.hash,
            chat_template_hash=base.info.chat_template_hash,
            tensors=lora_tensors(engine.widths, seed=seed),
        )
        for seed in range(ADAPTERS)
    ]
    names = [folder.name for folder in folders]
    yield Community(Runtime(base, engine, tmp_path / "adapters"), names), times, names
    engine.stop()


@pytest.mark.parametrize("swaps", [30, pytest.param(1000, marks=pytest.mark.torture)])
def test_swaps_under_load_drop_nothing_and_mix_nothing(
    served: tuple[Community, StepTimes, list[str]], swaps: int
) -> None:
    community, times, names = served
    assert community.voices() == ADAPTERS
    for name in names[1:]:
        community.runtime.engine.loaded_adapters.remove(name)
    times.steps_s.clear()
    workers = [threading.Thread(target=community.talk, args=(number,)) for number in range(WORKERS)]
    for worker in workers:
        worker.start()
    unused: list[threading.Event] = []
    resident: list[int] = []
    order = itertools.islice(itertools.cycle(names), 1, swaps + 1)
    for name in order:
        times.swapping = True
        unused.append(community.swap(name))
        times.swapping = False
        resident.append(resident_bytes())
        said = community.replies
        ends = time.monotonic() + 60
        while community.replies < said + 2 and not community.failures and time.monotonic() < ends:
            time.sleep(0.005)
    community.stop.set()
    for worker in workers:
        worker.join()
    assert community.failures == []
    assert community.replies >= 2 * swaps
    # Every adapter that was replaced is free once its last reply has ended.
    assert all(event.wait(5) for event in unused)
    assert community.runtime.engine.loaded_adapters.names() == [community.current]
    assert community.runtime.engine.counts() == (0, 0)
    growth = resident[-1] - resident[len(resident) // 5]
    median, during = statistics.median(times.steps_s), times.during_s or [0.0]
    print(
        f"{swaps} swaps, {community.replies} replies ({community.late} asked again), "
        f"{times.reused_tokens} prompt tokens reused; processor time of {len(times.steps_s)} steps: "
        f"median {median * 1000:.1f} ms, longest {max(times.steps_s) / median:.0f} times that; of "
        f"{len(during)} during a load: median {statistics.median(during) / median:.1f}, "
        f"longest {max(during) / median:.0f} times that; memory grew by {growth / 2**20:.1f} MiB"
    )
    assert growth < MAX_GROWTH_BYTES
