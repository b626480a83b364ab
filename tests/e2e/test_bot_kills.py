"""The bot is killed between every two steps of a reply, and a start puts everything in order.

The steps are what the bot does outside itself: each call to Discord and to the model server. It is killed
before a call is carried out, and after it, before the answer comes back. All that it does in between, in the
database, is thereby done or not done.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from bot.chat.generation import LOADING
from bot.delivery.splitting import visible_parts
from bot.playground.discord import community
from storage.admin import settings as settings_of
from storage.chat import conversations, open_replies, replies
from storage.config import load_config
from storage.db.database import Connection
from storage.feedback import side_by_side
from tests.e2e.forked_bot import BotForks
from tests.e2e.stand_in import GENERAL, YOU, StandIn, stand_in

LONG = " ".join(f"word{number}" for number in range(520))


@dataclass
class Killer:
    """Kills the bot at one of the calls that it makes; ``left`` counts down to it, None for never."""

    strop: StandIn | None = None
    left: int | None = None
    after: bool = False
    calls: int = 0

    @web.middleware
    async def __call__(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if not _is_step(request):
            return await handler(request)
        self.calls += 1
        due = self.left is not None and self.calls == self.left
        if due and not self.after:
            self._kill()
        if due and request.path.endswith("/chat/completions"):
            self._kill()  # its answer is a stream: there is no moment after it
        response = await handler(request)
        if due:
            self._kill()
        return response

    def _kill(self) -> None:
        assert self.strop is not None and self.strop.process is not None
        self.strop.process.kill()
        self.strop.process.wait()

    def arm(self, left: int | None, *, after: bool = False) -> None:
        self.left, self.after, self.calls = left, after, 0


def _is_step(request: web.Request) -> bool:
    if request.path.startswith("/api/v10/"):
        # Of a start and of the typing indicator, which run beside the replies, nothing is left.
        changes = ("/messages", "/threads", "/callback", "/webhooks/")
        return request.method != "GET" and any(each in request.path for each in changes)
    return request.method == "POST" or request.path == "/health"


def bots_messages(t: StandIn) -> dict[int, dict[str, Any]]:
    """Every message of the bot's that people see."""
    channels = t.playground.backend.history(5000)
    return {
        int(m["id"]): m
        for messages in channels.values()
        for m in messages
        # Not what only one member sees, nor "is thinking...", nor Discord's note on a thread.
        if m["author"].get("bot") and not m["flags"] & (64 | 128) and m["type"] != 18
    }


def disorder(t: StandIn) -> list[str]:
    """What must never stay: say what is wrong now, or nothing."""

    def look(db: Connection) -> list[str]:
        wrong = [f"{reply.id} is open" for reply in open_replies.all_open(db)]
        shown = bots_messages(t)
        for message_id, message in shown.items():
            reply = replies.by_discord_id(db, message_id)
            if reply is None:
                wrong.append(f"no row knows {message['content'][:60]!r}")
            if LOADING in message["content"]:
                wrong.append(f"{message_id} still waits")
            if '"strop:reply:stop:' in json.dumps(message.get("components")):
                wrong.append(f"{message_id} can still be stopped")
        for reply in replies.recent(db, 0, 5000):
            parts = [shown.get(part.discord_id) for part in replies.parts(db, reply.id)]
            if reply.status != "complete" or not parts:
                continue
            contents = [None if part is None else part["content"].strip() for part in parts]
            if side_by_side.of(db, reply.id) is not None:
                pair = contents[0] or ""
                if reply.text not in pair or '"strop:compare:' not in json.dumps(parts[-1]):
                    wrong.append(f"{reply.id} is one of two and not delivered: {pair}")
                continue
            if contents != [content.strip() for content in visible_parts(whole_text(db, reply))]:
                wrong.append(f"{reply.id} is complete and not delivered: {contents}")
        return wrong

    return t.database.read(look)


def whole_text(db: Connection, reply: replies.Reply) -> str:
    """A reply as people see it: the prompt of a slash command, which no message shows, stands above it."""
    asked = conversations.get_message(db, reply.prompt_message_id)
    assert asked is not None
    return reply.text if asked.visible else f"> {asked.content}\n\n{reply.text}"


def unanswered(t: StandIn, questions: list[int]) -> list[int]:
    """The questions that nothing was said to."""

    def look(db: Connection) -> list[int]:
        left = []
        for question in questions:
            stored = conversations.by_discord_id(db, question)
            rows = [
                reply
                for reply in replies.recent(db, 0, 5000)
                if stored is not None and reply.prompt_message_id == stored.id and replies.parts(db, reply.id)
            ]
            if not rows:
                left.append(question)
        return left

    return t.database.read(look)


@asynccontextmanager
async def killable(home: Path, settings: str = "") -> AsyncIterator[tuple[StandIn, Killer]]:
    killer, forks = Killer(), BotForks()
    try:
        # Discord would slow down so many starts.
        async with stand_in(home, settings, middleware=killer.__call__, rate_limits=()) as t:
            killer.strop, t.forks = t, forks
            yield t, killer
    finally:
        forks.close()


