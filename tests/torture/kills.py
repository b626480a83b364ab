"""kill -9 of any process of a deployment while members ask and rate, and runs train and are promoted."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from bot.chat.draft import Progress, answer_text
from bot.chat.generation import LOADING
from bot.chat.missed_questions import MOST_IN_CHANNEL
from bot.delivery.splitting import visible_parts
from tests.e2e.deployment import Deployment, deployed, until
from tests.e2e.test_whole_loop import ANY_PORTS, ENDED, TRIAL

# Asking, rating, training or promoting. A run costs more than all the rest.
WEIGHTS = (5, 8, 0.3)
# Looking costs processor time that the deployment could use.
LOOK_S = 1.0
# The stand-in for Discord, and the supervisor that starts the others again, are left alone here.
PROCESSES = ("bot", "bot.serving", "trainer", "trainer.run")
REPLIES = """select replies.id, replies.status, replies.finish_reason, reply_parts.discord_id,
       messages.content as text, reply_parts.position
       from replies join messages on messages.id = replies.message_id
       left join reply_parts on reply_parts.reply_id = replies.id"""


@dataclass
class Siege:
    """One deployment under fire: what was asked, and who rates what by Discord's own word."""

    strop: Deployment
    draw: random.Random
    asked: list[str] = field(default_factory=list)
    may_ask: int = 1_000
    reactions: dict[tuple[int, int], list[str]] = field(default_factory=dict)
    killed: Counter[str] = field(default_factory=Counter)

    @property
    def people(self) -> list[str]:
        """Everybody who can ask and rate, by their ids."""
        return [m["id"] for m in self.strop.snapshot["members"] if not m["bot"] and not m["simulated"]]

    async def ask(self) -> None:
        if not self.may_ask:
            return
        self.may_ask -= 1
        content = f"<@{self.strop.bot['id']}> question {len(self.asked)}"
        who = self.draw.choice(self.people)
        message = {"channel_id": self.strop.channel, "author_id": who, "content": content}
        self.asked.append((await self.strop.call("POST", "/playground/messages", message))["id"])

    async def rate(self) -> None:
        rows = self.strop.query(f"{REPLIES} where replies.status = 'complete' and position = 0")
        if not rows:
            return
        message_id, emoji = self.draw.choice(rows)["discord_id"], self.draw.choice("👍👎")
        who = self.draw.choice(self.people)
        given = self.reactions.setdefault((message_id, int(who)), [])
        method = "DELETE" if emoji in given else "PUT"
        message = {"channel_id": self.strop.channel, "message_id": str(message_id)}
        await self.strop.call(method, "/playground/reactions", {**message, "user_id": who, "emoji": emoji})
        (given.remove if emoji in given else given.append)(emoji)

    async def train_or_promote(self) -> None:
        """Begin a run where none is on; else let any adapter that there is take over."""
        on = self.strop.query("select 1 from runs where state in ('queued', 'running')")
        if not on and self.draw.random() < 0.7:
            return await self.strop.command("retrain")
        there = self.strop.query("select id from adapters where state <> 'tainted'")
        if there:
            who = self.draw.choice(there)["id"]
            await asyncio.to_thread(self.strop.run_strop, "promote", who)
        return None

    async def act(self) -> None:
        """Do one thing that members or operators do; what meets a dead process is simply refused."""
        what = self.draw.choices((self.ask, self.rate, self.train_or_promote), WEIGHTS)[0]
        with contextlib.suppress(AssertionError, aiohttp.ClientError):
            await what()

    # ------------------------------------------------------------------ killing

    def victims(self, name: str) -> list[int]:
        """Return the ids of the deployment's processes of one kind."""
        return [pid for pid, command in _commands(self.strop.folder) if _module(command) == name]

    async def kill(self) -> str:
        """Kill one process at a random moment; return which kind it was."""
        running = [name for name in PROCESSES if self.victims(name)]
        name = self.draw.choice(running)
        await asyncio.sleep(self.draw.uniform(0.0, 2.0))
        for pid in self.victims(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.killed[name] += 1
        return name

    # ------------------------------------------------------------------ what must be true

    async def shown(self) -> dict[int, dict[str, Any]]:
        """Return the bot's messages of the channel, as Discord has them."""
        found: dict[int, dict[str, Any]] = {}
        before = ""
        headers = {"Authorization": f"Bot {self.strop.page['token']}"}
        async with aiohttp.ClientSession(headers=headers) as http:
            while True:
                url = f"{self.strop.page['api']}/channels/{self.strop.channel}/messages?limit=100{before}"
                async with http.get(url) as response:
                    if response.status == 429:
                        await asyncio.sleep(1.0)
                        continue
                    page = await response.json()
                found |= {int(m["id"]): m for m in page if m["author"]["id"] == self.strop.bot["id"]}
                if len(page) < 100:
                    return found
                before = f"&before={page[-1]['id']}"

    async def disorder(self) -> list[str]:
        """Say what is not as it must be."""
        wrong: list[str] = []
        rows = self.strop.query(REPLIES)
        shown = await self.shown()
        known = {row["discord_id"]: row for row in rows}
        wrong += [f"{row['id']} is open" for row in rows if row["status"] == "streaming"]
        for message_id, message in shown.items():
            asked = (message.get("message_reference") or {}).get("message_id")
            if asked in self.asked and message_id not in known:
                wrong.append(f"no row knows {message['content'][:50]!r}")
            if LOADING in message["content"] or "strop:reply:stop:" in str(message["components"]):
                wrong.append(f"{message_id} is half written")
        for row in rows:
            there = shown.get(row["discord_id"])
            if (
                row["status"] == "complete"
                and there is not None
                and row["text"].strip()  # a note says that nothing was said
                and _part(row).strip() != there["content"].strip()
            ):
                wrong.append(f"{row['id']} is complete and not delivered")
        answered = {(message.get("message_reference") or {}).get("message_id") for message in shown.values()}
        wrong += [f"question {asked} has no answer" for asked in self.asked if asked not in answered]
        return wrong + self._ratings() + self._champions()

    def _ratings(self) -> list[str]:
        """Compare what stands with what members did, in their order: the last of two emoji may be either."""
        stored = self.strop.query(
            """select reply_parts.discord_id, ratings.user_id, ratings.emoji from ratings
               join reply_parts on reply_parts.reply_id = ratings.reply_id and position = 0
               where retracted = 0 and kind = 'thumb'"""
        )
        standing = {(row["discord_id"], row["user_id"]): row["emoji"] for row in stored}
        given = {key: emoji for key, emoji in self.reactions.items() if emoji}
        return [
            f"a rating is {standing.get(key)} and should be {given.get(key)}"
            for key in standing.keys() | given.keys()
            if standing.get(key) not in given.get(key, [])
        ]

    def _champions(self) -> list[str]:
        rows = self.strop.query(
            """select scope, base_hash, adapter_id, (select promotions.adapter_id from promotions
                   where promotions.scope = champions.scope and promotions.base_hash = champions.base_hash
                   order by id desc limit 1) as promoted from champions"""
        )
        wrong = [
            f"{row['promoted']} was promoted last" for row in rows if row["promoted"] != row["adapter_id"]
        ]
        if len({(row["scope"], row["base_hash"]) for row in rows}) != len(rows):
            wrong.append("two champions")
        return wrong + [
            f"the champion {row['adapter_id']} has no files"
            for row in rows
            if row["adapter_id"] and not (self.strop.data / "adapters" / row["adapter_id"]).is_dir()
        ]


def _part(row: dict[str, Any]) -> str:
    """What one message of a reply shows."""
    parts = visible_parts(answer_text(Progress(0.0, row["text"], finish_reason=row["finish_reason"])))
    return parts[row["position"]] if row["position"] < len(parts) else ""


def _commands(folder: Path) -> list[tuple[int, list[str]]]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if (entry / "cwd").readlink() == folder:
                found.append((int(entry.name), command))
    return found


def _module(command: list[str]) -> str:
    return command[command.index("-m") + 1] if "-m" in command[:-1] else ""


@asynccontextmanager
async def besieged(folder: Path, source: Path, seed: int) -> AsyncIterator[Siege]:
    """A deployment of a tiny model with a few liked answers, so that it can train."""
    settings = f'[model]\nbase = "{source}"\n[chat]\nmax_new_tokens = 24\n'
    settings += "[gate]\nmin_effect = 0.9\ncanary_share = 0.0\n"
    async with deployed(folder, ANY_PORTS + TRIAL + settings) as strop:
        siege = Siege(strop, random.Random(seed))
        for number in range(8):
            await siege.ask()
            await until(lambda number=number: len(answered(strop)) > number, "an answer", strop)
        for _ in range(30):
            await siege.rate()
        yield siege


def answered(strop: Deployment) -> list[Any]:
    return strop.query(f"{REPLIES} where replies.status = 'complete' and position = 0")


async def one_kill(siege: Siege, acts: int = 12) -> None:
    """Let members and operators act, kill something in the midst of it, and wait until all is in order."""
    # Of those that come while the bot is away, so many are answered in a channel.
    siege.may_ask = MOST_IN_CHANNEL
    killing = asyncio.create_task(siege.kill())
    for _ in range(acts):
        await siege.act()
        await asyncio.sleep(siege.draw.uniform(0.0, 0.3))
    name = await killing

    wrong: list[str] = []

    async def in_order() -> bool:
        nonlocal wrong
        await asyncio.sleep(LOOK_S)
        wrong = await siege.disorder()
        return not wrong

    try:
        await until(in_order, f"order after a kill of {name}", siege.strop)
    except AssertionError as error:
        raise AssertionError(f"after a kill of {name}: {wrong}\n{error}") from error


def runs_of(strop: Deployment) -> Counter[str]:
    """Count the runs by how they ended."""
    rows = strop.query("select state, outcome from runs")
    return Counter(row["outcome"] or row["state"] for row in rows if row["state"] in ENDED)
