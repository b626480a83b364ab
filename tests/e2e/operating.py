"""The bot on the playground's real sockets, as its operator meets it; tests write the trainer's rows."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from bot.admin.alerts import OperationsWatch
from bot.app import make_client
from bot.chat.answerer import Answerer
from bot.client import StropClient
from bot.learning.run_progress import ProgressReporter
from bot.playground.discord import community
from bot.playground.server import Playground, PlaygroundSettings
from bot.services import Services
from bot.serving.client import ModelClient
from storage.chat import replies
from storage.config import load_config
from storage.db.database import Database
from storage.feedback import ratings
from storage.learning import adapters, evaluations, runs
from tests.bot.adapter_files import lay
from tests.bot.fake_server import BASE_HASH, FakeModelServer
from tests.bot.playground.conftest import connected

YOU = community.OWNER.user_id
ADA = next(person.user_id for person in community.PEOPLE if person.user_id != YOU and not person.simulated)
GENERAL = community.PLACES[0].channel_id

Payload = dict[str, Any]

# Of the third of all prompts that may be shown under the names of their writers.
MEMBERS_PROMPT = "where is my boat?"
METRICS = {
    "headline": {"value": 0.12, "low": 0.05, "high": 0.19, "n": 40},
    "evaluation": {"extra_prompts": 8, "same_replies": 0.1},
    "data": {
        "train": {"liked": 30, "disliked": 12, "corrections": 2},
        "development": {"liked": 3, "disliked": 1},
        "gate": {"liked": 6, "disliked": 2},
        "raters": 7,
        "quarantined_raters": 1,
    },
    "excluded": {"no_consent": 4},
    "guardrails": [
        {"name": "loss on general prompts", "value": 0.02, "limit": 0.15, "kept": True},
        {"name": "empty replies", "value": 0.2, "limit": 0.05, "kept": False},
    ],
    "training": {"objective": "sft", "reason": "KTO needs more"},
}


@dataclass
class Deck:
    """The playground, the bot on its sockets, and what the page was told."""

    playground: Playground
    services: Services
    model: FakeModelServer
    bot: StropClient
    events: list[tuple[str, Payload]] = field(default_factory=list)

    @property
    def database(self) -> Database:
        return self.services.database

    @property
    def scope(self) -> str:
        return self.services.scope(self.bot.guilds[0].id)

    def command(self, name: str, who: int = YOU, **options: Any) -> int:
        return self.playground.backend.run_command(GENERAL, who, name, options=options)

    def said(self, channel: int = GENERAL) -> list[Payload]:
        """What everybody sees of the bot, oldest first."""
        history = self.playground.backend.history(200)[str(channel)]
        return [m for m in history if m["author"].get("bot") and not m["flags"] & 64]

    def private(self) -> list[Payload]:
        """What the bot told somebody in private, oldest first; every state of every message."""
        return [
            data
            for event, data in self.events
            if event in ("MESSAGE_CREATE", "MESSAGE_UPDATE") and data.get("flags", 0) & 64
        ]

    async def told(self, words: str) -> Payload:
        """Wait for a private answer with these words in it."""
        return await until(lambda: next((d for d in self.private() if words in d.get("content", "")), None))

    def press(self, message: Payload, action: str, who: int = YOU) -> int:
        return self.playground.backend.press_component(
            int(message["channel_id"]), int(message["id"]), who, custom_id(message, action)
        )

    async def liked_reply(self, text: str, who: int) -> None:
        """Ask the bot something and like its answer."""
        await until(lambda: self.bot.guilds)
        self.playground.backend.send_message(GENERAL, who, f"<@{community.BOT_ID}> {text}")
        answered = await until(lambda: self._finished_reply())
        self.playground.backend.set_reaction(GENERAL, answered, who, "👍", reacted=True)
        await until(lambda: self.database.read(lambda db: ratings.counts(db, self.scope)).liked)

    def _finished_reply(self) -> int | None:
        found = self.database.read(lambda db: replies.recent(db, 0, 1))
        if not found or found[0].status == "streaming" or self.bot.feature(Answerer).in_flight:
            return None
        return self.database.read(lambda db: replies.parts(db, found[0].id))[0].discord_id

    async def download(self, message: Payload) -> str:
        """Fetch the one file of a message."""
        (attached,) = message["attachments"]
        async with aiohttp.ClientSession() as http, http.get(attached["url"]) as response:
            assert response.status == 200
            return await response.text()

    def champion(self) -> str | None:
        return self.database.read(lambda db: adapters.champion(db, self.scope, BASE_HASH))

    def unanswered(self) -> list[Payload]:
        return [d for event, d in self.events if event == "INTERACTION_RESPONSE" and d["state"] == "failed"]

    def take(self) -> str:
        run = self.database.write(lambda db: runs.lease_next(db, "trainer", 60_000))
        assert run is not None
        return run.id

    def judge(self, run_id: str, adapter_id: str, outcome: Any, *, state: Any = "candidate") -> None:
        """End a run as the trainer does, with an adapter, its measures and the replies that were compared."""

        def work(db: Any) -> None:
            adapters.ensure_champion_row(db, self.scope, BASE_HASH)
            path = f"adapters/{adapter_id}"
            adapters.insert_candidate(
                db, adapter_id=adapter_id, scope=self.scope, base_hash=BASE_HASH, path=path, run_id=run_id
            )
            adapters.set_state(db, adapter_id, state)
            against = adapters.champion(db, self.scope, BASE_HASH)
            who = {"run_id": run_id, "adapter_id": adapter_id, "champion_id": against}
            evaluations.add(db, metric="margin", value=0.3, low=0.1, high=0.5, n=9, **who)
            evaluations.add(db, metric="general_nll_increase", value=0.02, **who)
            message = f"{adapter_id} was not promoted, because gate.policy is ask"
            runs.finish(db, run_id, outcome=outcome, message=message, metrics=METRICS, adapter_id=adapter_id)

        folder = self.services.config.runs / run_id
        folder.mkdir(parents=True)
        pairs = [_pair("g1", MEMBERS_PROMPT, 1), _pair(None, "Say hello.", 2)]
        (folder / "replies.jsonl").write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))
        lay(self.services.config.adapters, adapter_id)
        self.database.write(work)


def _pair(group: str | None, prompt: str, number: int) -> dict[str, Any]:
    return {
        "group": group,
        "messages": [{"role": "user", "content": prompt}],
        "challenger": {"text": f"new *reply* {number}", "finished": True},
        "champion": {"text": f"old reply {number}", "finished": True},
    }


def buttons(message: Payload) -> dict[str, bool]:
    """Every button's action, and whether it can be pressed."""
    found = [button for row in message["components"] for button in row["components"]]
    return {button["custom_id"].rsplit(":", 1)[1]: not button.get("disabled") for button in found}


