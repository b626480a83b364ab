"""Threads that share a step: the same result with any number of them, whatever else the process does."""

import os
import subprocess
import threading
from pathlib import Path

import pytest
import torch

from bot.serving.engine.engine import Engine, EngineOptions
from bot.serving.engine.lora import Adapter
from bot.serving.engine.native_decoder import Decoder
from bot.serving.model.loading import LoadedBase, load_base
from bot.serving.model.processors import usable_cores
from bot.serving.native import library
from tests.bot.serving.native.test_native import Reference

THREADS = (1, 2, 5)
CONTEXT = 20


def adapter_of(rank: int, widths: dict[str, tuple[int, int]]) -> Adapter:
    """An adapter as strong as the base, so that a wrong sum of it shows."""
    dice = torch.Generator().manual_seed(rank)
    weights = {
        name: (
            torch.randn(width_in, rank, generator=dice) / (width_in * rank) ** 0.5,
            torch.randn(rank, width_out, generator=dice),
        )
        for name, (width_in, width_out) in widths.items()
    }
    return Adapter(f"rank {rank}", weights, rank)


class Filled:
    """A decoder whose rows hold a prompt each, and the model's modules over the same cache."""

    def __init__(self, base: LoadedBase, *ranks: int) -> None:
        self.reference = Reference(base.model)
        self.decoder = Decoder(base.model, self.reference.cache)
        self.adapters = [adapter_of(rank, self.reference.widths) if rank else None for rank in ranks]
        for row, adapter in enumerate(self.adapters):
            prompt = [7 * row + token for token in range(3, 3 + CONTEXT)]
            self.reference.run([row], [prompt], [0], [adapter])

    def step(self, count: int, threads: int = 1) -> torch.Tensor:
        self.decoder.threads = threads
        rows = range(count)
        return self.decoder.step(
            [9 + row for row in rows], [CONTEXT] * count, rows, self.adapters[:count]
        ).clone()

    def read(self, threads: int) -> torch.Tensor:
        self.decoder.threads = threads
        return self.decoder.read(range(5, 42), 0, 5, self.adapters[0], 3).clone()


@pytest.fixture(params=["fast", "exact"])
def filled(request: pytest.FixtureRequest, tiny_folder: Path) -> Filled:
    with torch.inference_mode():
        # Whole registers of ranks, half of one, a single rank, and none.
        return Filled(load_base(tiny_folder, "cpu", precision=request.param), 24, 24, 16, 1, 0)


@torch.inference_mode()
def test_any_number_of_threads_gives_the_same_bits(filled: Filled) -> None:
    for count in (1, 3, 5):
        alone = filled.step(count)
        for threads in THREADS:
            for _ in range(5):
                assert torch.equal(filled.step(count, threads), alone)
    alone = filled.read(1)
    assert all(torch.equal(filled.read(threads), alone) for threads in THREADS)
    rows = list(range(5))
    expected = filled.reference.run(rows, [[9 + row] for row in rows], [CONTEXT] * 5, filled.adapters)
    assert torch.allclose(filled.step(5, 2), expected, rtol=0, atol=1e-3 * float(expected.abs().max()))


@torch.inference_mode()
def test_calls_at_the_same_time_do_not_disturb_each_other(tiny_folder: Path) -> None:
    """One gets the helpers, the other does its work alone."""
    callers = [Filled(load_base(tiny_folder, "cpu", precision="fast"), 24, rank) for rank in (0, 8)]
    alone = [caller.step(2) for caller in callers]
    wrong = []

    def call(at: int) -> None:
        for _ in range(50):
            with torch.inference_mode():
                if not torch.equal(callers[at].step(2, 2), alone[at]):
                    wrong.append(at)

    threads = [threading.Thread(target=call, args=(at,)) for at in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@torch.inference_mode()
def test_a_forked_process_has_threads_of_its_own(tiny_folder: Path) -> None:
    caller = Filled(load_base(tiny_folder, "cpu", precision="fast"), 24)
    alone = caller.step(1, 2)
    child = os.fork()
    if child == 0:
        same = False
        try:
            same = torch.equal(caller.step(1, 2), alone)
        finally:
            os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_every_unit_is_done_once_and_helpers_sleep_between_calls(tmp_path: Path) -> None:
    compiler, program = library.find_compiler(), tmp_path / "check"
    assert compiler is not None
    source = Path(__file__).with_name("check_threads.c")
    flags = ("-std=gnu11", "-O2", "-pthread", "-Wall", "-Wextra", "-Werror", f"-I{library.SOURCE.parent}")
    subprocess.run((compiler, *flags, "-o", program, source), check=True, timeout=120)
    ran = subprocess.run((program,), check=True, capture_output=True, text=True, timeout=120)
    assert ran.stdout == "every unit once, all asleep\n"


def test_the_number_of_threads_is_chosen_unless_it_is_set(tiny_folder: Path) -> None:
    base = load_base(tiny_folder, "cpu", precision="fast")
    options = EngineOptions(context_tokens=128, slots=2)
    chosen = Engine(base, options).runner
    assert isinstance(chosen.decoder, Decoder) and chosen.decoder.chooses_threads
    base = load_base(tiny_folder, "cpu", precision="fast")
    fixed = Engine(base, EngineOptions(context_tokens=128, slots=2, threads=3)).runner
    assert isinstance(fixed.decoder, Decoder) and not fixed.decoder.chooses_threads
    assert fixed.threads == fixed.decoder.threads == 3


@torch.inference_mode()
def test_each_thread_has_room_for_its_scores_however_many_are_set_later(tiny_folder: Path) -> None:
    """Whoever sets more threads than there are cores once wrote behind the buffer."""
    caller = Filled(load_base(tiny_folder, "cpu", precision="fast"), 24)
    caller.step(1)
    threads = usable_cores() + 3
    caller.step(1, threads)
    model = caller.decoder._model
    scores = model.heads // model.kv_heads * model.context
    assert caller.decoder._buffers["scores"].numel() >= threads * scores
