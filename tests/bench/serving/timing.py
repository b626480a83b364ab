"""What one side of a comparison took, and the statistics over several turns (torch-free)."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

Clock: TypeAlias = Literal["cpu", "wall"]
"""Seconds of processor time, all threads together, or seconds on the clock on the wall."""


@dataclass(frozen=True, slots=True)
class Timing:
    """One turn: prompts read and tokens written, for all streams together, in seconds.

    ``decode_*`` cover only the steps in which every stream wrote a token and no prompt was read;
    ``whole_*`` everything from the first prompt token to the last reply token.
    """

    streams: int
    whole_tokens: int
    whole_cpu_s: float
    whole_wall_s: float
    decode_tokens: int
    decode_cpu_s: float
    decode_wall_s: float

    def decode_rate(self, clock: Clock = "cpu") -> float:
        """Tokens written per second once every stream writes."""
        return self.decode_tokens / (self.decode_cpu_s if clock == "cpu" else self.decode_wall_s)

    def whole_rate(self, clock: Clock = "cpu") -> float:
        """Tokens written per second, the reading of the prompts included."""
        return self.whole_tokens / (self.whole_cpu_s if clock == "cpu" else self.whole_wall_s)


class Side(Protocol):
    """One of the systems that are compared."""

    name: str

    def run(self, prompts: list[list[int]], tokens: int) -> Timing:
        """Write ``tokens`` tokens after every prompt, greedily, all streams together."""

    def close(self) -> None:
        """Free what the side holds."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """The median of the turns' ratios, with the lowest and the highest of them."""

    median: float
    low: float
    high: float


def ratio_of_pairs(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Divide ``ours`` by ``theirs`` turn by turn.

    Raises:
        ValueError: there are no turns, or not as many on both sides.
    """
    if not ours:
        raise ValueError("there are no pairs")
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest of ``values`` that at least ``share`` of them do not exceed.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("there are no values")
    ordered = sorted(values)
    rank = max(1, -(-len(ordered) * share // 1))
    return ordered[min(len(ordered), int(rank)) - 1]


def take_turns(
    sides: Sequence[Side], turns: Sequence[list[list[int]]], tokens: int
) -> dict[str, list[Timing]]:
    """Let every side write after each turn's prompts; who begins changes from turn to turn."""
    taken: dict[str, list[Timing]] = {side.name: [] for side in sides}
    for turn, prompts in enumerate(turns):
        first = turn % len(sides)
        for side in (*sides[first:], *sides[:first]):
            taken[side.name].append(side.run(prompts, tokens))
    return taken


def timing_from_json(value: dict[str, Any]) -> Timing:
    """Read a timing that another process measured.

    Raises:
        TypeError: a field is missing or unknown.
    """
    return Timing(**value)
