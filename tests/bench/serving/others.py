"""Rows of benchmarks with commands of their own: training beside TRL, queries, a newcomer's first run."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench import retrain
from tests.bench.serving.errors import BenchError
from tests.bench.serving.profile import Setting
from tests.bench.serving.results import Row
from tests.bench.training_speed import EQUAL_NATS, SIDES

TRAINING_GOAL = (3.5, 5.0)
QUERY_GOAL_MS = (20.0, 5.0)
# Seconds from /retrain to the verdict.
RETRAIN_GOAL_S = (240.0, 180.0)
VERDICTS = ("promoted", "refused", "not_yet", "votes")
TIMEOUT_S = 3600.0


def measure_learning(setting: Setting) -> list[Row]:
    """Train the same examples with Strop and with TRL and PEFT."""
    size = setting.profile.training_load
    turns = _run("tests.bench.training_speed", f"--{size}", "--models", str(setting.folder.parent))
    return learning_rows(turns)


def learning_rows(turns: list[dict[str, Any]]) -> list[Row]:
    """Compare tokens by processor second, and losses of unseen tokens: speed counts at equal loss only."""
    ours, theirs = ([turn for turn in turns if turn["side"] == side] for side in SIDES)
    speeds = [[turn["tokens"] / turn["cpu_s"] for turn in side] for side in (ours, theirs)]
    ratios = [mine / other for mine, other in zip(*speeds, strict=True)]
    losses = [median(turn["loss"] for turn in side) for side in (ours, theirs)]
    return [
        Row(
            section="learning",
            case="supervised training",
            unit="tokens/CPU-s",
            ours=median(speeds[0]),
            theirs=median(speeds[1]),
            ratio=median(ratios),
            low=min(ratios),
            high=max(ratios),
            at_least=TRAINING_GOAL[0],
            aim=TRAINING_GOAL[1],
            note=f"{ours[0]['tokens']} tokens; loss of an unseen token before {ours[0]['before']:.2f}",
            raw={"turns": turns},
        ),
        Row(
            section="learning",
            case="loss of an unseen token, above TRL's",
            unit="nats",
            ours=losses[0] - losses[1],
            at_least=EQUAL_NATS,
            at_most=True,
            note=f"{losses[0]:.3f}, TRL {losses[1]:.3f}; speed counts where ours is no higher",
        ),
    ]


def measure_queries(setting: Setting) -> list[Row]:
    """Run every query of the product on a database of a large community."""
    ratings = setting.profile.ratings
    statements = _run("tests.bench.storage", "--ratings", str(ratings), "--repeats", "3")
    return query_rows(ratings, statements)


def query_rows(ratings: int, statements: list[dict[str, Any]]) -> list[Row]:
    """Name the slowest statement, of statistics and of the others, by the median of its processor time."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for each in statements:
        statistic = each["operation"].startswith("statistic")
        kinds.setdefault("of statistics" if statistic else "of chat, ratings and runs", []).append(each)
    rows = []
    for kind, group in sorted(kinds.items()):
        slowest = max(group, key=lambda each: median(each["cpu_ms"]))
        rows.append(
            Row(
                section="queries",
                case=f"slowest {kind}",
                unit="CPU-ms",
                ours=median(slowest["cpu_ms"]),
                at_least=QUERY_GOAL_MS[0],
                aim=QUERY_GOAL_MS[1],
                at_most=True,
                note=f"{ratings:,} ratings; of {slowest['operation']}, one of {len(group)} statements",
                raw={"operation": slowest["operation"], "text": slowest["text"], "cpu_ms": slowest["cpu_ms"]},
            )
        )
    return rows


def measure_retrain(setting: Setting) -> list[Row]:
    """Follow the sample community's first run in a deployment of its own, with every default."""
    with tempfile.TemporaryDirectory(prefix="strop-retrain-") as folder:
        found = asyncio.run(retrain.measure(Path(folder), seed=0, all_steps=False))
    return [retrain_row(found)]


def retrain_row(found: retrain.Profile) -> Row:
    """Compare the seconds to the verdict with the goal; the parts of the run are among the raw numbers.

    Raises:
        BenchError: the run came to no verdict.
    """
    if found.outcome["outcome"] not in VERDICTS:
        raise BenchError(f"The run came to no verdict: {found.outcome['message']}")
    whole = found.whole
    return Row(
        section="retrain",
        case="to the verdict",
        unit="s",
        ours=whole.wall,
        at_least=RETRAIN_GOAL_S[0],
        aim=RETRAIN_GOAL_S[1],
        at_most=True,
        note=f"{found.outcome['outcome']}; processor seconds: the run {whole.run:.0f}, the model server "
        f"{whole.server:.0f}, the others {whole.others:.0f}",
        raw={name: asdict(part) for name, part in found.parts.items()},
    )


def _run(module: str, *arguments: str) -> Any:
    """Run a benchmark in a process of its own and return the numbers that it writes.

    Raises:
        BenchError: it wrote none.
    """
    with tempfile.TemporaryDirectory(prefix="strop-bench-") as folder:
        file = Path(folder) / "numbers.json"
        command = [sys.executable, "-m", module, *arguments, "--json", str(file)]
        # 1 says that a figure misses its limit, which the table says too.
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=TIMEOUT_S, check=False)
        if not file.exists():
            raise BenchError(f"{module} could not be measured ({ended.returncode}); its error is above")
        return json.loads(file.read_text(encoding="utf-8"))
