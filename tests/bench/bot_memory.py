"""How the bot's memory grows with the replies that it gives: ``python -m tests.bench.bot_memory``.

The bot is a process of its own, Discord's stand-in and a model server without a model are in this one. Three
members ask in three channels, one question after the other. What is measured is the bot's anonymous memory
(RssAnon, proc(5)); the growth is a line through the second half, when every cache is full.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bot.playground.discord import community
from bot.playground.server import Playground, PlaygroundSettings
from storage.config import load_config
from tests.bot.fake_server import FakeModelServer

CHANNELS = (community.GENERAL_ID, community.LAB_ID, community.REHEARSAL_ID)
PATIENCE_S = 60.0
EVERY = 250
# The load at which the goal is stated, and the goal.
REPLIES_PER_HOUR = 6_000
GOAL_MB_PER_HOUR = 5.0


@dataclass
class Soak:
    """One bot under questions; `samples` are (replies given, bytes)."""

    playground: Playground
    bot_id: int
    finished: dict[int, asyncio.Event] = field(default_factory=dict)
    samples: list[tuple[int, int]] = field(default_factory=list)
    answered: int = 0

    def hear(self, event: str, data: dict[str, Any]) -> None:
        """Note a question whose reply is finished: its buttons tell."""
        buttons = [each for row in data.get("components") or [] for each in row["components"]]
        asked = (data.get("message_reference") or {}).get("message_id")
        waiting = self.finished.get(int(asked)) if asked is not None else None
        if waiting is not None and any(":regenerate" in each.get("custom_id", "") for each in buttons):
            waiting.set()

    async def ask_all(self, count: int) -> None:
        """Ask so many questions, three at a time."""
        numbers = iter(range(count))
        await asyncio.gather(*(self._ask(channel, numbers) for channel in CHANNELS))
        self.samples.append((count, anonymous_bytes(self.bot_id)))

    async def _ask(self, channel_id: int, numbers: Any) -> None:
        for number in numbers:
            if number % EVERY == 0:
                self.samples.append((number, anonymous_bytes(self.bot_id)))
                print(f"{number:6} replies: {self.samples[-1][1] / 1e6:.1f} MB", flush=True)
            await self.ask(channel_id, number)

    async def ask(self, channel_id: int, number: int) -> None:
        """Ask one question and wait for its answer."""
        who = community.PEOPLE[number % len(community.PEOPLE)].user_id
        text = f"<@{community.BOT_ID}> question {number} about something interesting"
        asked = int(self.playground.backend.send_message(channel_id, who, text)["id"])
        self.finished[asked] = asyncio.Event()
        async with asyncio.timeout(PATIENCE_S):
            await self.finished[asked].wait()
        del self.finished[asked]
        self.answered += 1


def anonymous_bytes(process_id: int) -> int:
    """Return a process's anonymous memory in bytes."""
    lines = Path(f"/proc/{process_id}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def bytes_per_reply(samples: Sequence[tuple[int, int]]) -> float:
    """Return the slope of a least-squares line through the second half of the samples."""
    later = sorted(samples)[len(samples) // 2 :]
    middle = sum(x for x, _ in later) / len(later), sum(y for _, y in later) / len(later)
    spread = sum((x - middle[0]) ** 2 for x, _ in later)
    return sum((x - middle[0]) * (y - middle[1]) for x, y in later) / spread


@contextlib.asynccontextmanager
async def running(home: Path) -> AsyncIterator[Soak]:
    """Start the bot with all that it connects to; whatever was started ends with the block."""
    server = FakeModelServer()
    await server.start()
    try:
        async with Playground(PlaygroundSettings()) as playground:
            (home / "strop.toml").write_text(f'[server]\nbase_url = "{server.base_url}"\n', encoding="utf-8")
            config = load_config(home / "strop.toml", {"STROP_HOME": str(home)})
            config.run.mkdir(parents=True, exist_ok=True)
            addresses = {
                "api": playground.api_url,
                "gateway": playground.gateway_url,
                "token": playground.token,
            }
            (config.run / "playground.json").write_text(json.dumps(addresses), encoding="utf-8")
            with _started(home) as bot:
                soak = Soak(playground, bot.pid)
                playground.backend.on_page_event(soak.hear)
                async with asyncio.timeout(PATIENCE_S):
                    # The stand-in tells nobody when the bot is there.
                    while not (playground.gateway.online and playground.backend.commands()):  # noqa: ASYNC110
                        await asyncio.sleep(0.1)
                yield soak
    finally:
        await server.stop()


@contextlib.contextmanager
def _started(home: Path) -> Any:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DISCORD_", "STROP_"))}
    command = [sys.executable, "-m", "bot", "--config", str(home / "strop.toml")]
    with (home / "bot.log").open("ab") as log:
        bot = subprocess.Popen(
            command, env={**kept, "STROP_HOME": str(home), "STROP_PLAYGROUND": "1"}, stdout=log, stderr=log
        )
    try:
        yield bot
    finally:
        bot.terminate()
        bot.wait(60)


async def measure(count: int) -> None:
    """Ask, and print the growth."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as home:
        async with running(Path(home)) as soak:
            await soak.ask_all(count)
    slope = bytes_per_reply(soak.samples)
    hourly = slope * REPLIES_PER_HOUR / 1e6
    print(
        f"{count} replies in {time.monotonic() - began:.0f} s; after half of them the bot grew by "
        f"{slope:.0f} bytes a reply: {hourly:.1f} MB an hour at {REPLIES_PER_HOUR} replies an hour "
        f"(goal: below {GOAL_MB_PER_HOUR:.0f})"
    )


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--replies", type=int, default=6_000, help="how many to ask for (default: %(default)s)"
    )
    asyncio.run(measure(parser.parse_args().replies))


if __name__ == "__main__":
    main()
