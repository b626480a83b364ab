"""No text, file or chain holds up the event loop: every step of reading one stays short, whatever is in it.

A step is what runs without letting others run. It is measured in processor time of the thread, so that a busy
machine doesn't count.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Any

import pytest

from bot.chat import question
from bot.chat.content import attachments
from bot.chat.prompt import Turn, build_within
from bot.serving.model.control_tokens import escape_control_tokens
from bot.serving.protocol import ChatMessage
from storage.chat.splits import near_duplicate_key

# A step may take 10 ms on a machine of its own. Shared caches make processor time longer too, five times was
# seen; what this test is for took seconds.
STEP_S = 0.2
UNITS = (
    *("<@", "<", "<|", "[", "<a_>", "<user>", "[inst]", "http://", "https://a", "<:a:", "<#1", "@", "|", "`"),
    *(
        "!",
        "...",
        "\n",
        " ",
        "\n- ",
        "1.",
        "a",
        "漢",
        "é",
        "\u0301\u0323",
        "\u0344",
        "\ufdfa",
        "\u200b",
        "\x00",
    ),
    *(
        "ß",
        "İ",
        "\ud800",
        "🏳️‍🌈",
        "</think>",
        "{}",
        '{"a":',
        "&amp;",
        "\\",
        "\t",
        "。",
        "<a",
        "\u1100\u1161",
        "﷽",
    ),
)
LENGTHS = (1, 30, 2_000, 4_000, 100_000)


def hostile(seed: int) -> str:
    """Return a text that repeats a few of UNITS, alone, in blocks or mixed."""
    drawn = random.Random(seed)
    units = drawn.sample(UNITS, drawn.choice((1, 1, 2, 3)))
    length = drawn.choice(LENGTHS)
    if drawn.random() < 0.3:
        return "".join(drawn.choice(units) for _ in range(length // 4 + 1))[:length]
    return "".join(unit * (length // len(units) // len(unit) + 1) for unit in units)[:length]


def cpu_s(work: Callable[[], Any]) -> float:
    """Return what one call costs, the best of five: the first fills caches, others empty them."""
    spent = []
    for _ in range(5):
        begun = time.thread_time()
        work()
        spent.append(time.thread_time() - begun)
        if spent[-1] < STEP_S:
            break
    return min(spent)


def steps_s(work: Coroutine[Any, Any, Any]) -> Iterator[float]:
    """Yield what each step of a coroutine costs that never waits for anything but its turn."""
    while True:
        begun = time.thread_time()
        try:
            work.send(None)
        except StopIteration:
            return
        finally:
            yield time.thread_time() - begun


async def estimated(messages: Sequence[ChatMessage]) -> int:
    return sum(len(message.content) for message in messages) // 2


def read(text: str) -> dict[str, float]:
    """Return what it costs to do with a text all that is done with one."""
    message = text[:4_000]
    return {
        "key": cpu_s(lambda: near_duplicate_key(text)),
        "neutralise": cpu_s(lambda: escape_control_tokens(message)),
        "quoted": cpu_s(lambda: question.quote_line(message)),
        "file name": cpu_s(lambda: attachments.plain_name(text)),
        "file": cpu_s(lambda: attachments.decode(text.encode("utf-8", "replace")[:262_144], "text/plain")),
    }


def worst(texts: int) -> dict[str, float]:
    found: dict[str, float] = {}
    for seed in range(texts):
        for what, seconds in read(hostile(seed)).items():
            found[what] = max(found.get(what, 0.0), seconds)
    return found


def worst_of_chains(chains: int) -> float:
    slowest = 0.0
    for seed in range(chains):
        turns = [
            Turn(hostile(seed * 64 + number), None if number % 2 else 1 + number % 3, "name")
            for number in range(63)
        ]
        turns.append(Turn(hostile(-seed - 1) or "x", 1, "name"))
        slowest = max(slowest, *steps_s(build_within("You are kind.", turns, 3_000, estimated)))
    return slowest


def test_hostile_texts_take_no_time() -> None:
    slow = {what: seconds for what, seconds in worst(400).items() if seconds > STEP_S}
    assert slow == {}


def test_chains_of_64_long_messages_take_no_time() -> None:
    assert worst_of_chains(12) < STEP_S


@pytest.mark.torture
def test_ten_thousand_hostile_texts_and_five_hundred_chains_take_no_time() -> None:
    slow = {what: seconds for what, seconds in worst(10_000).items() if seconds > STEP_S}
    assert slow == {}
    assert worst_of_chains(500) < STEP_S


@pytest.mark.parametrize(
    "charset", ["bz2_codec", "zlib", "hex", "punycode", "idna", "unicode_escape", "a" * 9_999]
)
def test_only_charsets_of_text_are_decoded(charset: str) -> None:
    """A kilobyte of bz2 unpacks to hundreds of megabytes."""
    import bz2

    packed = bz2.compress(b"a" * 50_000_000)
    text = attachments.decode(packed, f"text/plain; charset={charset}")
    assert text is None or len(text) <= len(packed)


def test_the_loop_goes_on_beside_a_long_chain() -> None:
    """The same over the real loop: somebody else's timer is never late by much of a second."""

    async def beside(work: Awaitable[Any]) -> tuple[float, float]:
        started = time.perf_counter()
        late, done = 0.0, asyncio.Event()

        async def tick() -> None:
            nonlocal late
            while not done.is_set():
                begun = time.perf_counter()
                await asyncio.sleep(0.001)
                late = max(late, time.perf_counter() - begun)

        ticking = asyncio.create_task(tick())
        await work
        done.set()
        await ticking
        return late, time.perf_counter() - started

    turns = [Turn("<user> " * 14_000, None if number % 2 else 1) for number in range(63)]
    for _ in range(3):  # A machine that stands still makes every timer late.
        late_s, whole_s = asyncio.run(
            beside(build_within("", [*turns, Turn("and now?", 1)], 30_000, estimated))
        )
        print(f"late by {late_s:.2f} s at most, of {whole_s:.1f} s")
        if late_s < max(0.5, whole_s / 4):
            return
    raise AssertionError("the timer was late each time")
