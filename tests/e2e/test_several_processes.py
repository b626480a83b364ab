"""Two processes of one bot, each with a shard, on one database: as the stand-in sees them."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from bot.playground.discord import community
from storage.db import key_values
from tests.e2e.forked_bot import BotForks
from tests.e2e.stand_in import ADA, GENERAL, YOU, add_guild, stand_in

SETTINGS = "[discord]\nshards = 2\nprocesses = 2\n"
# On the shard that the playground's own server isn't on.
OTHER_GUILD = ((community.GUILD_ID >> 22) + 1) << 22


@pytest.fixture
def forks() -> Iterator[BotForks]:
    """Four bots start here: one process imports for all of them."""
    made = BotForks()
    yield made
    made.close()


async def test_each_serves_its_servers_and_one_that_is_killed_leaves_the_other_answering(
    tmp_path: Path, forks: BotForks
) -> None:
    async with stand_in(tmp_path, SETTINGS) as t:
        t.forks = forks
        servers = {community.GUILD_ID: GENERAL, OTHER_GUILD: add_guild(t.playground, OTHER_GUILD)}
        by_shard = {(guild >> 22) % 2: channel for guild, channel in servers.items()}
        first, second = by_shard[0], by_shard[1]
        await t.start_bot(shards=1)
        other = await t.start_process(1)
        connected = [each.shard for each in t.gateway.sessions.values() if each.connection is not None]
        assert sorted(connected) == [(0, 2), (1, 2)]

        answer = t.model.answer
        for channel in (first, second):
            t.ask("hello", channel=channel)
            (said,) = await t.answered(answer, channel)
            t.react(int(said["id"]), YOU, channel=channel)
        await t.until(lambda: t.standing() == [(YOU, 1), (YOU, 1)])
        logs = [t.log, (tmp_path / "bot-1.log").read_text()]
        rated = [[line for line in log.splitlines() if '"rating.added"' in line] for log in logs]
        assert [len(lines) for lines in rated] == [1, 1], logs

        # Killed while both write: what one writes is none of the other's business, at its next start neither.
        t.model.answer, t.model.gate = "one two three four", asyncio.Event()
        for channel in (first, second):
            t.ask("again", channel=channel)
        await t.until(lambda: len(t.said(first)) == 2 and len(t.said(second)) == 2)
        other.send_signal(signal.SIGKILL)
        await asyncio.to_thread(other.wait, 60)
        t.react(int(t.said(second)[0]["id"]), ADA, channel=second)
        await t.start_process(1)
        await t.until(lambda: t.fact(key_values.RECOVERED_RATINGS) == "1")
        writing = [
            row for row in t.replies() if row.status == "streaming" and row.scope == _scope(servers, first)
        ]
        assert len(writing) == 1
        t.model.gate.set()
        await t.answered("one two three four", first)
        await t.until(lambda: all(row.status != "streaming" for row in t.replies()))
        t.ask("and now", channel=second)
        await t.answered("one two three four", second)
        assert sorted(t.standing()) == sorted([(YOU, 1), (YOU, 1), (ADA, 1)])
        assert {row.scope for row in t.replies()} == {f"guild:{guild}" for guild in servers}

        # A number that isn't configured, and one that is there already, end with one sentence.
        for number, said in ((2, "--process: must be from 0 to 1"), (1, "Another bot (process")):
            name = f"refused-{number}"
            refused = forks.start(tmp_path, t.environment, name, ["--process", str(number)])
            await asyncio.to_thread(refused.wait, 60)
            assert said in (tmp_path / f"{name}.log").read_text()

        # With the other one away for good the first goes on as before.
        t.others[1].send_signal(signal.SIGKILL)
        await asyncio.to_thread(t.others[1].wait, 60)
        t.ask("still there?", channel=first)
        await t.answered("one two three four", first)
        await t.stop_bot()


def _scope(servers: dict[int, int], channel: int) -> str:
    return next(f"guild:{guild}" for guild, each in servers.items() if each == channel)
