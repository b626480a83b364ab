"""A run's results: rows of a table, with the machine and the raw numbers they come from (torch-free)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal, TypeAlias

from tests.bench.serving.errors import BenchError
from tests.bench.serving.timing import Timing, ratio_of_pairs

FORMAT = 1
Section: TypeAlias = Literal["generate", "llama.cpp", "vllm", "swap", "ceiling", "scoring", "training"]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    ``ours`` and ``theirs`` are in ``unit``; ``ratio`` says how many times better Strop is, ``low`` and
    ``high`` are the turns' extremes, ``whole`` is the ratio with the reading of the prompts. ``at_least`` and
    ``aim`` are bounds on ``ratio``, or on ``ours`` where nothing is compared; ``at_most`` turns them around.
    A row that was not measured has only a ``reason``.
    """

    section: Section
    case: str
    unit: str
    ours: float | None = None
    theirs: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    whole: float | None = None
    at_least: float | None = None
    aim: float | None = None
    at_most: bool = False
    reason: str = ""
    note: str = ""
    raw: dict[str, Any] = field(default_factory=dict)

    @property
    def judged(self) -> float | None:
        """The number that the bounds are about."""
        return self.ratio if self.ratio is not None else self.ours

    def verdict(self) -> str:
        """Say whether the row reaches its bounds: ``aim``, ``yes``, ``no``, or nothing to say."""
        if self.judged is None or self.at_least is None:
            return ""
        if self.aim is not None and self._reaches(self.aim):
            return "aim"
        return "yes" if self._reaches(self.at_least) else "no"

    def _reaches(self, bound: float) -> bool:
        value = self.judged or 0.0
        return value <= bound if self.at_most else value >= bound


@dataclass(frozen=True, slots=True)
class Results:
    """One run: when (UTC, to the minute), where, of what, how thorough, and its rows."""

    date: str
    profile: str
    seconds: float
    machine: dict[str, Any]
    versions: dict[str, Any]
    setting: str
    rows: tuple[Row, ...]
    format: int = FORMAT

    def section(self, section: Section) -> list[Row]:
        """Return the rows of one section, in order."""
        return [row for row in self.rows if row.section == section]


def write_results(results: Results, file: Path) -> None:
    """Write a run as JSON, a line for each row, with every number from which its medians come."""
    value = asdict(results)
    rows = ",\n  ".join(json.dumps(row) for row in _rounded(value.pop("rows")))
    head = json.dumps(value, indent=1).removesuffix("\n}")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f'{head},\n "rows": [\n  {rows}\n ]\n}}\n', encoding="utf-8")


def _rounded(value: Any) -> Any:
    """Keep six digits that count: clocks are not better than that."""
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def read_results(file: Path) -> Results:
    """Read a run.

    Raises:
        BenchError: the file is not one of ours.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
        rows = tuple(Row(**row) for row in value.pop("rows"))
        results = Results(**{**value, "rows": rows})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BenchError(f"{file} holds no results of this benchmark: {error}") from error
    if results.format != FORMAT:
        raise BenchError(f"{file} has format {results.format}, not {FORMAT}; measure again.")
    return results


def join(runs: Sequence[Results]) -> Results:
    """Put the rows of several runs of one machine and setting together, under the last run's date.

    Raises:
        BenchError: the machines or the settings differ, or two runs have the same row.
    """
    last = runs[-1]
    same = ("processor", "cores", "flags", "gpu")
    if any(run.setting != last.setting for run in runs) or any(
        run.machine.get(key) != last.machine.get(key) for run in runs for key in same
    ):
        raise BenchError("The runs are of different machines or settings.")
    rows = tuple(row for run in runs for row in run.rows)
    if len({(row.section, row.case) for row in rows}) < len(rows):
        raise BenchError("Two of the runs have the same row.")
    packages = {name: version for run in runs for name, version in run.versions["packages"].items()}
    return replace(
        last,
        rows=rows,
        seconds=sum(run.seconds for run in runs),
        versions={**last.versions, "packages": packages},
    )


def speed_row(
    section: Section,
    ours: Sequence[Timing],
    theirs: Sequence[Timing],
    *,
    peer: str,
    at_least: float | None = None,
    aim: float | None = None,
    on_gpu: bool = False,
) -> Row:
    """Compare decoding, turn by turn: per processor second, or per second where a GPU does the work."""
    clock: Literal["cpu", "wall"] = "wall" if on_gpu else "cpu"
    mine = [timing.decode_rate(clock) for timing in ours]
    other = [timing.decode_rate(clock) for timing in theirs]
    ratio = ratio_of_pairs(mine, other)
    whole = ratio_of_pairs(
        [timing.whole_rate(clock) for timing in ours], [timing.whole_rate(clock) for timing in theirs]
    )
    streams = ours[0].streams
    return Row(
        section=section,
        case=case_of(streams),
        unit="tokens/s" if on_gpu else "tokens/CPU-s",
        ours=median(mine),
        theirs=median(other),
        ratio=ratio.median,
        low=ratio.low,
        high=ratio.high,
        at_least=at_least,
        aim=aim,
        note=peer,
        whole=whole.median,
        raw={"strop": [asdict(timing) for timing in ours], peer: [asdict(timing) for timing in theirs]},
    )


def missing_row(section: Section, streams: int, reason: str) -> Row:
    """Return the row of a comparison that could not be made."""
    return Row(section=section, case=case_of(streams), unit="tokens/CPU-s", reason=reason)


def case_of(streams: int) -> str:
    """Name a number of streams."""
    return "1 stream" if streams == 1 else f"{streams} streams"
