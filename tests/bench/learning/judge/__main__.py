"""`python -m tests.bench.learning.judge`: what a judge that reads the question tells, by number of ratings.

Each cell is stored when it is done; the same command goes on from there. With `--served SEED` a base answers
the messages first, which takes minutes; `--people SEED` uses what people answered, `--others SEED` what those
said whose messages no development seed has. Development: `--people 601`, `--sample`, `--served 501`,
`--opinions 1`. With `--hidden-states BASE` it says instead what that base's states would add to the judge.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.learning.judge import curves, hidden_states, people, pools
from tests.bench.learning.judge.pools import Pool
from trainer.evaluation.reward_model import RatedText

OUT = Path("bench-results/judge")
SERVED_PROMPTS, SERVED_REPLIES = 280, 4
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
    parser.add_argument("--served-size", type=int, nargs=2, default=(SERVED_PROMPTS, SERVED_REPLIES))
    parser.add_argument(
        "--hidden-states", type=Path, metavar="BASE", help="a prepared base whose hidden states are tried"
    )
    parser.add_argument(
        "--variants", type=hidden_states.Variant.of, nargs="+", default=[hidden_states.CHOSEN]
    )
    parser.add_argument("--tastes", nargs="+", help="only these")
    parser.add_argument("--counts", type=int, nargs="+", default=curves.COUNTS)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--models", type=Path, help="a folder of prepared base models to share")
    parsed = parser.parse_args(arguments)
    kept = Kept(parsed.out / "cells.json")
    found = [pools.of_people(seed, PEOPLE_MESSAGES) for seed in parsed.people]
    found += [pools.of_people(seed, OTHERS_MESSAGES, tested=True) for seed in parsed.others]
    models = parsed.models or parsed.out / "models"
    messages, replies = parsed.served_size
    found += [pools.of_base(seed, messages, parsed.out, models, replies) for seed in parsed.served]
    found += [pools.of_sample_community()] * parsed.sample
    measure = _TODAY if parsed.hidden_states is None else _hidden(parsed)
    for pool in found:
        print(_table(pool, measure, parsed.tastes, parsed.counts, parsed.draws, kept), flush=True)
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


@dataclass(frozen=True)
class _Measure:
    """What a cell is, how its name in the file ends, and how the cells of some draws are shown."""

    heading: str
    cell: Callable[[Pool, Sequence[RatedText], Sequence[bool], int, int], dict[str, Any]]
    shown: Callable[[Sequence[dict[str, Any]]], str]
    suffix: str = ""


def _table(
    pool: Pool,
    measure: _Measure,
    tastes: Sequence[str] | None,
    counts: Sequence[int],
    draws: int,
    kept: Kept,
) -> str:
    lines = [f"{pool.name}: {len(pool.exchanges)} answers; {measure.heading}"]
    for name, (_, texts, true) in pools.rated(pool, seed=1).items():
        if tastes and name not in tastes:
            continue
        shown = []
        for count in counts:
            if count > len(texts) * 0.8:
                continue
            cells = [
                kept.do(
                    f"{pool.name}/{name}/{count}/{draw}{measure.suffix}",
                    lambda count=count, draw=draw, t=texts, r=true: measure.cell(pool, t, r, count, draw),  # type: ignore[misc]
                )
                for draw in range(draws)
            ]
            full = [cell for cell in cells if "too few" not in cell]
            shown.append(f"{count}: {measure.shown(full) if full else 'too few'}")
        lines.append(f"  {name:24} " + "  ".join(shown))
    return "\n".join(lines)


def _judges(cells: Sequence[dict[str, Any]]) -> str:
    old, new = ([cell[name] for cell in cells] for name in curves.JUDGES)
    aucs = " / ".join(f"{np.mean([one['auc'] for one in each]):.3f}" for each in (old, new))
    return f"{aucs} ({np.mean([one['bound'] for one in new]):.2f})"


_TODAY = _Measure("AUC of answers only / with the question (bound)", curves.cell, _judges)


def _hidden(parsed: argparse.Namespace) -> _Measure:
    states = hidden_states.States(parsed.hidden_states, parsed.out / "states.npz")
    names = [variant.name for variant in parsed.variants]

    def cell(
        pool: Pool, texts: Sequence[RatedText], true: Sequence[bool], count: int, draw: int
    ) -> dict[str, Any]:
        states.compute([item.exchange for item in texts], parsed.variants)
        return hidden_states.cell(pool, texts, true, count, draw, states, parsed.variants)

    def shown(cells: Sequence[dict[str, Any]]) -> str:
        gains = [
            f"{np.mean([cell[name]['gain'] for cell in cells]):+.3f} "
            f"[{sum(cell[name]['taken'] for cell in cells)}] "
            f"{np.mean([cell[name]['always'] for cell in cells]):+.3f}"
            for name in names
        ]
        return f"{np.mean([cell['now'] for cell in cells]):.3f} " + " | ".join(gains)

    heading = "today's AUC, and by variant the block's gain [in how many draws it is used] and if always used"
    return _Measure(f"{heading}: {' | '.join(names)}", cell, shown, f"/{'; '.join(names)}")


if __name__ == "__main__":
    sys.exit(main())
