"""Measure the model server: beside other servers, across adapter changes, beside training, scoring.

    python -m tests.bench.serving                  a few minutes, to see where it stands
    python -m tests.bench.serving --full           what the results page shows; an hour on two cores
    python -m tests.bench.serving --only swap      one part or more of them
    python -m tests.bench.serving --publish FILE   make rows the page's table and picture; a row of several
                                                   runs becomes their median, lowest and highest

Raw numbers are kept in bench-results/. llama.cpp and vLLM take part once they are there (make bench-peers).
One run of the page's table takes a quarter of an hour on two idle cores:

    python -m tests.bench.serving --only start threads retrain
    python -m tests.bench.serving --only speed --beside generate llama.cpp --streams 1 4 16 --pairs 1
    python -m tests.bench.serving --only first-word swap threads --pairs 3
    python -m tests.bench.serving --only scoring learning queries --replies 0
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import structlog
import torch

from bot.serving.errors import ServingError
from bot.serving.model.loading import read_info, resolve_device
from bot.serving.model.quantize import prepare_base
from tests.bench.serving.beside_training import measure_beside_training
from tests.bench.serving.countdown import Countdown
from tests.bench.serving.first_start import measure_start
from tests.bench.serving.first_word import measure_first_word
from tests.bench.serving.machine import describe_machine, describe_versions
from tests.bench.serving.others import measure_learning, measure_queries, measure_retrain
from tests.bench.serving.profile import FULL, OTHERS, QUICK, Profile, Setting
from tests.bench.serving.report import publish, table
from tests.bench.serving.results import Results, Row, write_results
from tests.bench.serving.scoring import measure_scoring
from tests.bench.serving.speed import SpeedTest
from tests.bench.serving.swap import measure_swap
from tests.bench.serving.two_threads import measure_two_threads
from tests.bench.serving.workload import RANK, vocabulary_size, write_random_adapter

MEASURES: dict[str, Callable[[Setting], list[Row]]] = {
    "threads": measure_two_threads,
    "swap": measure_swap,
    "scoring": measure_scoring,
    "training": measure_beside_training,
    "first-word": measure_first_word,
    "learning": measure_learning,
    "queries": measure_queries,
    "start": measure_start,
    "retrain": measure_retrain,
}
PARTS = ("speed", *MEASURES)
# Without --full: what takes a few minutes in all.
QUICK_PARTS = ("speed", "swap", "scoring", "training", "first-word")
ROOT = Path(__file__).resolve().parents[3]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is asked for, print the table, keep the numbers; 1 where some can't be measured."""
    options = _parse(argv)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    try:
        if options.publish is not None:
            publish(options.publish, ROOT)
            return 0
        results, failed = _measure(options)
    except ServingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    file = options.results_dir / f"serving-{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
    write_results(results, file)
    print(f"\n{table(results.rows)}\n\nEvery number: {file}")
    if failed:
        print(f"Not measured: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.serving",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="a few minutes (this is the default)")
    parser.add_argument("--full", action="store_true", help="every row of the results page")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="parts to measure")
    parser.add_argument(
        "--beside", nargs="+", choices=OTHERS, default=OTHERS, help="systems to measure beside"
    )
    parser.add_argument("--streams", type=int, nargs="+", help="numbers of concurrent streams")
    parser.add_argument("--pairs", type=int, help="turns of each side")
    parser.add_argument("--tokens", type=int, help="tokens that all streams write at once")
    parser.add_argument(
        "--most-tokens", type=int, help="tokens that each stream writes at most, whatever --tokens asks"
    )
    parser.add_argument("--replies", type=int, help="replies to score; 0: only answers to one question")
    parser.add_argument("--ratings", type=int, help="ratings in the database whose queries are measured")
    parser.add_argument("--base", default="auto", help="the base model, as [model] base (auto)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--threads", type=int, default=1, help="threads of Strop and generate on a CPU (1)")
    parser.add_argument("--models-dir", type=Path, default=Path("data/models"))
    parser.add_argument("--results-dir", type=Path, default=Path("bench-results"))
    parser.add_argument("--peers-dir", type=Path, help="the peers' environments (RESULTS_DIR/peers)")
    parser.add_argument(
        "--publish", type=Path, nargs="+", metavar="FILE", help="no measuring: write the page's section"
    )
    return parser.parse_args(argv)


def _measure(options: argparse.Namespace) -> tuple[Results, list[str]]:
    started = time.monotonic()
    torch.set_num_threads(options.threads)
    device = resolve_device(options.device)
    folder = prepare_base(options.base, "", device=device, models_dir=options.models_dir, progress=print)
    machine, versions = describe_machine(), describe_versions()
    profile = _profile(options)
    with tempfile.TemporaryDirectory(prefix="strop-bench-") as work:
        setting = _setting(options, folder, device, profile, Path(work))
        parts = options.only or (PARTS if options.full else QUICK_PARTS)
        rows, peers, failed = _measure_parts(setting, parts)
    results = Results(
        date=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        profile=profile.name,
        seconds=round(time.monotonic() - started, 1),
        machine=asdict(machine),
        versions=asdict(replace(versions, packages={**versions.packages, **peers})),
        setting=f"{setting.info.id}, NF4, LoRA r{RANK} on all linear layers, "
        f"{options.threads} thread{'s' if options.threads > 1 else ''}, contexts from "
        f"{profile.prompt_tokens} tokens",
        rows=tuple(rows),
    )
    return results, failed


def _profile(options: argparse.Namespace) -> Profile:
    profile = replace(FULL if options.full else QUICK, beside=tuple(options.beside))
    if options.streams:
        profile = replace(profile, streams=tuple(options.streams))
    if options.pairs:
        profile = replace(profile, pairs=options.pairs, swaps=options.pairs, waits=options.pairs)
    chosen = {name: getattr(options, name) for name in ("tokens", "most_tokens", "replies", "ratings")}
    return replace(profile, **{name: value for name, value in chosen.items() if value is not None})


def _setting(options: argparse.Namespace, folder: Path, device: str, profile: Profile, work: Path) -> Setting:
    info = read_info(folder)
    first, second = (write_random_adapter(folder, info, work / "adapters", seed=seed) for seed in (1, 2))
    return Setting(
        folder=folder,
        info=info,
        device=device,
        threads=options.threads,
        adapters_dir=work / "adapters",
        adapters=(first, second),
        vocabulary=vocabulary_size(folder),
        peers_dir=(options.peers_dir or options.results_dir / "peers").resolve(),
        profile=profile,
        say=print,
    )


def _measure_parts(setting: Setting, parts: Sequence[str]) -> tuple[list[Row], dict[str, str], list[str]]:
    """Measure the parts in their order; return the rows, the versions of the peers that took part, and the
    stages that failed.
    """
    rows: list[Row] = []
    peers: dict[str, str] = {}
    countdown = Countdown(setting.profile, parts, print)
    if "speed" in parts:
        speed = SpeedTest(setting)
        peers = speed.versions
        try:
            for streams in setting.profile.streams:
                with countdown.stage(f"speed at {streams}"):
                    rows += speed.rows_for(streams)
        finally:
            speed.close()
    for name, measure in MEASURES.items():
        if name in parts:
            with countdown.stage(name):
                rows += measure(setting)
    return rows, peers, countdown.failed


if __name__ == "__main__":
    sys.exit(main())
