"""Check our engine and our training on the GPU of this machine, in five minutes: `make gpu-check`.

    python -m tests.bench.gpu_check                          all parts, the most telling first
    python -m tests.bench.gpu_check --parts serving          one part
    python -m tests.bench.gpu_check --device cpu --tiny      every line once, on a machine without a GPU
    python -m tests.bench.gpu_check --publish FILE           a check's file becomes the results page's table

It needs torch, transformers, peft and the few small packages of `make gpu-check-packages`; no network, no
vLLM, and no bitsandbytes: without it the base is in bfloat16. Weights are random, of the shapes of Qwen3.
"""

from __future__ import annotations

import argparse
import functools
import gc
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import structlog
import torch

from tests.bench.gpu_check import correctness, serving, training
from tests.bench.gpu_check.random_base import has_bitsandbytes
from tests.bench.gpu_check.results import Check, Row, found, publish
from tests.bench.gpu_check.setting import Setting, tiny
from tests.bench.serving.errors import BenchError
from tests.bench.shapes import SIZES, TINY, Size

PARTS = ("correctness", "serving", "training", "beside")
# The most telling first, for the clock ends them: is it right, then the size that people would take.
ORDER = (
    ("correctness", "1.7B"),
    ("serving", "4B"),
    ("training", "4B"),
    ("beside", "4B"),
    ("correctness", "4B"),
    ("serving", "1.7B"),
    ("training", "1.7B"),
    ("beside", "1.7B"),
)
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "trl")

Measure = Callable[[Setting, Size], Iterator[Row]]


def main(argv: Sequence[str] | None = None) -> int:
    """Check, print each row as it comes, keep the file; 1 where something is wrong."""
    options = _parse(argv)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    try:
        if options.publish is not None:
            publish(options.publish)
            return 0
        setting = _setting(options)
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.train_for_ever:
        training.train_for_ever(setting, _size(options.train_for_ever))
        return 0
    rows: list[Row] = []
    started = time.monotonic()
    for row in _rows(options, setting, lambda: time.monotonic() - started > 60 * options.minutes):
        rows.append(row)
        print(f"{row.part}, {row.base}, {row.case}: {found(row)}", flush=True)
        file = Check(_machine(setting), rows).write(options.out)
    print(f"\nThe table for the results page: {file.with_suffix('.md')}; every number: {file}")
    return int(any(row.passed is False for row in rows))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.gpu_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 or cpu (cuda)")
    parser.add_argument("--tiny", action="store_true", help="the least of everything, on a tiny base")
    parser.add_argument(
        "--bits", type=int, choices=(4, 16), help="of the base (4 where bitsandbytes is there)"
    )
    parser.add_argument("--minutes", type=float, default=5.0, help="begin no part after so long (5)")
    parser.add_argument("--out", type=Path, default=Path("bench-results/gpu-check"))
    parser.add_argument("--publish", type=Path, metavar="FILE", help="no measuring: write the page's table")
    parser.add_argument("--train-for-ever", metavar="SIZE", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def _setting(options: argparse.Namespace) -> Setting:
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise BenchError("torch finds no CUDA GPU; --device cpu --tiny goes through every line without one")
    if options.bits == 4 and not has_bitsandbytes():
        raise BenchError("4 bits need bitsandbytes, which is not installed")
    # On a CPU 4-bit layers repack themselves for speed and pass no gradient back.
    in_4_bits = options.bits == 4 or (
        options.bits is None and has_bitsandbytes() and options.device.startswith("cuda")
    )
    return tiny(options.device, in_4_bits) if options.tiny else Setting(options.device, in_4_bits)


def _rows(options: argparse.Namespace, setting: Setting, late: Callable[[], bool]) -> Iterator[Row]:
    """Yield every row of the parts that are asked for; a part that can't run says why in one."""
    order = (
        [(part, TINY) for part in PARTS] if options.tiny else [(part, _size(name)) for part, name in ORDER]
    )
    measures: dict[str, Measure] = {
        "correctness": correctness.check,
        "serving": serving.measure,
        "training": training.measure,
        "beside": functools.partial(serving.measure_beside_training, training=_child(options, setting)),
    }
    for part, size in order:
        if part not in options.parts:
            continue
        if late():
            yield Row(part, size.name, "", reason=f"{options.minutes:g} minutes were over")
            continue
        yield from guarded(part, size, measures[part](setting, size))
        gc.collect()
        if setting.on_gpu:
            torch.cuda.empty_cache()


def guarded(part: str, size: Size, rows: Iterator[Row]) -> Iterator[Row]:
    """Yield a part's rows; where it fails, a last one that says why."""
    try:
        yield from rows
    except Exception as error:  # a part's boundary: the others are still to be measured
        yield Row(part, size.name, "", reason=" ".join(f"{type(error).__name__}: {error}".split())[:300])


def _child(options: argparse.Namespace, setting: Setting) -> list[str]:
    """Return the command that trains beside the serving, all but the base's size."""
    command = ["-m", "tests.bench.gpu_check", "--device", setting.device]
    command += ["--bits", "4" if setting.in_4_bits else "16", *(["--tiny"] if options.tiny else [])]
    return [*command, "--train-for-ever"]


def _size(name: str) -> Size:
    return next(size for size in (*SIZES, TINY) if size.name == name)


def _machine(setting: Setting) -> dict[str, str]:
    named = {"date": datetime.now(UTC).strftime("%Y-%m-%d")}
    named["device"] = torch.cuda.get_device_name(setting.device) if setting.on_gpu else platform.machine()
    if setting.on_gpu:
        named["memory"] = f"{torch.cuda.mem_get_info(setting.device)[1] / 2**30:.0f} GiB"
    named["Python"] = platform.python_version()
    for package in PACKAGES:
        try:
            named[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return named


if __name__ == "__main__":
    sys.exit(main())
