"""A newcomer's first run, from `/retrain` to its verdict: `python -m tests.bench.retrain`.

A deployment of its own with the sample community and every default is started as `make up` does. The run's
row says what it does; twice a second the clock and the processor time of its process and of the model server
are put to that. On a busy machine the clock would shorten the training: `--all-steps` lifts its limits, so
that processor time can be compared there.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bot.serving.model.processors import usable_cores
from tests.e2e.deployment import Deployment, deployed, until

POLL_S = 0.5
ENDED = ("finished", "failed", "cancelled")
SETTINGS = (
    "[server]\nport = 0\n[playground]\nport = 0\n[trainer]\nmin_new_ratings = 0\ninterval_hours = 0.0\n"
    "seed = {seed}\n{clocks}"
)
NO_CLOCKS = "nice = 0\nmax_train_minutes = 60.0\n[gate]\ngeneration_minutes = 60.0\n"
# The parts of an evaluation by the progress at which they end.
EVALUATION = (
    (0.1, "scoring the base's general replies"),
    (0.25, "scoring rated replies"),
    (0.3, "scoring corrections and training replies"),
    (0.35, "safety prompts"),
    (0.9, "answering held-out prompts"),
    (2.0, "scoring answers to the point"),
)
STATE = "select id, state, phase, progress, note, note_sentence, message, outcome, adapter_id from runs"


@dataclass
class Part:
    """What one part of a run took, in seconds: by the clock, and of processor time."""

    wall: float = 0.0
    run: float = 0.0
    server: float = 0.0
    others: float = 0.0


@dataclass
class Profile:
    """The parts of one run in their order, and how it ended."""

    parts: dict[str, Part] = field(default_factory=dict)
    outcome: dict[str, Any] = field(default_factory=dict)

    @property
    def whole(self) -> Part:
        """Return the sum of all parts."""
        each = self.parts.values()
        return Part(*(sum(getattr(part, of) for part in each) for of in Part.__dataclass_fields__))


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.retrain", description=__doc__)
    parser.add_argument("--all-steps", action="store_true", help="no limits of time: for a busy machine")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a new folder for the deployment, which then stays")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(measure(options.keep or Path(folder), options.seed, options.all_steps))
    print(report(found))


async def measure(parent: Path, seed: int, all_steps: bool) -> Profile:
    """Start a deployment, load the sample community, and follow one run to its verdict."""
    settings = SETTINGS.format(seed=seed, clocks=NO_CLOCKS if all_steps else "")
    profile = Profile()
    async with deployed(parent, settings, environment={"OMP_NUM_THREADS": None}) as strop:
        await strop.call("POST", "/playground/sample")
        await strop.command("retrain")
        await until(lambda: strop.query("select id from runs"), "the run to be queued", strop)
        await asyncio.to_thread(_follow, strop, profile)
    return profile


def _follow(strop: Deployment, profile: Profile) -> None:
    before, then = _processor_seconds(strop), time.monotonic()
    while True:
        time.sleep(POLL_S)
        row = strop.query(STATE)[0]
        now, used = time.monotonic(), _processor_seconds(strop)
        part = profile.parts.setdefault(name_of(row), Part())
        part.wall += now - then
        for who in ("run", "server", "others"):
            # A process that has ended takes its last half second with it.
            spent = max(used.get(who, 0.0) - before.get(who, 0.0), 0.0)
            setattr(part, who, getattr(part, who) + spent)
        before, then = used, now
        if row["state"] in ENDED:
            profile.outcome = row
            return


def name_of(row: dict[str, Any]) -> str:
    """Return what a run's row says that it does, without its numbers."""
    if row["phase"] == "evaluate":
        return "evaluate: " + next(name for end, name in EVALUATION if row["progress"] < end)
    said = json.loads(row["note_sentence"]) if row["note_sentence"] else {"template": row["note"]}
    # "...; longer than estimated, because it has slowed down"
    said = said["values"]["note"] if said["template"] == "{note}; {more}" else said
    template = said if isinstance(said, str) else said["template"]
    return f"{row['phase'] or row['state']}: {template}"


def _processor_seconds(strop: Deployment) -> dict[str, float]:
    """Return what each kind of process of the deployment has had so far."""
    found: dict[str, float] = {}
    for command, ticks in _processes(strop):
        who = "run" if "trainer.run" in command else "server" if "bot.serving" in command else "others"
        found[who] = found.get(who, 0.0) + ticks / os.sysconf("SC_CLK_TCK")
    return found


def _processes(strop: Deployment) -> Iterator[tuple[str, int]]:
    stats: dict[int, tuple[int, int]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # Behind the name, which may hold anything: state, parent, ..., user and system time.
            fields = file.read_text().rpartition(")")[2].split()
            stats[int(file.parent.name)] = int(fields[1]), int(fields[11]) + int(fields[12])
    root = strop.process.pid if strop.process else 0
    for pid, (_, ticks) in stats.items():
        above = pid
        while above in stats and above != root:
            above = stats[above][0]
        if above == root:
            with contextlib.suppress(OSError):
                yield Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "), ticks


def report(found: Profile) -> str:
    """Return the table for people."""
    lines = [
        f"A newcomer's first run on {usable_cores()} cores.",
        "",
        "| part | seconds | processor seconds: run, model server, others |",
        "|---|---|---|",
    ]
    for name, part in [*found.parts.items(), ("all", found.whole)]:
        lines.append(f"| {name} | {part.wall:.1f} | {part.run:.1f}, {part.server:.1f}, {part.others:.1f} |")
    lines += ["", f"{found.outcome['outcome']}: {found.outcome['message']}"]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
