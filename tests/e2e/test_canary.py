"""A canary in real processes: playground, bot, trainer over their sockets; only the model is a stand-in."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import sqlite_utils

from bot.playground.discord import community
from storage.config import load_config
from storage.db.database import Database
from storage.learning import adapters, runs
from tests.bot.fake_server import BASE_HASH, FakeModelServer
from tests.bot.test_process import Page, Processes, until
from tests.trainer.community import adapter_folder
from trainer.gate import blind_votes

OPERATORS = community.PLACES[1].channel_id
# The bot shows a channel's answers at a pace: in two of them they come in half of the time.
ROOMS = [str(community.GENERAL_ID), str(community.LAB_ID)]
PEOPLE = [person.user_id for person in community.PEOPLE if not person.simulated]
OLD_WORDS, NEW_WORDS = "The old way of it.", "A new way of it."
SETTINGS = """
[discord]
operators_channel = {operators}
[server]
base_url = "{server}"
[playground]
port = 0
[trainer]
interval_hours = 0
min_new_ratings = 0
min_raters = 2
[gate]
canary_share = 0.5
holdback_share = 0.5
"""


@pytest.fixture
async def model_server() -> AsyncIterator[FakeModelServer]:
    server = FakeModelServer()
    await server.start()
    yield server
    await server.stop()


@dataclass
class Town:
    """Three processes and the people who talk to them."""

    processes: Processes
    page: Page
    database: Database
    old: str
    new: str
    bot_id: str
    scope: str
    living: list[Any] = field(default_factory=list)

    def start(self) -> None:
        self.living = [
            self.processes.start("bot", STROP_PLAYGROUND="1"),
            self.processes.start("trainer"),
        ]

    async def restart(self) -> None:
        """Kill bot and trainer without a warning, and start them again."""
        for child in self.living:
            child.send_signal(signal.SIGKILL)
            await self.processes.ended(child)
        self.start()
        await until(self.online)

    async def online(self) -> bool:
        snapshot = await self.page.snapshot()
        return bool(snapshot["bot_online"] and snapshot["commands"] and snapshot["loop"].get("trainer_alive"))

    def answers(self) -> dict[str, tuple[str, str]]:
        """The bot's finished answers: channel and content of their messages, by id."""
        rows = self.rows(
            """SELECT reply_parts.discord_id, reply_parts.channel_id, messages.content FROM replies
               JOIN messages ON messages.id = replies.message_id
               JOIN reply_parts ON reply_parts.reply_id = replies.id WHERE replies.status = 'complete'"""
        )
        return {str(row["discord_id"]): (str(row["channel_id"]), row["content"]) for row in rows}

    async def talk(self, liked: str, times: int) -> None:
        """Begin so many conversations, by all members in turn, and like the answers that say `liked`."""
        before = set(self.answers())
        for number in range(times):
            author = PEOPLE[number % len(PEOPLE)]
            room = ROOMS[number % len(ROOMS)]
            content = f"<@{self.bot_id}> what about number {number}?"
            await self.page.post("messages", channel_id=room, author_id=str(author), content=content)

        def answered() -> dict[str, tuple[str, str]] | None:
            found = {key: answer for key, answer in self.answers().items() if key not in before}
            return found if len(found) == times else None

        for number, (message_id, (room, text)) in enumerate((await until(answered, 120)).items()):
            emoji = "👍" if text == liked else "👎"
            member = PEOPLE[number % len(PEOPLE)]
            body = {
                "channel_id": room,
                "message_id": message_id,
                "user_id": str(member),
                "emoji": emoji,
            }
            async with self.page.session.put("/playground/reactions", json=body) as response:
                assert response.status < 300, await response.text()

    async def talk_until(self, liked: str, decided: Callable[[], bool]) -> None:
        """Go on talking until the trainer has decided: how the lots fall is never the same."""
        for _ in range(6):
            await self.talk(liked, 20)
            # Longer than the trainer takes to look again.
            for _ in range(30):
                if decided():
                    return
                await asyncio.sleep(0.1)
        await until(decided, 20)

    def champion(self) -> str | None:
        return self.database.read(lambda db: adapters.champion(db, self.scope, BASE_HASH))

    def run(self) -> runs.Run:
        return self.database.read(lambda db: runs.latest(db, self.scope, 1))[0]

    def rows(self, question: str) -> list[dict[str, Any]]:
        return self.database.read(lambda db: list(db.query(question)))

    async def told(self, words: str) -> str:
        """Wait until the operators' channel has these words."""

        async def said() -> str | None:
            messages = (await self.page.snapshot())["messages"].get(str(OPERATORS), [])
            return next((each["content"] for each in messages if words in each["content"]), None)

        return str(await until(said, 60))

    async def open_canary(self) -> None:
        """End a run as its process does that found too little evidence offline."""
        config = load_config(self.processes.config, {"STROP_HOME": str(self.processes.home)})

        def work(db: sqlite_utils.Database) -> tuple[runs.Run, adapters.Adapter]:
            run = runs.enqueue(db, scope=self.scope, trigger="manual", requested_by="test")
            runs.lease_next(db, "test", 600_000)
            where = {"scope": self.scope, "base_hash": BASE_HASH, "run_id": run.id}
            adapter = adapters.insert_candidate(db, adapter_id=self.new, path=f"adapters/{self.new}", **where)
            return runs.expect(db, run.id), adapter

        run, adapter = await self.database.awrite(work)
        await blind_votes.open_vote(
            self.database,
            config.gate,
            run=run,
            adapter=adapter,
            champion_id=self.old,
            pairs=(),
            why="has not enough evidence offline, because it is a test",
            challenger_number=1,
            metrics={},
        )


