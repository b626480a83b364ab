"""Measure how the bot feels, in real processes on this machine.

    python -m tests.bench.bot            a few minutes
    python -m tests.bench.bot --streams 20 --seconds 20

Rows: the event loop's lag while many replies stream, alone and beside a training at the trainer's priority;
and what the bot and the sockets add to the model's own time, from a member's message to the first words on
screen. Discord's stand-in and the members are in the measuring process, which takes its share of the cores.
Raw numbers are kept in bench-results/.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import structlog

from bot.playground.discord import community
from tests.bench.bot.cpu_time import computed_s
from tests.bench.bot.processes import BenchError, Stage, set_up, training

WORDS = "message to first words, median"
LAG_GOAL_MS = 100.0
ADDED_GOAL_MS = 50.0
# An answer that is to be measured must not outlast the patience of whoever measures.
ANSWER_S = 120.0
# So long without an unfinished reply, also none whose first words are still to come.
QUIET_S = 3.0


@dataclass(frozen=True)
class Row:
    """One line of the table: a figure in milliseconds, and the most that it may be."""

    what: str
    case: str
    ms: float
    goal_ms: float | None
    note: str
    raw: list[float] = field(default_factory=list)

    @property
    def reached(self) -> str:
        """Whether the goal is reached, where there is one."""
        return "–" if self.goal_ms is None else "yes" if self.ms < self.goal_ms else "no"


@dataclass(frozen=True)
class Window:
    """A stretch of time, in seconds of the monotonic clock, and the load average at its end."""

    case: str
    begins: float
    ends: float
    load: float


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, keep the numbers; 1 where it can't be done."""
    options = _parse(argv)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    load = os.getloadavg()[0]
    # Ended from outside, the processes that were started end too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        rows = asyncio.run(_measure(options))
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    file = options.results_dir / f"bot-{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    found = {"cores": os.cpu_count(), "load_before": load, "rows": [asdict(row) for row in rows]}
    file.write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(f"\n{table(rows)}\n\n{os.cpu_count()} cores, load average before {load:.1f}. Every number: {file}")
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.bot", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=50, help="replies at the same time (50)")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each lag measurement (30)")
    parser.add_argument("--questions", type=int, default=15, help="of each first-word measurement (15)")
    parser.add_argument("--models-dir", type=Path, default=Path("data/models"))
    parser.add_argument("--results-dir", type=Path, default=Path("bench-results"))
    return parser.parse_args(argv)


async def _measure(options: argparse.Namespace) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="strop-bench-") as folder:
        home = Path(folder)
        windows: list[Window] = []
        rows: list[Row] = []
        async with set_up(home, options.models_dir, options.streams, print) as stage:
            await first_words(stage, 2, "warm-up")
            for beside in (False, True):
                async with training(stage) if beside else contextlib.nullcontext():
                    case = "beside a training" if beside else "alone"
                    print(f"{case}: {options.questions} questions one by one, then {options.streams} at once")
                    rows += await first_words(stage, options.questions, case)
                    windows.append(await _streaming(stage, options.streams, options.seconds, case))
                    print(table(rows[-2:]))
        lags = json.loads(await asyncio.to_thread((home / "lags.json").read_text, "utf-8"))
    return [lag_row(window, lags, options.streams) for window in windows] + rows


def lag_row(window: Window, lags: Sequence[Sequence[float]], streams: int) -> Row:
    """Return the 99th percentile of what the loop was late by in a stretch of time."""
    inside = [each for each in lags if window.begins <= each[0] <= window.ends]
    if not inside:
        raise BenchError("The bot's loop was not watched; it may have ended.")
    late, work = (sorted(1000 * each[at] for each in inside) for at in (1, 2))
    note = (
        f"median {statistics.median(late):.1f}, longest {late[-1]:.0f} of {len(late)}; "
        f"the loop's own work {p99(work):.1f} at p99; load {window.load:.1f}"
    )
    return Row(f"event loop, late at p99, {streams} streams", window.case, p99(late), LAG_GOAL_MS, note, late)


