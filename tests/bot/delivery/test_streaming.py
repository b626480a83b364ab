"""Streaming: the latest text wins, the pace is kept, the final text always arrives."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.delivery import streaming
from bot.delivery.splitting import MESSAGE_LIMIT, visible_parts, width
from bot.delivery.streaming import ChannelPace, Paces, ReplyRenderer
from bot.errors import ChannelRefusedError, DeliveryError
from tests.bot.screen import Parts, Screen


@pytest.fixture
def screen() -> Screen:
    return Screen()


@pytest.fixture
def parts() -> Parts:
    return Parts()


@pytest.fixture
async def renderer(screen: Screen, parts: Parts) -> AsyncIterator[ReplyRenderer]:
    made = ReplyRenderer(screen, ChannelPace(0.05), parts)
    yield made
    await made.abandon()


@pytest.fixture(autouse=True)
def _short_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "_FINAL_RETRIES_S", (0.01, 0.01, 0.01))


async def test_only_the_latest_text_is_shown(screen: Screen, renderer: ReplyRenderer) -> None:
    for count in range(1, 200):
        renderer.show("word " * count)
        await asyncio.sleep(0.001)
    await renderer.finish("the end")

    assert screen.messages == {100: "the end"}
    # Of two hundred, one each 50 ms: a machine that is busy with other things takes longer, and shows more.
    assert len(screen.calls) <= (screen.at[-1] - screen.at[0]) / 0.05 + 2


async def test_showing_never_waits_for_discord(screen: Screen, renderer: ReplyRenderer) -> None:
    screen.gate = asyncio.Event()
    for count in range(100):
        renderer.show("x" * (count + 1))
        await asyncio.sleep(0)
    assert screen.calls and screen.messages == {}
    screen.gate.set()
    await renderer.finish("done")
    assert screen.messages == {100: "done"}


async def test_edits_keep_the_pace(screen: Screen, renderer: ReplyRenderer) -> None:
    for count in range(60):
        renderer.show("x" * (count + 1))
        await asyncio.sleep(0.005)
    await renderer.finish("done")
    assert len(screen.at) <= (screen.at[-1] - screen.at[0]) / 0.05 + 2


async def test_an_edit_that_changes_nothing_is_skipped(screen: Screen, renderer: ReplyRenderer) -> None:
    renderer.show("same")
    await asyncio.sleep(0.12)
    renderer.show("same ")
    await asyncio.sleep(0.12)
    await renderer.finish("same")
    assert [kind for kind, _ in screen.calls if kind == "edit"] == []


async def test_a_long_reply_becomes_several_messages(
    screen: Screen, renderer: ReplyRenderer, parts: Parts
) -> None:
    text = "".join(f"line {number} of a long reply\n" for number in range(300))
    renderer.show(text[:500])
    await asyncio.sleep(0.1)
    await renderer.finish(text)

    assert "".join(screen.messages.values()) == text
    assert parts.sent_parts == [(message_id, position) for position, message_id in enumerate(screen.messages)]
    assert len(parts.sent_parts) > 3


@pytest.mark.parametrize("failures", [1, 3])
async def test_the_final_text_arrives_after_failures(
    screen: Screen, renderer: ReplyRenderer, failures: int
) -> None:
    renderer.show("partial")
    await asyncio.sleep(0.02)
    screen.failures = [DeliveryError("no") for _ in range(failures)]
    await renderer.finish("partial, and the rest")
    assert screen.messages == {100: "partial, and the rest"}


async def test_a_failed_edit_in_the_middle_costs_nothing(screen: Screen, renderer: ReplyRenderer) -> None:
    renderer.show("one")
    await asyncio.sleep(0.02)
    screen.failures = [DeliveryError("no")]
    renderer.show("one two")
    await asyncio.sleep(0.12)
    assert screen.messages == {100: "one"}
    await renderer.finish("one two three")
    assert screen.messages == {100: "one two three"}


async def test_a_channel_that_refuses_ends_the_attempts(screen: Screen, renderer: ReplyRenderer) -> None:
    screen.failures = [ChannelRefusedError("403")]
    with pytest.raises(ChannelRefusedError):
        await renderer.finish("text")
    assert len(screen.calls) == 1


async def test_a_permanent_failure_is_reported_in_the_end(screen: Screen, renderer: ReplyRenderer) -> None:
    screen.failures = [DeliveryError("no") for _ in range(10)]
    with pytest.raises(DeliveryError):
        await renderer.finish("text")
    assert len(screen.calls) == 4


async def test_a_message_that_somebody_deleted_stays_deleted(screen: Screen, renderer: ReplyRenderer) -> None:
    renderer.show("first")
    await asyncio.sleep(0.02)
    screen.gone.add(100)
    text = "word " * 500
    await renderer.finish(text)
    assert screen.messages[100] == "first"
    assert screen.messages[101].endswith("word ")


async def test_a_shorter_final_text_takes_surplus_messages_away(
    screen: Screen, renderer: ReplyRenderer
) -> None:
    renderer.show("word " * 500)
    await asyncio.sleep(0.1)
    assert len(screen.messages) == 2
    await renderer.finish("short")
    assert screen.messages == {100: "short"}


async def test_the_pace_slows_with_round_trips_and_recovers() -> None:
    pace = ChannelPace(1.2)
    pace.observe(1.5)
    assert pace.interval_s == 2.4
    for _ in range(5):
        pace.observe(6.0)
    assert pace.interval_s == streaming.SLOWEST_PACE_S
    for _ in range(5):
        pace.observe(0.05)
    assert pace.interval_s == 1.2


async def test_replies_in_one_channel_share_its_pace() -> None:
    paces = Paces(0.05)
    assert paces.of(1) is paces.of(1)
    assert paces.of(1) is not paces.of(2)
    pace, loop = paces.of(1), asyncio.get_running_loop()
    took_s = []
    for _ in range(3):  # A machine that stands still makes one of them long.
        started = loop.time()
        await asyncio.gather(*(pace.turn() for _ in range(4)))
        took_s.append(loop.time() - started)
    assert 0.14 < min(took_s) < 0.4


async def test_what_may_be_left_out_takes_only_free_turns(screen: Screen) -> None:
    """Twenty who wait in one channel cost a reply in it no more than one turn."""

    pace = ChannelPace(0.1)
    waiting = [ReplyRenderer(Screen(200 + 10 * n), pace, Parts()) for n in range(20)]
    reply = ReplyRenderer(screen, pace, Parts())
    started = asyncio.get_running_loop().time()
    shown = 0
    for _ in range(30):
        shown += sum(one.show_if_free(f"-# still waiting {shown}") for one in waiting)
        await asyncio.sleep(0.01)
    waited_s = asyncio.get_running_loop().time() - started
    assert 1 <= shown <= waited_s / 0.1 + 1
    finishing, overtook = asyncio.create_task(reply.finish("the answer")), 0
    while not screen.calls:
        overtook += sum(one.show_if_free("-# still waiting") for one in waiting)
        await asyncio.sleep(0.01)
    await finishing
    assert overtook <= 1
    for one in waiting:
        await one.abandon()


GROWING = st.lists(
    st.sampled_from(
        [
            "word " * 80,
            "👩‍👩‍👧‍👦🇩🇪👍🏽1️⃣" * 40,
            "日本語です。" * 60,
            "שָׁלוֹם مرحبا " * 40,
            "क्षि" * 90,
            "e\u0301" * 200,
            "x" * 700,
            "- item\n" * 30,
            "| a | b |\n" * 30,
            "```py\n",
            "```",
            "\n\n",
            " ",
        ]
    ),
    min_size=1,
    max_size=14,
).map("".join)


@given(GROWING, st.lists(st.integers(30, 900), min_size=1, max_size=12), st.lists(st.booleans(), max_size=6))
@settings(max_examples=60, deadline=None)
def test_however_a_reply_grows_its_messages_end_as_its_text_is_split(
    text: str, steps: list[int], failing: list[bool]
) -> None:
    """Tokens come in any pieces, half a character at times, and Discord fails: nothing is lost."""
    screen = asyncio.run(_grown(text, steps, failing))
    # White space around a message isn't shown: Discord drops it, and no edit is spent on it.
    shown = [content.strip() for content in screen.messages.values()]
    assert shown == [content.strip() for content in visible_parts(text)]
    assert all(0 < width(content) <= MESSAGE_LIMIT for kind, content in screen.calls if kind != "delete")


async def _grown(text: str, steps: list[int], failing: list[bool]) -> Screen:
    screen = Screen()
    renderer = ReplyRenderer(screen, ChannelPace(0.0), Parts())
    end, failures = 0, itertools.chain(failing, itertools.repeat(False))
    for step, fails in zip(itertools.cycle(steps), failures, strict=False):
        end += step
        if end >= len(text):
            break
        if fails:
            screen.failures = [DeliveryError("no")]
        if text[:end].strip():
            renderer.show(text[:end])
        for _ in range(3):
            await asyncio.sleep(0)
    await renderer.finish(text)
    return screen
