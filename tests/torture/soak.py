"""Hours of questions at an even pace: the slope of the bot's memory and of its descriptors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from tests.bench.bot_memory import CHANNELS, REPLIES_PER_HOUR, Soak, anonymous_bytes, bytes_per_reply, running

SAMPLE_S = 15.0
# A line through fewer says nothing.
LEAST_SAMPLES = 8


async def soak(folder: Path, duration_s: float, note: Callable[[dict[str, float]], None]) -> None:
    """Ask for so long and note the figures so far, again and again.

    The slopes are lines through the second half of the samples.
    """
    (home := folder / "soak").mkdir()
    memory: list[tuple[int, int]] = []
    descriptors: list[tuple[int, int]] = []
    async with running(home) as talk:
        begun = time.monotonic()
        asking = [asyncio.create_task(_ask(talk, channel, begun + duration_s)) for channel in CHANNELS]
        while not all(task.done() for task in asking):
            at_s = round(time.monotonic() - begun)
            memory.append((at_s, anonymous_bytes(talk.bot_id)))
            descriptors.append((at_s, _open_files(talk.bot_id)))
            if len(memory) >= LEAST_SAMPLES:
                note(_figures(memory, descriptors) | {"replies": talk.answered})
            await asyncio.wait(asking, timeout=SAMPLE_S)
        await asyncio.gather(*asking)


def _figures(memory: list[tuple[int, int]], descriptors: list[tuple[int, int]]) -> dict[str, float]:
    return {
        "done": memory[-1][0] // 60,
        "mb_per_hour": round(bytes_per_reply(memory) * 3600 / 1e6, 2),
        "descriptors_per_hour": round(bytes_per_reply(descriptors) * 3600, 2),
        "memory_mb": round(memory[-1][1] / 1e6, 1),
        "descriptors": descriptors[-1][1],
    }


async def _ask(talk: Soak, channel_id: int, ends_at: float) -> None:
    """Ask in one channel at its share of the pace."""
    every_s, count = len(CHANNELS) * 3600 / REPLIES_PER_HOUR, 0
    while (now := time.monotonic()) < ends_at:
        await talk.ask(channel_id, count)
        count += 1
        await asyncio.sleep(max(0.0, every_s - (time.monotonic() - now)))


def _open_files(process_id: int) -> int:
    return len(list(Path(f"/proc/{process_id}/fd").iterdir()))
