"""How long a member waits for a reply's first word: alone, while a run trains, and while it asks for replies.

    python -m tests.bench.serving.first_word --models-dir data/models

The three take turns with the same prompts, so that all of them see the same machine. Ratios to the same
alone are by wall-clock, which is what a member waits, and by the server's processor time, which other work on
the machine disturbs least. The run's own requests decode in every row that is free.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import argparse
import contextlib
import json
import queue
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import structlog

from bot.serving.engine.engine import EngineOptions
from bot.serving.engine.events import Event, JobOptions, TextPiece
from bot.serving.model.loading import read_info
from bot.serving.model.quantize import prepare_base
from bot.serving.protocol import PRIORITY_BACKGROUND
from tests.bench.serving.profile import Setting
from tests.bench.serving.results import Row
from tests.bench.serving.strop_side import GREEDY, EngineSide, wait_for_end
from tests.bench.serving.workload import random_prompts, vocabulary_size, write_random_adapter

SLOTS = 8
OWN_PROMPT_TOKENS, OWN_TOKENS = 64, 1900
NICE = 19
GOAL = (1.3, 1.1)
CONDITIONS = ("alone", "training", "requests")
_ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True, slots=True)
class Wait:
    """How long one first word took, in seconds: on the clock, and on the server's processor."""

    wall_s: float
    cpu_s: float


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a line for each prompt length and condition."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models-dir", type=Path, default=Path("data/models"))
    parser.add_argument("--prompts", type=int, nargs="+", default=[357, 980], help="lengths in tokens")
    parser.add_argument("--pairs", type=int, default=3, help="turns of each condition")
    parser.add_argument("--conditions", nargs="+", choices=CONDITIONS, default=list(CONDITIONS))
    parser.add_argument("--no-pauses", action="store_true", help="let the training not give way")
    options = parser.parse_args(argv)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    folder = prepare_base("auto", "", device="cpu", models_dir=options.models_dir)
    with tempfile.TemporaryDirectory(prefix="strop-bench-") as work:
        _measure(options, folder, Path(work))
    return 0


def measure_first_word(setting: Setting) -> list[Row]:
    """Compare the wait with a long prompt beside a run's training with that alone, in turns."""
    alone, beside = CONDITIONS[0], CONDITIONS[1]
    with tempfile.TemporaryDirectory(prefix="strop-run-") as run_dir:
        waits = measure_waits(
            setting.folder,
            setting.adapters[0],
            setting.vocabulary,
            Path(run_dir),
            prompts=[setting.profile.first_word_tokens],
            pairs=setting.profile.waits,
            conditions=[alone, beside],
        )
    (length, _), *_ = waits
    return [first_word_row(length, waits[length, beside], waits[length, alone])]


def first_word_row(length: int, beside: Sequence[Wait], alone: Sequence[Wait]) -> Row:
    """Compare the same turns' waits, in seconds on the clock."""
    pairs = list(zip(beside, alone, strict=True))
    ratios = [one.wall_s / other.wall_s for one, other in pairs]
    return Row(
        section="first word",
        case=f"prompt of {length} tokens",
        unit="s",
        ours=median(each.wall_s for each in beside),
        theirs=median(each.wall_s for each in alone),
        ratio=median(ratios),
        low=min(ratios),
        high=max(ratios),
        at_least=GOAL[0],
        aim=GOAL[1],
        at_most=True,
        note=f"on the clock, beside a QLoRA training at nice {NICE}; the server's processor time "
        f"{median(one.cpu_s / other.cpu_s for one, other in pairs):.2f} times",
        raw={"beside": [asdict(each) for each in beside], "alone": [asdict(each) for each in alone]},
    )


def _measure(options: argparse.Namespace, folder: Path, work: Path) -> None:
    adapter = write_random_adapter(folder, read_info(folder), work / "adapters", seed=1)
    waits = measure_waits(
        folder,
        adapter,
        vocabulary_size(folder),
        work,
        prompts=options.prompts,
        pairs=options.pairs,
        conditions=options.conditions,
        gives_way=not options.no_pauses,
    )
    _print(waits)