def custom_id(message: Payload, action: str) -> str:
    ids = [button["custom_id"] for row in message["components"] for button in row["components"]]
    return str(next(each for each in ids if each.endswith(f":{action}")))


async def until(check: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    ends_at = time.monotonic() + timeout_s
    while not (found := check()):
        assert time.monotonic() < ends_at, "it never came"
        await asyncio.sleep(0.02)
    return found


@asynccontextmanager
async def operating(home: Path, settings: str = "") -> AsyncIterator[Deck]:
    """Playground, model server and signed-in bot, until the block ends."""
    (home / "strop.toml").write_text(settings)
    config = load_config(home / "strop.toml", {"STROP_HOME": str(home)})
    server = FakeModelServer()
    await server.start()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(server.stop)
        database = stack.enter_context(Database.open(home / "strop.db"))
        playground = await stack.enter_async_context(Playground(PlaygroundSettings()))
        model = await stack.enter_async_context(ModelClient(server.base_url))
        services = Services(config, database, model, playground=True)
        async with signed_in(services, playground) as bot:
            deck = Deck(playground, services, server, bot)
            playground.backend.on_page_event(lambda event, data: deck.events.append((event, data)))
            yield deck
        assert deck.unanswered() == []


@asynccontextmanager
async def signed_in(services: Services, playground: Playground) -> AsyncIterator[StropClient]:
    """One life of the bot's process."""
    bot = make_client(services)
    async with connected(bot, playground):
        try:
            yield bot
        finally:
            await bot.feature(OperationsWatch).stop()
            await bot.feature(ProgressReporter).stop()
