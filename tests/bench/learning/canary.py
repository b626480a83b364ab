"""`python -m tests.bench.learning.canary [--seed N] [--runs N]`: how long a canary takes, how often it errs.

Simulated members, the product's own blocks and thresholds, no model: minutes on one core. Prints the tables
of EXPERIMENTS.md.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from storage.config_sections import GateConfig
from storage.learning.trials import Side
from trainer.evaluation import statistics
from trainer.evaluation.evidence import alpha_for_attempt
from trainer.gate import canary
from trainer.gate.canary import Conversation

# (liked before, liked by the newcomer): large, middling and small gains; none; a loss.
RATES = ((0.2, 0.6), (0.3, 0.6), (0.4, 0.6), (0.5, 0.6))
SHARES = (0.1, 0.3, 0.5)
NULLS = (0.1, 0.3, 0.5, 0.9)


@dataclass(frozen=True)
class Ending:
    """How one simulated trial ended: rated conversations by the newcomer, and by both."""

    decision: str
    newcomers: int
    conversations: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.learning.canary", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runs", type=int, default=400)
    parsed = parser.parse_args(arguments)
    settings = GateConfig()
    print(f"seed {parsed.seed}, {parsed.runs} runs a cell, at most {settings.canary_most_ratings} rated")
    print("\n| liked before, then | share | canary's rated conversations, median (90 %) | all | promoted |")
    print("|---|---|---|---|---|")
    for before, then in RATES:
        for share in SHARES:
            print(_power_row(before, then, share, settings, parsed.seed, parsed.runs))
    print("\n| liked by both | promoted | refused as worse |")
    print("|---|---|---|")
    for rate in NULLS:
        ends = [
            simulate(steady(rate, rate), 0.1, settings, random.Random(f"{parsed.seed}/{rate}/{n}"))
            for n in range(parsed.runs)
        ]
        print(f"| {rate:.0%} | {_share(ends, 'better')} | {_share(ends, 'worse')} |")
    drifting = [
        simulate(drift(), 0.1, settings, random.Random(f"{parsed.seed}/drift/{n}"))
        for n in range(parsed.runs)
    ]
    print(
        f"| 10 to 90 % within 200 conversations, and back | {_share(drifting, 'better')} | "
        f"{_share(drifting, 'worse')} |"
    )
    return 0


Chances = Callable[[int, Side], float]
"""How likely the n-th conversation is liked on a side."""


def steady(before: float, then: float) -> Chances:
    """Return the same chance for ever."""
    return lambda _, side: then if side == "newcomer" else before


def drift() -> Chances:
    """Return a taste that swings for both sides alike."""
    return lambda number, _: 0.5 + 0.4 * math.sin(number / 200 * math.pi)


def conversations(chances: Chances, share: float, rng: random.Random) -> Iterator[Conversation]:
    """Yield rated conversations, each on a side by lot."""
    number = 0
    while True:
        side: Side = "newcomer" if rng.random() < share else "incumbent"
        yield Conversation(side, 1.0 if rng.random() < chances(number, side) else -1.0)
        number += 1


def simulate(chances: Chances, share: float, settings: GateConfig, rng: random.Random) -> Ending:
    """Let one canary run, looked at after every rating, to its decision or to its last rating."""
    most = settings.canary_most_ratings
    drawn = list(islice(conversations(chances, share, rng), math.ceil(2 * most / share)))
    found = canary.cut(drawn)
    outcomes = np.asarray(canary.blocks(drawn))
    bets = np.asarray(statistics.BETS)[:, None]
    gain = np.exp(np.log1p(bets * outcomes).cumsum(1)).mean(0)
    loss = np.exp(np.log1p(-bets * outcomes).cumsum(1)).mean(0)
    newcomers = seen = 0
    for number, block in enumerate(found):
        newcomers += sum(each.side == "newcomer" for each in block)
        seen += len(block)
        if number + 1 < settings.min_votes:
            continue
        if loss[number] >= 1 / settings.evote_alpha:
            return Ending("worse", newcomers, seen)
        if gain[number] >= 1 / alpha_for_attempt(settings.evote_alpha, 1):
            return Ending("better", newcomers, seen)
        if newcomers >= most:
            break
    return Ending("undecided", newcomers, seen)


def _power_row(before: float, then: float, share: float, settings: GateConfig, seed: int, runs: int) -> str:
    ends = [
        simulate(
            steady(before, then), share, settings, random.Random(f"{seed}/{before}/{then}/{share}/{number}")
        )
        for number in range(runs)
    ]
    newcomers = np.quantile([end.newcomers for end in ends], [0.5, 0.9])
    everything = np.median([end.conversations for end in ends])
    return (
        f"| {before:.0%}, {then:.0%} | {share:.0%} | {newcomers[0]:.0f} ({newcomers[1]:.0f}) | "
        f"{everything:.0f} | {_share(ends, 'better')} |"
    )


def _share(ends: Sequence[Ending], decision: str) -> str:
    return f"{sum(end.decision == decision for end in ends) / len(ends):.1%}"


if __name__ == "__main__":
    sys.exit(main())
