"""Serving while a training runs beside it: the time between tokens, and the memory of both processes.

The server's side has a process of its own, so that its memory is the engine's alone:
``python -m tests.bench.serving.beside_training FOLDER ADAPTER`` prints its findings as one JSON line.
The training is stopped and continued in turns, so that both conditions see the same machine.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import argparse
import json
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from bot.serving.engine.engine import EngineOptions
from bot.serving.engine.events import Event
from bot.serving.model.processors import usable_cores
from tests.bench.serving.errors import BenchError
from tests.bench.serving.memory_use import read_memory_use
from tests.bench.serving.profile import Setting
from tests.bench.serving.results import Row
from tests.bench.serving.strop_side import EngineSide, decode_steps
from tests.bench.serving.timing import quantile
from tests.bench.serving.workload import random_prompts

STREAMS = 4
PROMPT_TOKENS = 64
NICE = 19
P99_GOAL = 1.2
TIMEOUT_S = 900.0
_ROOT = Path(__file__).resolve().parents[3]


def measure_beside_training(setting: Setting) -> list[Row]:
    """Run the server's side in a process of its own and read what it found."""
    profile = setting.profile
    command = [sys.executable, "-m", "tests.bench.serving.beside_training"]
    command += [str(setting.folder), str(setting.adapters[0]), "--device", setting.device]
    command += ["--threads", str(setting.threads), "--phases", str(profile.training_phases)]
    command += ["--phase-s", str(profile.phase_s), "--vocabulary", str(setting.vocabulary)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, timeout=TIMEOUT_S, env=_environment(), check=False
    )
    if done.returncode != 0:
        raise BenchError("serving beside training could not be measured; its error is above")
    return training_rows(json.loads(done.stdout.splitlines()[-1]))


def training_rows(found: dict[str, Any]) -> list[Row]:
    """Compare the 99th percentiles, and add up the memory."""
    alone, beside = found["alone_s"], found["beside_s"]
    p99s = [1000 * quantile(gaps, 0.99) for gaps in (beside, alone)]
    medians = [1000 * median(gaps) for gaps in (beside, alone)]
    server, trainer = found["server"], found["trainer"]
    both = (server["pss"] + trainer["pss"]) / 1e6
    libraries = (found["server_libraries"]["pss"] + found["trainer_libraries"]["pss"]) / 1e6
    return [
        Row(
            section="training",
            case=f"99 % of steps, {found['streams']} streams",
            unit="ms",
            ours=p99s[0],
            theirs=p99s[1],
            ratio=p99s[0] / p99s[1],
            at_least=P99_GOAL,
            at_most=True,
            note=f"beside a QLoRA run at nice {NICE}, and without it; medians {medians[0]:.0f} and "
            f"{medians[1]:.0f} ms of {len(beside)} and {len(alone)} steps; the run trains "
            f"{found['trained_per_cpu_s']:.0f} tokens/CPU-s",
            raw=found,
        ),
        Row(
            section="training",
            case="memory of both processes (PSS)",
            unit="MB",
            ours=both,
            note=f"server {server['pss'] / 1e6:.0f} ({found['execution']}), training "
            f"{trainer['pss'] / 1e6:.0f}, of these {libraries:.0f} libraries; shared "
            f"{server['shared'] / 1e6:.0f}; the 4-bit file is {found['file_bytes'] / 1e6:.0f}",
        ),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="a prepared base")
    parser.add_argument("adapter", type=Path, help="an adapter folder for it")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--phases", type=int, default=1, help="how often each condition is measured")
    parser.add_argument("--phase-s", type=float, default=10.0, help="seconds of each")
    parser.add_argument("--vocabulary", type=int, default=20001)
    options = parser.parse_args(argv)
    print(json.dumps(_measure(options)), flush=True)
    return 0


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    libraries = asdict(read_memory_use(os.getpid()))
    side = EngineSide(
        options.folder,
        options.adapter.parent,
        device=options.device,
        options=EngineOptions(slots=STREAMS, threads=options.threads),
    )
    side.use(options.adapter)
    child = _start_training(options.folder, options.device)
    try:
        first = _report(child)
        load = _Load(side, options.vocabulary)
        alone, beside = [], []
        for _ in range(options.phases):
            child.send_signal(signal.SIGSTOP)
            alone += load.gaps(options.phase_s)
            child.send_signal(signal.SIGCONT)
            beside += load.gaps(options.phase_s)
        return {
            "streams": STREAMS,
            "execution": side.base.execution,
            "file_bytes": sum(side.base.info.files.values()),
            "alone_s": alone,
            "beside_s": beside,
            "trained_per_cpu_s": first["tokens"] / first["cpu_s"],
            "server_libraries": libraries,
            "trainer_libraries": first["libraries"],
            "server": asdict(read_memory_use(os.getpid())),
            "trainer": asdict(read_memory_use(child.pid)),
        }
    finally:
        child.kill()
        child.wait()
        side.close()


class _Load:
    """Keeps the engine's streams busy; a finished request is replaced by a new one."""

    def __init__(self, side: EngineSide, vocabulary: int) -> None:
        self._side = side
        self._vocabulary = vocabulary
        self._turn = 0

    def gaps(self, seconds: float) -> list[float]:
        """Serve for so long; return the seconds between tokens while all streams write."""
        self._turn += 1
        end = time.monotonic() + seconds
        self._side.clock.steps.clear()
        events: queue.Queue[Event] = queue.Queue()
        prompts = random_prompts(STREAMS, PROMPT_TOKENS, self._vocabulary, seed=self._turn)
        room = self._side.engine.context_tokens - PROMPT_TOKENS - 1
        jobs = [self._side.submit(prompt, room, events) for prompt in prompts]
        time.sleep(max(0.0, end - time.monotonic()))
        steps = list(self._side.clock.steps)
        for job in jobs:
            self._side.engine.cancel(job)
        while any(not job.done for job in jobs):
            time.sleep(0.001)
        return [after.wall_s - before.wall_s for before, after in decode_steps(steps, STREAMS)]


def _start_training(folder: Path, device: str) -> subprocess.Popen[str]:
    cores = usable_cores()
    command = ["nice", "-n", str(NICE), sys.executable, "-m", "tests.bench.serving.training_child"]
    return subprocess.Popen(
        [*command, str(folder), "--device", device],
        stdout=subprocess.PIPE,
        text=True,
        env={**_environment(), "OMP_NUM_THREADS": str(cores)},
    )


def _report(child: subprocess.Popen[str]) -> dict[str, Any]:
    """Return the report of the second step: the first one warms up."""
    if child.stdout is None:
        raise BenchError("the training has no output")
    lines = [child.stdout.readline() for _ in range(2)]
    if not lines[-1]:
        raise BenchError("the training ended at once")
    report: dict[str, Any] = json.loads(lines[-1])
    return report


def _environment() -> dict[str, str]:
    """The environment of a run, as the trainer starts it: threads that wait sleep."""
    quiet = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **quiet, "PYTHONPATH": str(_ROOT)}


if __name__ == "__main__":
    sys.exit(main())
