"""The bot as ever, with a watch on its event loop: ``python -m tests.bench.bot.watched_bot CONFIG FILE``.

At the end FILE holds a list of (moment, lag, work), in seconds: on the clock that all processes of a machine
share, how much later than asked for the loop went on after a sleep of ten milliseconds, and for how long its
thread had computed meanwhile. What is late without work waited for a processor.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path

from bot.__main__ import run
from bot.language import texts
from storage.config import Config, load_config
from storage.process import logs

PAUSE_S = 0.01


def main() -> int:
    """Run until told to stop; returns the bot's exit code."""
    config_path, file = Path(sys.argv[1]), Path(sys.argv[2])
    logs.configure("bot")
    texts.load()
    config = load_config(config_path, os.environ)
    lags: list[tuple[float, float, float]] = []
    try:
        return asyncio.run(_watched(config, lags))
    finally:
        file.write_text(json.dumps(lags), encoding="utf-8")


async def _watched(config: Config, lags: list[tuple[float, float, float]]) -> int:
    watch = asyncio.create_task(_watch(lags))
    try:
        return await run(config, playground=True)
    finally:
        watch.cancel()


async def _watch(lags: list[tuple[float, float, float]]) -> None:
    while True:
        before, worked = time.monotonic(), time.thread_time()
        await asyncio.sleep(PAUSE_S)
        now = time.monotonic()
        lags.append((now, now - before - PAUSE_S, time.thread_time() - worked))


if __name__ == "__main__":
    sys.exit(main())
