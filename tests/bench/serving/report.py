"""A run as text: the table on the terminal, and the results page's section, made from committed results."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tests.bench.serving.errors import BenchError
from tests.bench.serving.picture import draw
from tests.bench.serving.results import Results, Row, Section, join, read_results, write_results

BEGIN, END = "<!-- speed: made by python -m tests.bench.serving --publish -->", "<!-- /speed -->"
PAGE_FILE = "bot/serving/RESULTS.md"
RESULTS_FILE = "deploy/results/speed.json"
PICTURE_FILE = "deploy/images/speed.svg"
_TITLES: dict[Section, str] = {
    "generate": "transformers + PEFT",
    "llama.cpp": "llama.cpp",
    "vllm": "vLLM",
    "threads": "two threads beside one",
    "ceiling": "the memory's ceiling, 1 stream",
    "first word": "first word while a run trains, without it",
    "swap": "adapter change, PEFT `hotswap_adapter`",
    "scoring": "the trainer's scoring, naive loop",
    "training": "while training goes on, without it",
    "learning": "training, TRL + PEFT",
    "retrain": "`/retrain` on the sample community, two cores",
    "start": "start",
    "queries": "queries",
}

_SPEED: tuple[Section, ...] = ("generate", "llama.cpp", "vllm")


def table(rows: Sequence[Row]) -> str:
    """Return a Markdown table: a line for each row, with extremes and goals."""
    lines = [
        "| beside | case | runs | Strop | the other | ratio (lowest to highest) | with the prompt "
        "| goal, aim | reached |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    order = list(_TITLES)
    for row in sorted(rows, key=lambda row: order.index(row.section)):
        runs = "–" if row.ours is None else str(row.runs)
        reached = _both(row.verdict(), row.whole_verdict())
        cells = [_beside(row), row.case, runs, *_figures(row), _whole(row), _goal(row), reached]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def missed(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that miss what they should at least reach, with or without the prompt."""
    return [row for row in rows if "no" in (row.verdict(), row.whole_verdict())]


def _whole(row: Row) -> str:
    if row.whole is None:
        return "–"
    if row.whole_low is None or row.whole_high is None:
        return f"{row.whole:.2f}"
    return f"**{row.whole:.2f}** ({row.whole_low:.2f} to {row.whole_high:.2f})"


def _both(decoding: str, whole: str) -> str:
    """Join what is said of a row with what is said of it when the prompt counts."""
    return (
        "; ".join([*([decoding] if decoding else []), *([f"with the prompt {whole}"] if whole else [])])
        or "–"
    )


def _beside(row: Row) -> str:
    """Name the other side; the notes of speed rows also say how it was run."""
    return row.note if row.section in _SPEED and row.note else _TITLES[row.section]


def _figures(row: Row) -> tuple[str, str, str]:
    if row.ours is None:
        return "–", row.reason, "–"
    theirs = "–" if row.theirs is None else number(row.theirs)
    if row.ratio is None:
        spread = "–" if row.low is None or row.high is None else f"{number(row.low)} to {number(row.high)}"
        return f"{number(row.ours)} {row.unit}", theirs, spread
    spread = "" if row.low is None or row.high is None else f" ({row.low:.2f} to {row.high:.2f})"
    return f"{number(row.ours)} {row.unit}", theirs, f"**{row.ratio:.2f}**{spread}"


def _goal(row: Row) -> str:
    sign = "≤" if row.at_most else "≥"

    def bounds(at_least: float | None, aim: float | None) -> str:
        return "" if at_least is None else f"{sign} {at_least:g}" + (f", {aim:g}" if aim is not None else "")

    return _both(bounds(row.at_least, row.aim), bounds(row.whole_at_least, row.whole_aim))


def number(value: float) -> str:
    """Write a figure with three digits that count."""
    if value == 0.0:
        return "0"
    if abs(value) < 0.01:
        return f"{value:.1e}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def page_section(results: Results) -> str:
    """Return what stands between the page's markers."""
    versions = ", ".join(f"{name} {version}" for name, version in sorted(_packages(results).items()))
    noted = [row for row in results.rows if row.note and row.section not in _SPEED]
    notes = [f"- {_TITLES[row.section]}, {row.case}: {row.note}." for row in noted]
    minutes = results.seconds / 60
    return "\n".join(
        [
            BEGIN,
            f"![Strop's speed beside other servers]({_from_page(PICTURE_FILE)})",
            "",
            f"{results.setting}. Medians of as many runs as the row says, with the lowest and the highest, "
            f"or of one run's turns; remarks below are of the last run. "
            f"Both sides of a row in one run, {minutes:.0f} minutes in all, "
            f"{results.date}, on "
            f"{_machine(results)}. Strop {results.versions['strop']}, Python {results.versions['python']}, "
            f"{versions}. Every number behind it: [{RESULTS_FILE}]({_from_page(RESULTS_FILE)}).",
            "",
            table(results.rows),
            "",
            *notes,
            END,
        ]
    )


def _from_page(file: str) -> str:
    """Return the link from the page to a file of the repository."""
    return os.path.relpath(file, Path(PAGE_FILE).parent)


def _packages(results: Results) -> dict[str, str]:
    packages = dict(results.versions["packages"])
    packages.pop("built for", None)
    return packages


def _machine(results: Results) -> str:
    machine = results.machine
    parts = [machine["processor"], f"{machine['cores']} cores", " ".join(machine["flags"])]
    parts += [f"{machine['memory_gb']:.0f} GB", *([machine["gpu"]] if machine["gpu"] else [])]
    if "load" in machine:
        parts.append(f"with a load average of at most {machine['load']:.1f} before")
    return ", ".join(parts)


def insert_section(page: str, section: str) -> str:
    """Return the page with the section between its markers.

    Raises:
        BenchError: the markers are missing.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise BenchError(f"{PAGE_FILE} has no place for the table: {BEGIN} and {END} mark it.")
    return before + section + after


def publish(raw: Sequence[Path], root: Path) -> None:
    """Make one or more runs the ones that the repository shows: numbers, picture and the page's section.

    Raises:
        BenchError: a file holds no results, they do not go together, or the page has no place for them.
    """
    page = root / PAGE_FILE
    before = page.read_text(encoding="utf-8")
    insert_section(before, "")
    write_results(join([read_results(file) for file in raw]), root / RESULTS_FILE)
    # From the file as committed, whose numbers are rounded, so that anyone gets the same text again.
    results = read_results(root / RESULTS_FILE)
    text = insert_section(before, page_section(results))
    for row in missed(results.rows):
        print(f"missed, so the page has to say why: {_TITLES[row.section]}, {row.case}")
    (root / PICTURE_FILE).write_text(draw(results), encoding="utf-8")
    page.write_text(text, encoding="utf-8")