def measure_waits(
    folder: Path,
    adapter: Path,
    vocabulary: int,
    run_dir: Path,
    *,
    prompts: Sequence[int],
    pairs: int,
    conditions: Sequence[str],
    gives_way: bool = True,
) -> dict[tuple[int, str], list[Wait]]:
    """Return ``pairs`` waits for each prompt length in tokens and condition, taken in turns.

    The training sees in ``run_dir`` that somebody waits for a first word, unless it never ``gives_way``.
    """
    options = EngineOptions(slots=SLOTS, threads=1)
    side = EngineSide(folder, adapter.parent, options=options, run_dir=run_dir)
    side.use(adapter)
    child = _start_training(folder, run_dir if gives_way else None) if "training" in conditions else None
    waits: dict[tuple[int, str], list[Wait]] = {}
    try:
        for turn in range(pairs):
            for length in prompts:
                for condition in conditions:
                    [prompt] = random_prompts(1, length, vocabulary, seed=1000 * turn + length)
                    with _beside(condition, side, child, vocabulary):
                        # Another beginning each time, so that no row of the cache knows it.
                        prompt[0] = random_prompts(1, 1, vocabulary, seed=CONDITIONS.index(condition))[0][0]
                        waits.setdefault((length, condition), []).append(_first_word(side, prompt))
    finally:
        if child is not None:
            child.kill()
            child.wait()
        side.close()
    return waits


@contextlib.contextmanager
def _beside(
    condition: str, side: EngineSide, child: subprocess.Popen[str] | None, vocabulary: int
) -> Iterator[None]:
    """Let the condition hold: the training stands still where it isn't its turn."""
    jobs = []
    if child is not None:
        child.send_signal(signal.SIGCONT if condition == "training" else signal.SIGSTOP)
    if condition == "requests":
        sinks: list[queue.Queue[Event]] = [queue.Queue() for _ in range(SLOTS)]
        for at, prompt in enumerate(random_prompts(SLOTS, OWN_PROMPT_TOKENS, vocabulary, seed=3)):
            asked = JobOptions(
                max_tokens=OWN_TOKENS, sampling=GREEDY, ignore_end=True, priority=PRIORITY_BACKGROUND
            )
            jobs.append(side.runtime.submit(side.model, prompt, asked, sinks[at].put))
        for sink in sinks:
            while not isinstance(sink.get(), TextPiece):
                pass
    else:
        time.sleep(1.0)
    try:
        yield
    finally:
        for job in jobs:
            side.engine.cancel(job)
        while any(not job.done for job in jobs):
            time.sleep(0.001)


def _first_word(side: EngineSide, prompt: list[int]) -> Wait:
    events: queue.Queue[Event] = queue.Queue()
    started = time.process_time()
    side.submit(prompt, 1, events)
    waited_ms = wait_for_end(events).first_token_ms or 0.0
    return Wait(waited_ms / 1000, time.process_time() - started)


def _start_training(folder: Path, run_dir: Path | None) -> subprocess.Popen[str]:
    """Start the trainer's gradient steps, as the trainer starts a run; return once they are under way."""
    command = ["nice", "-n", str(NICE), sys.executable, "-m", "tests.bench.serving.training_child"]
    command += [str(folder), *(["--run-dir", str(run_dir)] if run_dir else [])]
    quiet = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "TOKENIZERS_PARALLELISM": "false"}
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, **quiet, "PYTHONPATH": str(_ROOT)}
    )
    if child.stdout is None or not child.stdout.readline():
        raise SystemExit("the training ended at once")
    return child


def _print(waits: dict[tuple[int, str], list[Wait]]) -> None:
    for (length, condition), found in waits.items():
        alone = waits.get((length, "alone"), found)
        pairs = list(zip(found, alone, strict=True))
        row = {
            "prompt_tokens": length,
            "beside": condition,
            "first_word_s": round(median(each.wall_s for each in found), 2),
            "ratios": [round(one.wall_s / other.wall_s, 2) for one, other in pairs],
            "cpu_ratio": round(median(one.cpu_s / other.cpu_s for one, other in pairs), 2),
            "cpu_ratios": [round(one.cpu_s / other.cpu_s, 2) for one, other in pairs],
            "load": round(os.getloadavg()[0], 1),
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    sys.exit(main())
