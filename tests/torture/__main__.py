"""Run the torture and print its table: ``python -m tests.torture`` (`make torture`).

What is done is kept after every step in bench-results/torture/, a file for each part: a call that was
interrupted goes on there, one with larger sizes adds to it, and parts may run side by side. ``--publish``
writes the table into deploy/results/README.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

from sqlite_utils.utils import sqlite3

from tests.torture import clock, disk_full, kills, outages
from tests.torture import soak as soaking
from tests.torture.forks import Forks
from tests.torture.siege import Siege

RESULTS = Path("bench-results/torture")
PAGE = Path("deploy/results/README.md")
BEGIN, END = "<!-- torture: made by python -m tests.torture --publish -->", "<!-- /torture -->"
RATINGS = 210
KILLS_PER_DEPLOYMENT = 100
SIDE_BY_SIDE = 3
# After so many everything must be in order; what must be true at every moment is looked at after each.
KILLS_TO_ORDER = 5
# Tests that are too long for `make test`, by what they try; the shorter ones first.
MARKED = {
    "damaged databases, kills in a restore": ["tests/storage/privacy/test_backups.py"],
    "any order of acts against a model": ["tests/storage/privacy/test_interleavings.py"],
    "hostile texts": ["tests/bot/chat/test_hostile_texts.py"],
    "kills at every step of a reply": ["tests/e2e/test_bot_kills.py"],
    "malformed events, a connection that breaks": [
        "tests/e2e/test_connection.py",
        "tests/e2e/test_sign_ins.py",
    ],
    "kills of a training and its run": [
        "tests/trainer/training/test_checkpoints.py",
        "tests/trainer/run/test_run.py",
        "tests/e2e/test_torture.py",
    ],
    "an import of a million lines": ["tests/storage/imports/test_million_lines.py"],
    "swaps under load": ["tests/bot/serving/engine/test_swap_soak.py"],
    "the whole loop with the defaults": ["tests/e2e/test_whole_loop.py"],
}

Figures = dict[str, Any]
Save = Callable[[Figures], None]


@dataclass(frozen=True)
class Part:
    """One row of the table: ``goal`` is the size that the project asks for, ``go_on`` adds to the figures."""

    name: str
    goal: int
    go_on: Callable[[Figures, int, Path, Save], Awaitable[None]]
    say: Callable[[Figures], str]


async def kill(figures: Figures, wanted: int, folder: Path, save: Save) -> None:
    """Kill processes of deployments; several side by side, since most of the time they wait."""
    from tests.tiny_model import build_tiny_base  # The short forms of the other parts need no model.

    source = build_tiny_base(folder / "tiny")
    kept = figures.get("done", 0)
    batches = [
        min(KILLS_PER_DEPLOYMENT, wanted - begun) for begun in range(kept, wanted, KILLS_PER_DEPLOYMENT)
    ]
    seeds = iter(enumerate(batches, kept))
    async with asyncio.TaskGroup() as sides:
        for side in range(min(SIDE_BY_SIDE, len(batches))):
            (own := folder / f"side-{side}").mkdir()
            sides.create_task(_kill_in(own, source, seeds, figures, save))


async def _kill_in(
    folder: Path, source: Path, seeds: Iterator[tuple[int, int]], figures: Figures, save: Save
) -> None:
    """Kill in one deployment after the other, each with a seed and a number of kills."""
    (models := folder / "models").mkdir()
    forks = await asyncio.to_thread(Forks, folder, os.environ)
    try:
        for seed, count in seeds:
            home = folder / f"kills-{seed}"
            wrong = True
            async with kills.besieged(home, source, models, forks, seed) as siege:
                try:
                    wrong = await _kill_on(siege, count, figures, save)
                    if not wrong:
                        await siege.until(
                            lambda: not kills.words_in_files(siege), "erased words to leave every file"
                        )
                except AssertionError as error:
                    wrong = True
                    figures["wrong"] = [*figures.get("wrong", []), str(error)[:2000]]
                finally:
                    _count_acts(siege, figures)
                    save(figures)
            if not wrong:
                shutil.rmtree(home)
    finally:
        forks.close()


async def _kill_on(siege: Siege, count: int, figures: Figures, save: Save) -> bool:
    """Kill so often, or until something is wrong; return whether it is."""
    for number in range(1, count + 1):
        before = Counter(siege.killed)
        wrong: list[str] = []
        try:
            await kills.one_kill(siege, settle=number % KILLS_TO_ORDER == 0 or number == count)
        except AssertionError as error:
            wrong = [str(error)[:2000]]
        done = siege.killed - before
        figures["done"] = figures.get("done", 0) + done.total()
        figures["killed"] = dict(Counter(figures.get("killed", {})) + done)
        figures["wrong"] = figures.get("wrong", []) + wrong
        save(figures)
        print(f"kill {figures['done']}: {dict(done)} {wrong}", flush=True)
        if wrong:
            return True
    return False


def _count_acts(siege: Siege, figures: Figures) -> None:
    for name, count in (
        ("questions", len(siege.asked)),
        ("ratings", siege.rated),
        ("deleted messages", len(siege.deleted)),
        ("erasures", len(siege.left)),
        ("promotions", siege.query("select count(*) as n from promotions")[0]["n"]),
    ):
        figures[name] = figures.get(name, 0) + count
    figures["runs"] = dict(Counter(figures.get("runs", {})) + kills.runs_of(siege))


async def outage(figures: Figures, wanted: int, folder: Path, save: Save) -> None:
    """Let the bot be away while everybody rates."""
    if figures.get("done", 0) >= wanted:
        return
    home = folder / "outages"
    home.mkdir()
    async with outages.absent(home, RATINGS, figures.get("done", 0)) as absent:
        while figures.get("done", 0) < wanted:
            ratings, lost = await absent.one()
            figures["done"] = figures.get("done", 0) + 1
            figures["ratings"] = figures.get("ratings", 0) + ratings
            figures["lost"] = figures.get("lost", 0) + lost
            save(figures)
            print(f"outage {figures['done']}: {ratings} ratings, {lost} lost", flush=True)


async def jump(figures: Figures, wanted: int, folder: Path, save: Save) -> None:
    """Let the clock jump while things go on."""
    while (seed := figures.get("done", 0)) < wanted:
        wrong = await asyncio.to_thread(clock.jumps, folder, seed)
        figures["done"], figures["wrong"] = seed + 1, figures.get("wrong", []) + wrong
        save(figures)


async def fill(figures: Figures, wanted: int, folder: Path, save: Save) -> None:
    """Fill the disk at every write."""
    while (seed := figures.get("done", 0)) < wanted:
        refused, wrong = await asyncio.to_thread(disk_full.fill, folder, seed)
        figures["done"], figures["refused"] = seed + 1, figures.get("refused", 0) + refused
        figures["wrong"] = figures.get("wrong", []) + wrong
        save(figures)


async def tests(figures: Figures, wanted: int, folder: Path, save: Save) -> None:
    """Run the marked tests, each group in a process of its own; ``wanted`` is how many groups."""
    done = figures.setdefault("groups", {})
    for name, files in list(MARKED.items())[:wanted]:
        if name in done:
            continue
        begun = time.monotonic()
        command = [sys.executable, "-m", "pytest", "-q", "-n0", "-m", "torture", "--timeout", "7200", *files]
        process = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, check=False
        )
        print(process.stdout[-1500:], flush=True)
        last = (process.stdout.strip().splitlines() or ["nothing"])[-1]
        done[name] = {
            "passed": _count(r"passed", last),
            "failed": _count(r"failed", last) + _count(r"errors?", last),
            "minutes": round((time.monotonic() - begun) / 60, 1),
        }
        if process.returncode and not done[name]["failed"]:
            done[name]["failed"] = 1  # it ended without a word, or nothing was collected
        figures["done"] = len(done)
        save(figures)


def _count(word: str, line: str) -> int:
    found = re.search(rf"(\d+) {word}", line)
    return int(found[1]) if found else 0


async def soak(figures: Figures, wanted: int, folder: Path, save: Save) -> None:
    """Ask the bot for so many minutes and note the slope of its memory and of its descriptors."""
    if figures.get("done", 0) >= wanted:
        return

    def note(so_far: dict[str, float]) -> None:
        figures.update(so_far)
        save(figures)
        print(f"soak: {so_far}", flush=True)

    await soaking.soak(folder, wanted * 60.0, note)
    figures["done"] = wanted
    save(figures)


def _wrong(figures: Figures) -> str:
    found = figures.get("wrong", [])
    return "none wrong" if not found else f"{len(found)} wrong, the first: {' '.join(found[0].split())[:120]}"


def _each(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def _acts(figures: Figures) -> list[str]:
    names = [
        name
        for name in ("questions", "ratings", "deleted messages", "erasures", "promotions")
        if name in figures
    ]
    runs = [f"runs: {_each(figures['runs'])}"] if figures.get("runs") else []
    return [", ".join([f"{figures[name]} {name}" for name in names] + runs)] if names else []


PARTS = {
    "kills": Part(
        "kill -9 of a bot, model server, trainer, run or supervisor while members ask, rate, delete, leave, "
        "runs train, adapters are promoted",
        1_000,
        kill,
        lambda f: "; ".join([_each(f["killed"]), *_acts(f), _wrong(f)]),
    ),
    "outages": Part(
        f"outages of the bot with {RATINGS} ratings in each",
        100,
        outage,
        lambda f: f"{f['ratings']} ratings, {f['lost']} lost",
    ),
    "disk": Part(
        "databases with a full disk at every write",
        100,
        fill,
        lambda f: f"{f['refused']} writes refused; {_wrong(f)}",
    ),
    "clock": Part("databases under a clock that jumps by days", 100, jump, _wrong),
    "soak": Part(
        "minutes of soak at 6,000 replies an hour (goal: under 5 MB an hour)",
        120,
        soak,
        lambda f: (
            f"{f['replies']} replies; in the second half memory {f['mb_per_hour']:+.1f} MB an hour, "
            f"descriptors {f['descriptors_per_hour']:+.1f} an hour"
        ),
    ),
    "tests": Part(
        "groups of long tests",
        len(MARKED),
        tests,
        lambda f: "; ".join(
            f"{name}: {each['passed']} passed" + (f", {each['failed']} failed" if each["failed"] else "")
            for name, each in f["groups"].items()
        ),
    ),
}


def table(results: dict[str, Figures]) -> str:
    """Return the results page's table; what was not tried says so."""
    lines = ["| tried | size (goal) | outcome |", "|---|---|---|"]
    for key, part in PARTS.items():
        figures = results.get(key, {})
        done = figures.get("done", 0)
        lines.append(
            f"| {part.name} | {done:,} ({part.goal:,}) | {part.say(figures) if done else 'not tried'} |"
        )
    return "\n".join(lines)


