"""A deployment under fire: members ask, rate and leave, runs train, adapters are promoted, processes die."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bot.chat.missed_questions import MOST_IN_CHANNEL
from bot.playground.discord import community
from bot.playground.errors import ActionRefusedError
from bot.playground.server import Playground
from storage.db.database import Database
from tests.torture.forks import Forks

OPERATOR = community.OWNER.user_id
PEOPLE = [person.user_id for person in community.PEOPLE if not person.simulated]
# Each of them asks, rates, and erases everything once.
LEAVING = [person.user_id for person in community.SIMULATED]
SUPERVISOR = "supervised"
# How often each is killed while it is there.
PROCESSES = {"bot": 5, "bot.serving": 3, "trainer": 3, "trainer.run": 4, SUPERVISOR: 1}
# Asking, rating, deleting a question, training or promoting, erasing. A run costs more than all the rest.
WEIGHTS = (10, 14, 1, 2, 0.6)
PAUSE_S = 0.3
POLL_S = 0.2
# A wait fails once nothing has moved for so long: no row, no line of a log, no second of computing.
PATIENCE_S = 90.0
REPLIES = """select replies.id, replies.status, replies.finish_reason, reply_parts.discord_id,
       messages.content as text, reply_parts.position, asked.discord_id as asked
       from replies join messages on messages.id = replies.message_id
       join messages as asked on asked.id = replies.prompt_message_id
       left join reply_parts on reply_parts.reply_id = replies.id"""


@dataclass
class Siege:
    """One deployment under fire: what was asked, and who rates what by Discord's own word."""

    home: Path
    playground: Playground
    database: Database
    forks: Forks
    environment: dict[str, str]
    draw: random.Random
    asked: dict[int, int] = field(default_factory=dict)
    words: dict[int, str] = field(default_factory=dict)
    deleted: set[int] = field(default_factory=set)
    reactions: dict[tuple[int, int], list[str]] = field(default_factory=dict)
    rated: int = 0
    leaving: list[int] = field(default_factory=lambda: list(LEAVING))
    leaves: int | None = None
    left: set[int] = field(default_factory=set)
    killed: Counter[str] = field(default_factory=Counter)
    confirm: dict[int, dict[str, Any]] = field(default_factory=dict)
    may_act: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def members(self) -> list[int]:
        """Return everybody who asks and rates now."""
        return PEOPLE + self.leaving[:1]

    def query(self, sql: str) -> list[dict[str, Any]]:
        return self.database.read(lambda db: list(db.query(sql)))

    # ------------------------------------------------------------------ what members and operators do

    async def act(self) -> None:
        """Do one thing; what meets a dead process is simply refused."""
        acts = (self.ask, self.rate, self.delete, self.train_or_promote, self.erase)
        with contextlib.suppress(ActionRefusedError):
            self.draw.choices(acts, WEIGHTS)[0]()

    async def go_on_acting(self) -> None:
        """Act again and again, whoever is dead meanwhile."""
        while True:
            await self.may_act.wait()
            await self.act()
            await asyncio.sleep(self.draw.uniform(0.0, PAUSE_S))

    def ask(self) -> None:
        # Of those that come while the bot is away, so many are answered in a channel.
        if len(self.unanswered()) >= MOST_IN_CHANNEL:
            return
        who, word = self.draw.choice(self.members), f"pearl{len(self.asked)}{self.draw.randrange(10**6)}"
        sent = self.playground.backend.send_message(
            community.GENERAL_ID, who, f"<@{community.BOT_ID}> what is {word}?"
        )
        self.asked[int(sent["id"])], self.words[int(sent["id"])] = who, word

    def rate(self, choice: str = "👍👎") -> None:
        rows = self.query(f"{REPLIES} where replies.status = 'complete' and position = 0")
        if not rows:
            return
        message_id, emoji = self.draw.choice(rows)["discord_id"], self.draw.choice(choice)
        who = self.draw.choice(self.members)
        given = self.reactions.setdefault((message_id, who), [])
        reacted = emoji not in given
        self.playground.backend.set_reaction(community.GENERAL_ID, message_id, who, emoji, reacted=reacted)
        (given.append if reacted else given.remove)(emoji)
        self.rated += 1

    def delete(self) -> None:
        """Somebody deletes a question of theirs that was answered."""
        answered = set(self.asked) - self.unanswered() - self.deleted
        mine = [each for each in answered if self.asked[each] in self.members]
        if mine:
            message_id = self.draw.choice(sorted(mine))
            self.playground.backend.delete_message(community.GENERAL_ID, message_id, self.asked[message_id])
            self.deleted.add(message_id)

    def train_or_promote(self) -> None:
        """Begin a run where none is on; else let any adapter that there is take over."""
        on = self.query("select 1 from runs where state in ('queued', 'running')")
        if not on and self.draw.random() < 0.7:
            self.command("retrain")
            return
        there = [row["id"] for row in self.query("select id from adapters where state <> 'tainted'")]
        self.command("promote", adapter=self.draw.choice([*there, "base"]))

    def erase(self) -> None:
        """One member asks for everything of theirs to be deleted, confirms it, and says nothing any more."""
        if self.leaves is None and self.leaving:
            self.leaves = self.leaving.pop(0)
            self.confirm.pop(self.leaves, None)
        if self.leaves is None:
            return
        question = self.confirm.pop(self.leaves, None)
        if question is None:
            self.command("privacy", self.leaves, "delete")
        else:
            buttons = [button for row in question["components"] for button in row["components"]]
            custom_id = next(each["custom_id"] for each in buttons if ":yes:" in each["custom_id"])
            self.playground.backend.press_component(
                community.GENERAL_ID, int(question["id"]), self.leaves, custom_id
            )

    def command(self, name: str, who: int = OPERATOR, subcommand: str = "", **options: Any) -> None:
        self.playground.backend.run_command(
            community.GENERAL_ID, who, name, subcommand=subcommand, options=options
        )

    def heard(self, event: str, data: dict[str, Any]) -> None:
        """Keep the last question before an erasure, which only one member sees."""
        if event == "MESSAGE_CREATE" and "strop:erase:" in json.dumps(data.get("components")):
            self.confirm[int(data["visible_to"]) if "visible_to" in data else self.leaves or 0] = data

    # ------------------------------------------------------------------ killing

    def start(self) -> None:
        """Start bot, model server and trainer under their supervisor."""
        self.forks.start(
            "tests.torture.supervised",
            str(self.home / "strop.toml"),
            environment=self.environment,
            log=self.home / "up.log",
        )

    def victims(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for pid, name in self.forks.alive().items():
            found.setdefault(name, []).append(pid)
        return {name: pids for name, pids in found.items() if name in PROCESSES}

    async def kill(self) -> str:
        """Kill one process at a random moment; return which kind it was."""
        await asyncio.sleep(self.draw.uniform(0.0, 1.0))
        running = self.victims()
        name = self.draw.choices(list(running), [PROCESSES[each] for each in running])[0]
        for pid in running[name]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.killed[name] += 1
        if name == SUPERVISOR:
            await self.until(lambda: not self.victims(), "the end of what the supervisor started")
            self.start()
        return name

    async def all_there(self) -> None:
        """Wait until every process that belongs to the deployment runs, and the bot is signed in."""
        lasting = set(PROCESSES) - {"trainer.run"}
        await self.until(
            lambda: lasting <= self.victims().keys() and self.playground.gateway.online, "every process"
        )

    def moved(self) -> Any:
        """Return something that is another as soon as anything has moved."""
        rows = self.query("select state, phase, note from runs")
        logs = sum(file.stat().st_size for file in self.home.rglob("*.log"))
        return logs, int(self.forks.computed_s()), rows

    async def until(self, check: Callable[[], Any], what: str) -> Any:
        """Poll until it is truthy; fail once nothing has moved for PATIENCE_S."""
        last, moved = self.moved(), time.monotonic()
        while not (found := check()):
            await asyncio.sleep(POLL_S)
            if (now := self.moved()) != last:
                last, moved = now, time.monotonic()
            elif time.monotonic() - moved > PATIENCE_S:
                log = (self.home / "up.log").read_text(errors="replace")[-3000:]
                raise AssertionError(f"waiting for {what}: nothing moved for {PATIENCE_S:.0f} s\n{log}")
        return found

    # ------------------------------------------------------------------ what people see

    def shown(self) -> dict[int, dict[str, Any]]:
        """Return the bot's messages in the channel, as everybody sees them."""
        history = self.playground.backend.history(100_000)[str(community.GENERAL_ID)]
        return {
            int(m["id"]): m
            for m in history
            if int(m["author"]["id"]) == community.BOT_ID and not m["flags"] & 64
        }

    def unanswered(self) -> set[int]:
        answered = {asked_by(message) for message in self.shown().values()}
        return set(self.asked) - answered - self.deleted


def asked_by(message: dict[str, Any]) -> int:
    """Return the message that a message of the bot's answers, or 0."""
    return int((message.get("message_reference") or {}).get("message_id") or 0)