def p99(values: Sequence[float]) -> float:
    """Return the 99th percentile of sorted values."""
    return values[min(len(values) - 1, round(0.99 * len(values)))]


async def first_words(stage: Stage, count: int, case: str) -> list[Row]:
    """Ask one by one; return what was added to the engine's own time, and the whole of it."""
    added, whole, computed = [], [], []
    for number in range(count):
        text = f"{case}, question {number}: what is a strop?"
        before_s = computed_s(stage.bot_id)
        message_id, asked_at = stage.ask(text, community.OWNER.user_id, community.GENERAL_ID)
        shown_at = await _shown(stage, message_id)
        # As the bot writes it: without its own mention.
        exchange = stage.relay.exchanges[text]
        if exchange.thought_s is not None:
            added.append(1000 * (shown_at - asked_at - exchange.thought_s))
            whole.append(1000 * (shown_at - asked_at))
            computed.append(1000 * (computed_s(stage.bot_id) - before_s))
        await _quiet(stage)
    load = os.getloadavg()[0]
    if not added:
        raise BenchError("The model server said nothing; see its log.")
    own = statistics.median(computed)
    slowest = f"slowest {max(added):.0f} of {len(added)}; the bot computed {own:.0f} in that; load {load:.1f}"
    return [
        Row(f"{WORDS}, added to the engine", case, statistics.median(added), ADDED_GOAL_MS, slowest, added),
        Row(f"{WORDS}, engine included", case, statistics.median(whole), None, "", whole),
    ]


async def _shown(stage: Stage, message_id: int) -> float:
    ends_at = time.monotonic() + ANSWER_S
    while (shown_at := stage.shown.get(message_id)) is None:
        if time.monotonic() > ends_at:
            raise BenchError(f"The bot did not answer within {ANSWER_S:.0f} s; see {stage.home / 'bot.log'}.")
        await asyncio.sleep(0.005)
    return shown_at


async def _streaming(stage: Stage, streams: int, seconds: float, case: str) -> Window:
    """Keep so many replies in the air: whoever was answered asks again."""
    places = [(person.user_id, person.dm_channel_id) for person in community.PEOPLE]
    for place in community.PLACES:
        places += [(person.user_id, place.channel_id) for person in community.PEOPLE]
    chats = itertools.cycle(places)
    numbers = itertools.count()

    def ask() -> None:
        who, channel_id = next(chats)
        stage.ask(f"{case}, chat {next(numbers)}: tell me a long story", who, channel_id)

    answered = stage.answered
    for _ in range(streams):
        ask()
    spoken = len(stage.shown)
    ends_at = time.monotonic() + ANSWER_S
    while len(stage.shown) < spoken + streams // 2 and time.monotonic() < ends_at:  # noqa: ASYNC110 - polled
        await asyncio.sleep(0.1)
    begins = time.monotonic()
    while time.monotonic() - begins < seconds:
        for _ in range(stage.answered - answered):
            ask()
        answered = stage.answered
        await asyncio.sleep(0.1)
    window = Window(case, begins, time.monotonic(), os.getloadavg()[0])
    await _quiet(stage)
    return window


async def _quiet(stage: Stage) -> None:
    """Stop what is still being written, so that the next measurement finds an idle engine."""
    ends_at, quiet_since = time.monotonic() + ANSWER_S, time.monotonic()
    while time.monotonic() < min(ends_at, quiet_since + QUIET_S):
        if stage.writing:
            stage.stop_all()
            quiet_since = time.monotonic()
        await asyncio.sleep(0.5)


def table(rows: Sequence[Row]) -> str:
    """Return a Markdown table."""
    lines = ["| what | case | ms | goal | reached | |", "|---|---|---|---|---|---|"]
    for row in rows:
        goal = "–" if row.goal_ms is None else f"< {row.goal_ms:.0f}"
        lines.append(f"| {row.what} | {row.case} | {row.ms:.1f} | {goal} | {row.reached} | {row.note} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