def tried_with() -> str:
    """Return when something was last tried, and with which versions."""
    last = max((file.stat().st_mtime for file in RESULTS.glob("*.json")), default=time.time())
    versions = [f"{name} {metadata.version(name)}" for name in ("discord.py", "torch")]
    return (
        f"Last tried on {date.fromtimestamp(last)} with Python {platform.python_version()}, "
        f"SQLite {sqlite3.sqlite_version}, {', '.join(versions)}, on {os.cpu_count()} cores."
    )


def publish(results: dict[str, Figures]) -> None:
    """Put the table between its marks on the results page."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    page = f"{before}{BEGIN}\n{table(results)}\n\n{tried_with()}\n{END}{after}"
    PAGE.write_text(page, encoding="utf-8")


async def run(names: Sequence[str], sizes: dict[str, int], results: dict[str, Figures]) -> None:
    """Go on with these parts up to their sizes."""

    def saver(name: str) -> Save:
        def save(figures: Figures) -> None:
            results[name] = figures
            RESULTS.mkdir(parents=True, exist_ok=True)
            partial = RESULTS / f"{name}.partial"
            partial.write_text(json.dumps(figures, indent=1, ensure_ascii=False), encoding="utf-8")
            partial.replace(RESULTS / f"{name}.json")

        return save

    with tempfile.TemporaryDirectory(prefix="strop-torture-") as folder:
        for name in names:
            await PARTS[name].go_on(results.get(name, {}), sizes[name], Path(folder), saver(name))


def kept() -> dict[str, Figures]:
    """Return what each part has found so far."""
    return {file.stem: json.loads(file.read_text("utf-8")) for file in RESULTS.glob("*.json")}


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run, print; 1 where something went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--parts", default=",".join(PARTS), help="some of: " + ", ".join(PARTS))
    parser.add_argument(
        "--publish", action="store_true", help="write the table into the results page, and end"
    )
    parser.add_argument("--again", action="store_true", help="begin the chosen parts anew")
    for name, part in PARTS.items():
        parser.add_argument(f"--{name}", type=int, default=part.goal, metavar="N")
    options = parser.parse_args(arguments)
    results = kept()
    if options.publish:
        publish(results)
        return 0
    names = options.parts.split(",")
    if options.again:
        results = {name: figures for name, figures in results.items() if name not in names}
    # What the processes load is one thread each, as in the tests.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    asyncio.run(run(names, {name: getattr(options, name) for name in PARTS}, results))
    results = kept()
    print(table(results))
    failed = any(each["failed"] for each in results.get("tests", {}).get("groups", {}).values())
    lost = results.get("outages", {}).get("lost", 0)
    return int(bool(failed or lost or any(figures.get("wrong") for figures in results.values())))


if __name__ == "__main__":
    sys.exit(main())
