"""`python -m tests.bench.learning.judge`: what a judge that reads the question tells, by number of ratings.

Each cell is stored when it is done; the same command goes on from there. With `--served SEED` a base answers
the messages first, which takes minutes; `--people SEED` uses what people answered, `--others SEED` what those
said whose messages no development seed has. Development: `--people 601`, `--sample`, `--opinions 1`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.learning.judge import curves, people, pools
from tests.bench.learning.judge.pools import Pool

OUT = Path("bench-results/judge")
SERVED_PROMPTS = 280
PEOPLE_MESSAGES = 1_200
OTHERS_MESSAGES = 1_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.learning.judge", description=__doc__)
    parser.add_argument("--sample", action="store_true", help="the sample community's 256 replies")
    parser.add_argument("--people", type=int, action="append", default=[], help="a seed of people's answers")
    parser.add_argument("--others", type=int, action="append", default=[], help="the same, of other senders")
    parser.add_argument("--served", type=int, action="append", default=[], help="a seed of a base's answers")
    parser.add_argument(
        "--opinions", type=int, action="append", default=[], help="a seed of people's ratings"
    )
    parser.add_argument("--counts", type=int, nargs="+", default=curves.COUNTS)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--models", type=Path, help="a folder of prepared base models to share")
    parsed = parser.parse_args(arguments)
    kept = Kept(parsed.out / "cells.json")
    found = [pools.of_people(seed, PEOPLE_MESSAGES) for seed in parsed.people]
    found += [pools.of_people(seed, OTHERS_MESSAGES, tested=True) for seed in parsed.others]
    models = parsed.models or parsed.out / "models"
    found += [pools.of_base(seed, SERVED_PROMPTS, parsed.out, models) for seed in parsed.served]
    found += [pools.of_sample_community()] * parsed.sample
    for pool in found:
        print(_table(pool, parsed.counts, parsed.draws, kept), flush=True)
    for seed in parsed.opinions:
        for quality in people.COUNTS:
            cell = kept.do(f"opinions {seed}/{quality}", lambda q=quality, s=seed: people.compare(q, s))  # type: ignore[misc]
            print(quality, json.dumps(cell), flush=True)
    return 0


class Kept:
    """Results by the cell's name, on disk after each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cells: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def do(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return a cell, as it was stored or by doing it now."""
        if name not in self._cells:
            self._cells[name] = work()
            self._path.parent.mkdir(parents=True, exist_ok=True)
            partial = self._path.with_suffix(".partial")
            partial.write_text(json.dumps(self._cells, indent=1), encoding="utf-8")
            partial.replace(self._path)
        found: dict[str, Any] = self._cells[name]
        return found


def _table(pool: Pool, counts: Sequence[int], draws: int, kept: Kept) -> str:
    lines = [f"{pool.name}: {len(pool.exchanges)} answers; AUC of answers only / with the question (bound)"]
    for name, (_, texts, true) in pools.rated(pool, seed=1).items():
        shown = []
        for count in counts:
            if count > len(texts) * 0.8:
                continue
            cells = [
                kept.do(
                    f"{pool.name}/{name}/{count}/{draw}",
                    lambda count=count, draw=draw, t=texts, r=true: curves.cell(pool, t, r, count, draw),  # type: ignore[misc]
                )
                for draw in range(draws)
            ]
            shown.append(_cell(count, [cell for cell in cells if "too few" not in cell]))
        lines.append(f"  {name:24} " + "  ".join(shown))
    return "\n".join(lines)


def _cell(count: int, cells: Sequence[dict[str, Any]]) -> str:
    if not cells:
        return f"{count}: too few"
    old, new = ([cell[name] for cell in cells] for name in curves.JUDGES)
    aucs = " / ".join(f"{np.mean([one['auc'] for one in each]):.3f}" for each in (old, new))
    return f"{count}: {aucs} ({np.mean([one['bound'] for one in new]):.2f})"


if __name__ == "__main__":
    sys.exit(main())
