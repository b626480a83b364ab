"""A run's results: rows of a table, with the machine and the raw numbers they come from (torch-free)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal, TypeAlias

from tests.bench.serving.errors import BenchError
from tests.bench.serving.timing import Timing, ratio_of_pairs

FORMAT = 1
Section: TypeAlias = Literal[
    "generate",
    "llama.cpp",
    "vllm",
    "threads",
    "ceiling",
    "first word",
    "swap",
    "scoring",
    "training",
    "learning",
    "retrain",
    "start",
    "queries",
]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    ``ours`` and ``theirs`` are in ``unit``; ``ratio`` says how many times better Strop is, ``low`` and
    ``high`` are the extremes of its turns, or of ``runs`` where there were several; ``whole`` is the ratio
    with the reading of the prompts. ``at_least`` and ``aim`` are bounds on ``ratio``, or on ``ours`` where
    nothing is compared, ``whole_at_least`` and ``whole_aim`` on ``whole``; ``at_most`` turns them around. A
    row that was not measured has only a ``reason``.
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
    whole_at_least: float | None = None
    whole_aim: float | None = None
    whole_low: float | None = None
    whole_high: float | None = None
    runs: int = 1

    @property
    def judged(self) -> float | None:
        """The number that the bounds are about."""
        return self.ratio if self.ratio is not None else self.ours

    def verdict(self) -> str:
        """Say whether the row reaches its bounds: ``aim``, ``yes``, ``no``, or nothing to say."""
        return self._verdict(self.judged, self.at_least, self.aim)

    def whole_verdict(self) -> str:
        """Say the same of ``whole``."""
        return self._verdict(self.whole, self.whole_at_least, self.whole_aim)

    def _verdict(self, value: float | None, at_least: float | None, aim: float | None) -> str:
        if value is None or at_least is None:
            return ""
        if aim is not None and self._reaches(value, aim):
            return "aim"
        return "yes" if self._reaches(value, at_least) else "no"

    def _reaches(self, value: float, bound: float) -> bool:
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
    """Put the rows of several runs on one machine together, under the last run's date.

    A row that several runs have becomes their median, with the lowest and the highest of them.

    Raises:
        BenchError: the machines or the settings differ.
    """
    last = runs[-1]
    # A run may have been held to one of the cores.
    same = ("processor", "flags", "gpu")
    if any(run.setting != last.setting for run in runs) or any(
        run.machine.get(key) != last.machine.get(key) for run in runs for key in same
    ):
        raise BenchError("The runs are of different machines or settings.")
    found: dict[tuple[str, ...], list[Row]] = {}
    for run in runs:
        for row in run.rows:
            found.setdefault(_place(row), []).append(row)
    measured = {place[:2] for place, rows in found.items() if any(row.ours is not None for row in rows)}
    packages = {name: version for run in runs for name, version in run.versions["packages"].items()}
    machine = dict(last.machine)
    for key in {"cores", "load"} & machine.keys():
        machine[key] = max(run.machine.get(key, 0) for run in runs)
    return replace(
        last,
        rows=tuple(
            _joined(rows)
            for place, rows in found.items()
            if any(row.ours is not None for row in rows) or place[:2] not in measured
        ),
        seconds=sum(run.seconds for run in runs),
        machine=machine,
        versions={
            **last.versions,
            "strop": _each_once(run.versions["strop"] for run in runs),
            "packages": packages,
        },
        profile=_each_once(run.profile for run in runs),
    )


def _place(row: Row) -> tuple[str, ...]:
    """Return what tells a row from others: ``generate`` is run in two ways, which its note names."""
    return (row.section, row.case, row.note if row.section == "generate" else "")


def _joined(rows: Sequence[Row]) -> Row:
    """Return one row of a case's medians; where no run measured it, the last one's reason."""
    measured = [row for row in rows if row.ours is not None]
    if len(measured) < 2:
        return (measured or list(rows))[-1]
    ratios, wholes = _values(measured, "ratio"), _values(measured, "whole")
    judged = ratios or _values(measured, "ours")
    theirs = _values(measured, "theirs")
    return replace(
        measured[-1],
        ours=median(_values(measured, "ours")),
        theirs=median(theirs) if theirs else None,
        ratio=median(ratios) if ratios else None,
        low=min(judged),
        high=max(judged),
        whole=median(wholes) if wholes else None,
        whole_low=min(wholes) if wholes else None,
        whole_high=max(wholes) if wholes else None,
        runs=sum(row.runs for row in measured),
        raw={
            "runs": [
                {"ours": row.ours, "theirs": row.theirs, "ratio": row.ratio, **row.raw} for row in measured
            ]
        },
    )


def _values(rows: Sequence[Row], name: str) -> list[float]:
    return [value for row in rows if (value := getattr(row, name)) is not None]


def _each_once(texts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(texts))


def speed_row(
    section: Section,
    ours: Sequence[Timing],
    theirs: Sequence[Timing],
    *,
    peer: str,
    goal: tuple[float | None, float | None] = (None, None),
    whole_goal: tuple[float | None, float | None] = (None, None),
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
        at_least=goal[0],
        aim=goal[1],
        note=peer,
        whole=whole.median,
        whole_low=whole.low,
        whole_high=whole.high,
        whole_at_least=whole_goal[0],
        whole_aim=whole_goal[1],
        raw={"strop": [asdict(timing) for timing in ours], peer: [asdict(timing) for timing in theirs]},
    )


def missing_row(section: Section, streams: int, reason: str) -> Row:
    """Return the row of a comparison that could not be made."""
    return Row(section=section, case=case_of(streams), unit="tokens/CPU-s", reason=reason)


def case_of(streams: int) -> str:
    """Name a number of streams."""
    return "1 stream" if streams == 1 else f"{streams} streams"
