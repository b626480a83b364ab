"""What a check found: rows, the table for the results page, and files that grow with every row."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.bench.serving.errors import BenchError

BEGIN, END = "<!-- gpu: made by python -m tests.bench.gpu_check --publish -->\n", "<!-- /gpu -->\n"
PAGE = Path(__file__).parents[3] / "deploy" / "results" / "README.md"
FILE = "gpu-check.json"


@dataclass(frozen=True)
class Row:
    """One figure as people read it, with its numbers; without a figure `reason` says why.

    `passed` is the answer where the row is a question of right or wrong.
    """

    part: str
    base: str
    case: str
    figure: str = ""
    reason: str = ""
    passed: bool | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """A whole check: where it ran, with what, and its rows."""

    machine: Mapping[str, str]
    rows: Sequence[Row]

    def write(self, folder: Path) -> Path:
        """Write all that is known by now, so that what ended a check takes no figure with it."""
        folder.mkdir(parents=True, exist_ok=True)
        value = {"machine": dict(self.machine), "rows": [asdict(row) for row in self.rows]}
        (folder / FILE).write_text(json.dumps(value, indent=1), encoding="utf-8")
        (folder / FILE).with_suffix(".md").write_text(section(self), encoding="utf-8")
        return folder / FILE


def read_check(file: Path) -> Check:
    """Read what :meth:`Check.write` wrote.

    Raises:
        BenchError: the file holds no check.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
        return Check(value["machine"], [Row(**row) for row in value["rows"]])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BenchError(f"{file} holds no results of this check: {error}") from error


def section(check: Check) -> str:
    """Return the check as Markdown: the machine, then a line for each row."""
    machine = ", ".join(f"{name} {value}" for name, value in check.machine.items())
    lines = [f"{machine}.", "", "| part | base | case | found |", "|---|---|---|---|"]
    lines += [f"| {row.part} | {row.base} | {row.case} | {found(row)} |" for row in check.rows]
    return "\n".join(lines) + "\n"


def publish(file: Path, page: Path = PAGE) -> None:
    """Put a check into the results page.

    Raises:
        BenchError: the file holds no check, or the page has no place for it.
    """
    table = section(read_check(file))
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise BenchError(f"{page} has no place for the table: {BEGIN.strip()} and {END.strip()} mark it.")
    page.write_text(before + begin + table + end + after, encoding="utf-8")


def found(row: Row) -> str:
    """Return what a row says to people."""
    if not row.figure:
        return f"not measured: {row.reason}"
    return row.figure if row.passed is None else f"{row.figure}: {'right' if row.passed else '**WRONG**'}"