@dataclass(frozen=True)
class Scenario:
    """Something that members do; ``begin`` returns the question, 0 where nobody waits for an answer."""

    begin: Callable[[StandIn, int], Awaitable[int]]
    prepare: Callable[[StandIn, int], Awaitable[None]] | None = None
    settings: str = ""
    answer: str = "Hello there, friend."
    least_kills: int = 8


async def ask(t: StandIn, number: int) -> int:
    return t.ask(f"question {number}")


async def ask_while_it_loads(t: StandIn, number: int) -> int:
    """The model is there again as soon as somebody was told to wait, or the bot was killed."""
    t.model.status = "loading"
    question = t.ask(f"question {number}")

    await dead_or(t, lambda: any(LOADING in message["content"] for message in t.said()))
    t.model.status = "ok"
    return question


async def dead_or(t: StandIn, check: Callable[[], bool]) -> None:
    """Wait until the bot is killed, or this is so: what no question tells of may not have begun yet."""
    ends_at = time.monotonic() + 120
    while t.process is not None and t.process.poll() is None and not check():
        assert time.monotonic() < ends_at, f"nothing began\n{t.log[-3000:]}"
        await asyncio.sleep(0.02)


async def ask_where_threads_open(t: StandIn, number: int) -> int:
    config = load_config(t.home / "strop.toml", t.environment)
    place = settings_of.Place(community.GUILD_ID)
    t.database.write(lambda db: settings_of.put(db, config, place, "auto_thread", True, str(YOU)))
    return t.ask(f"question {number}")


async def ask_by_command(t: StandIn, number: int) -> int:
    known = len(t.replies())
    # Nobody keeps a command for a bot that is only starting.
    await dead_or(t, lambda: t.gateway.online)
    t.playground.backend.run_command(GENERAL, YOU, "ask", options={"prompt": f"question {number}"})
    await dead_or(t, lambda: len(t.replies()) > known)
    return 0


async def answered_before(t: StandIn, number: int) -> None:
    known = len(t.replies())
    t.ask(f"question {number}")
    await t.until(lambda: len(t.replies()) > known and not disorder(t))


async def write_again(t: StandIn, number: int) -> int:
    last, known = t.said()[-1], len(t.replies())
    (button,) = [
        each["custom_id"]
        for row in last["components"]
        for each in row["components"]
        if ":regenerate:" in each["custom_id"]
    ]
    await dead_or(t, lambda: t.gateway.online)
    t.playground.backend.press_component(GENERAL, int(last["id"]), YOU, button)
    await dead_or(t, lambda: len(t.replies()) > known)
    return 0


SCENARIOS = {
    "a mention": Scenario(ask),
    "a model that loads": Scenario(ask_while_it_loads),
    "an answer of several messages": Scenario(ask, answer=LONG),
    "a thread": Scenario(ask_where_threads_open),
    "two answers": Scenario(ask, settings="[replies]\ncompare = 1.0\n"),
    "another version": Scenario(write_again, prepare=answered_before),
    "a slash command": Scenario(ask_by_command),
}


async def kill_everywhere(t: StandIn, killer: Killer, scenario: Scenario, rng: random.Random) -> int:
    """Kill the bot at each call of a scenario, before and after it, and some starts too; return how often."""
    questions: list[int] = []
    kills, t.model.answer = 0, scenario.answer
    for position in itertools.count(1):
        killed = False
        for after in (False, True):
            if t.process is None or t.process.poll() is not None:
                await t.start_bot()
            await t.until(lambda: not wrong(t, questions))
            if scenario.prepare is not None:
                await scenario.prepare(t, position)
            killer.arm(position, after=after)
            questions.append(await scenario.begin(t, position))
            while await dead_or_in_order(t, questions):
                killed, kills = True, kills + 1
                killer.arm(rng.choice((None, None, 1, 2, 3)), after=rng.random() < 0.5)
                t.process = t._spawn()
            killer.arm(None)
        if not killed:
            return kills
    raise AssertionError("unreachable")


def wrong(t: StandIn, questions: list[int]) -> list[Any]:
    return [*disorder(t), *unanswered(t, [each for each in questions if each])]


async def dead_or_in_order(t: StandIn, questions: list[int]) -> bool:
    """Wait until the bot is killed (True), or everything is in order, a moment long."""
    calm, ends_at = 0, time.monotonic() + 120
    while t.process is not None and t.process.poll() is None:
        left = wrong(t, questions)
        calm = 0 if left else calm + 1
        if calm > 10:
            return False
        assert time.monotonic() < ends_at, f"it stays so: {left}\n{t.log[-3000:]}"
        await asyncio.sleep(0.05)
    return True


# One runs with all other tests, the rest in `make torture`: each takes minutes of processes that start.
SHORT = "a model that loads"


@pytest.mark.parametrize(
    "name", [name if name == SHORT else pytest.param(name, marks=pytest.mark.torture) for name in SCENARIOS]
)
async def test_a_kill_at_any_step_of_a_reply_leaves_nothing_half_done(tmp_path: Path, name: str) -> None:
    scenario = SCENARIOS[name]
    async with killable(tmp_path, scenario.settings) as (t, killer):
        kills = await kill_everywhere(t, killer, scenario, random.Random(name))
        print(f"{name}: {kills} kills")
        assert kills >= scenario.least_kills