@pytest.fixture
async def town(tmp_path: Path, model_server: FakeModelServer) -> AsyncIterator[Town]:
    processes = Processes(tmp_path)
    processes.config.write_text(SETTINGS.format(operators=OPERATORS, server=model_server.base_url))
    old, new = (adapter_folder(processes.data / "adapters", content) for content in (b"old", b"newer"))
    model_server.answers = {old: OLD_WORDS, new: NEW_WORDS}
    processes.start("bot.playground")
    pointer = processes.data / "run" / "playground.json"
    await until(pointer.exists)
    link = json.loads(pointer.read_text())
    headers = {"X-Playground-Secret": link["secret"]}
    async with aiohttp.ClientSession(base_url=link["url"], headers=headers) as session:
        page = Page(link, session)
        start = await page.snapshot()
        bot_id = next(each["id"] for each in start["members"] if each["bot"])
        database = Database.open(processes.data / "strop.db")
        scope = f"guild:{community.GUILD_ID}"

        def crown(db: sqlite_utils.Database) -> None:
            where = {"scope": scope, "base_hash": BASE_HASH}
            adapters.insert_candidate(db, adapter_id=old, path=f"adapters/{old}", **where)
            adapters.promote(db, adapter_id=old, actor="test", reason="for the test", **where)

        database.write(crown)
        made = Town(processes, page, database, old, new, bot_id, scope)
        made.start()
        try:
            await until(made.online, 90)
            yield made
        finally:
            database.close()
            processes.stop()


async def test_a_canary_that_members_prefer_is_promoted_and_goes_again_when_they_change_their_minds(
    town: Town, model_server: FakeModelServer
) -> None:
    await town.open_canary()
    # The trainer loads it beside the champion; until then the champion answers everything.
    await until(lambda: town.new in model_server.adapters)
    await town.talk(NEW_WORDS, 12)

    async def counted() -> Any:
        canary = (await town.page.snapshot())["loop"].get("trials", {}).get("canary")
        return canary if canary and sum(canary["rated"]) == 12 else None

    canary = await until(counted)
    assert canary["adapter_id"] == town.new and 1 <= canary["needed"][0] <= canary["needed"][1]
    assert town.run().outcome == "votes" and town.champion() == town.old

    await town.restart()
    await town.talk_until(NEW_WORDS, lambda: town.champion() == town.new)
    ended = town.run()
    assert ended.outcome == "promoted" and "as a canary it was liked in 100% of" in ended.message
    answered_by = {row["adapter_id"] for row in town.rows("SELECT adapter_id FROM replies")}
    assert answered_by == {town.old, town.new}
    sides = town.rows(
        "SELECT conversation_id, count(DISTINCT adapter_id) AS sides FROM replies GROUP BY conversation_id"
    )
    assert {row["sides"] for row in sides} == {1}

    # Half of the conversations stay with the old champion, and now the members like those better.
    await town.talk_until(OLD_WORDS, lambda: town.champion() == town.old)
    line = await town.told("no longer answers")
    assert f"adapter `{town.new}` no longer answers, adapter `{town.old}` does (rolled back" in line
    assert "members like it less: liked in 0% of" in line
    await town.talk(OLD_WORDS, 6)
    last = town.rows("SELECT adapter_id FROM replies ORDER BY created_ms DESC LIMIT 6")
    assert {row["adapter_id"] for row in last} == {town.old}
    audited = town.rows("SELECT actor, action FROM audit WHERE action LIKE 'champion.%' ORDER BY id")
    assert audited[-1] == {"actor": "trainer", "action": "champion.rollback"}


async def test_a_canary_that_members_like_less_is_refused_and_the_champion_answers_alone(
    town: Town, model_server: FakeModelServer
) -> None:
    await town.open_canary()
    await until(lambda: town.new in model_server.adapters)
    await town.talk_until(OLD_WORDS, lambda: town.run().outcome == "refused")
    assert town.champion() == town.old
    assert "because as a canary it was liked in 0% of" in town.run().message
    await until(lambda: town.new not in model_server.adapters)

    async def over() -> bool:
        return bool((await town.page.snapshot())["loop"].get("trials") == {})

    await until(over)
    line = await town.told("is refused")
    assert line.startswith("↩️") and town.new in line
    await town.talk(OLD_WORDS, 5)
    last = town.rows("SELECT adapter_id FROM replies ORDER BY created_ms DESC LIMIT 5")
    assert {row["adapter_id"] for row in last} == {town.old}
