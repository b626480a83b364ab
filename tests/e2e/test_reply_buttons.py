"""Buttons and context menus of replies over the playground's real sockets: REST, gateway, model server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yarl
from discord.gateway import DiscordWebSocket
from discord.http import Route

from bot.app import make_client
from bot.chat.answerer import Answerer
from bot.client import StropClient
from bot.feedback import corrections, reports
from bot.learning.run_progress import ProgressReporter
from bot.playground.discord import community
from bot.playground.discord.ratelimit import Rule, default_rules
from bot.playground.server import Playground, PlaygroundSettings
from bot.services import Services
from bot.serving.client import ModelClient
from storage.admin import audit
from storage.chat import replies, reply_versions
from storage.config import load_config
from storage.db.database import Database
from storage.feedback import ratings, side_by_side
from tests.bot.fake_server import FakeModelServer
from tests.bot.playground.conftest import connected

YOU = community.OWNER.user_id
ADA = next(person.user_id for person in community.PEOPLE if person.user_id != YOU and not person.simulated)
GENERAL = community.PLACES[0].channel_id

Payload = dict[str, Any]


@dataclass
class Town:
    """The playground, the bot on its sockets, and what the page was told."""

    playground: Playground
    bot: StropClient
    model: FakeModelServer
    database: Database
    events: list[tuple[str, Payload]] = field(default_factory=list)

    def ask(self, text: str, who: int = YOU, channel: int = GENERAL) -> Payload:
        return self.playground.backend.send_message(channel, who, f"<@{community.BOT_ID}> {text}")

    def replies(self) -> list[replies.Reply]:
        return self.database.read(lambda db: replies.recent(db, 0, 100))[::-1]

    def said(self, channel: int = GENERAL) -> list[Payload]:
        """What everybody sees of the bot, oldest first."""
        history = self.playground.backend.history(200)[str(channel)]
        return [m for m in history if m["author"].get("bot") and not m["flags"] & 64]

    def told(self) -> list[str]:
        """What the bot told somebody in private, oldest first."""
        return [
            data["content"]
            for event, data in self.events
            if event in ("MESSAGE_CREATE", "MESSAGE_UPDATE") and data.get("flags", 0) & 64 and data["content"]
        ]

    def press(self, action: str, who: int = YOU) -> int:
        message = self.said()[-1]
        custom_id = next(c for c in custom_ids(message) if f":{action}:" in c or c.endswith(f":{action}"))
        return self.playground.backend.press_component(GENERAL, int(message["id"]), who, custom_id)

    def choose(self, name: str, message: Payload, who: int = YOU) -> int:
        return self.playground.backend.run_command(GENERAL, who, name, target_id=int(message["id"]))

    async def form(self, interaction_id: int) -> Payload:
        def opened() -> Payload | None:
            return next(
                (
                    data
                    for event, data in self.events
                    if event == "MODAL_OPEN" and data["modal_id"] == str(interaction_id)
                ),
                None,
            )

        return await until(opened)

    async def answered(self) -> replies.Reply:
        """The newest reply, once it is finished and stands in the channel."""

        def finished() -> replies.Reply | None:
            rows = self.replies()
            if not rows or rows[-1].status == "streaming" or self.bot.feature(Answerer).in_flight:
                return None
            return rows[-1]

        return await until(finished)

    def unanswered(self) -> list[Payload]:
        return [d for event, d in self.events if event == "INTERACTION_RESPONSE" and d["state"] == "failed"]


def custom_ids(message: Payload) -> list[str]:
    return [button["custom_id"] for row in message["components"] for button in row["components"]]


async def until(check: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    ends_at = time.monotonic() + timeout_s
    while not (found := check()):
        assert time.monotonic() < ends_at, "it never came"
        await asyncio.sleep(0.02)
    return found


@pytest.fixture(autouse=True)
def real_addresses_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Route, "BASE", Route.BASE)
    monkeypatch.setattr(DiscordWebSocket, "DEFAULT_GATEWAY", yarl.URL(DiscordWebSocket.DEFAULT_GATEWAY))


@asynccontextmanager
async def town(home: Path, settings: str = "", limits: tuple[Rule, ...] | None = None) -> AsyncIterator[Town]:
    (home / "strop.toml").write_text(settings)
    config = load_config(home / "strop.toml", {"STROP_HOME": str(home)})
    server = FakeModelServer()
    await server.start()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(server.stop)
        database = stack.enter_context(Database.open(home / "strop.db"))
        playground = await stack.enter_async_context(Playground(PlaygroundSettings(rate_limits=limits)))
        model = await stack.enter_async_context(ModelClient(server.base_url))
        bot = make_client(Services(config, database, model, playground=True))
        made = Town(playground, bot, server, database)
        playground.backend.on_page_event(lambda event, data: made.events.append((event, data)))
        await stack.enter_async_context(connected(bot, playground))
        stack.push_async_callback(bot.feature(ProgressReporter).stop)
        yield made
        assert made.unanswered() == []


async def test_a_reply_is_written_again_paged_corrected_explained_and_reported(tmp_path: Path) -> None:
    async with town(tmp_path) as t:
        t.ask("hello")
        first = await t.answered()
        assert [c.split(":")[2] for c in custom_ids(t.said()[-1])] == ["regenerate", "better", "why"]

        t.model.answer = "Another way."
        t.press("regenerate")
        await until(lambda: t.said()[-1]["content"] == "Another way.")
        second = await t.answered()
        await until(lambda: "forward" in str(custom_ids(t.said()[-1])))
        t.press("back")
        await until(lambda: t.said()[-1]["content"] == first.text)

        modal = await t.form(t.press("better", ADA))
        t.playground.backend.submit_modal(ADA, int(modal["modal_id"]), {"text": "Ahoy!"})
        await until(lambda: corrections.KEPT in t.told())
        (kept,) = t.database.read(lambda db: ratings.list_for_reply(db, first.id))
        assert (kept.user_id, kept.text, kept.means) == (ADA, "Ahoy!", "modal")

        t.press("why", ADA)
        await until(lambda: any("The base model" in text for text in t.told()))
        modal = await t.form(t.choose("Report reply", t.said()[-1], ADA))
        t.playground.backend.submit_modal(ADA, int(modal["modal_id"]), {"text": "Rude."})
        await until(lambda: reports.THANKS in t.told())
        direct = t.said(community.OWNER.dm_channel_id)
        assert len(direct) == 1 and "> Rude." in direct[0]["content"]
        assert t.database.read(audit.latest)[0].action == "reply.report"
        found = t.database.read(lambda db: reply_versions.of(db, second.id))
        assert (found.number, found.total) == (1, 2)


async def test_a_direct_conversation_goes_on_from_the_version_shown(tmp_path: Path) -> None:
    async with town(tmp_path) as t:
        channel = community.OWNER.dm_channel_id
        t.playground.backend.send_message(channel, YOU, "hello")
        await t.answered()
        t.model.answer = "Another way."
        message = t.said(channel)[-1]
        again = next(each for each in custom_ids(message) if ":regenerate:" in each)
        t.playground.backend.press_component(channel, int(message["id"]), YOU, again)
        await until(lambda: t.said(channel)[-1]["content"] == "Another way.")
        await t.answered()
        t.playground.backend.send_message(channel, YOU, "and then?")
        await until(lambda: len(t.replies()) == 3)
        await t.answered()
        assert [turn["content"] for turn in t.model.prompt()[1:]] == ["hello", "Another way.", "and then?"]


async def test_stopping_cuts_the_request_to_the_model(tmp_path: Path) -> None:
    async with town(tmp_path) as t:
        t.model.gate = asyncio.Event()
        t.model.answer = "one two three four"
        t.ask("count", ADA)
        await until(lambda: t.said() and t.said()[-1]["content"] == "one two")
        t.press("stop")
        # The model's gate stays shut: it would never end by itself.
        await until(lambda: t.model.cut_off == 1)
        reply = await t.answered()
        assert (reply.status, reply.text) == ("stopped", "one two")
        await until(lambda: t.said()[-1]["content"].endswith("-# Stopped."))


async def test_a_double_click_writes_one_version(tmp_path: Path) -> None:
    async with town(tmp_path) as t:
        t.ask("hello")
        await t.answered()
        t.model.pause_s = 0.2
        t.press("regenerate")
        t.press("regenerate")
        await until(lambda: "I am writing another version already." in t.told())
        await until(lambda: len(t.replies()) == 2)
        await t.answered()
        assert len(t.replies()) == 2


async def test_everything_is_acknowledged_in_time_while_storage_is_slow(tmp_path: Path) -> None:
    async with town(tmp_path, "[replies]\nrating_buttons = true") as t:
        t.ask("hello")
        reply = await t.answered()
        slow = asyncio.create_task(asyncio.to_thread(t.database.write, lambda _: time.sleep(4)))
        t.press("up", ADA)
        modal = await t.form(t.press("better", ADA))
        t.playground.backend.submit_modal(ADA, int(modal["modal_id"]), {"text": "Ahoy!"})
        await slow
        await until(lambda: len(t.database.read(lambda db: ratings.list_for_reply(db, reply.id))) == 2)
        await until(lambda: corrections.KEPT in t.told())


async def test_a_burst_of_429s_loses_neither_text_nor_buttons(tmp_path: Path) -> None:
    limits = (Rule("edit", "PATCH", r"/channels/(\d+)/messages/\d+", 1, 1.5), *default_rules())
    async with town(tmp_path, limits=limits) as t:
        t.model.pause_s = 0.05
        t.model.answer = " ".join(f"word{number}" for number in range(40))
        t.ask("hello")
        await t.answered()
        t.model.answer = " ".join(f"again{number}" for number in range(40))
        t.press("regenerate")
        await until(lambda: len(t.replies()) == 2)
        await t.answered()
        assert t.said()[-1]["content"] == t.model.answer
        assert "back" in str(custom_ids(t.said()[-1]))


async def test_two_candidates_are_voted_on(tmp_path: Path) -> None:
    async with town(tmp_path, "[replies]\ncompare = 1.0") as t:
        t.ask("hello")
        reply = await t.answered()
        await until(lambda: "Two answers" in t.said()[-1]["content"])
        t.press("first", ADA)
        t.press("second", YOU)
        await until(lambda: sum("Counted" in text for text in t.told()) == 2)
        pair = t.database.read(lambda db: side_by_side.of(db, reply.id))
        assert pair is not None
        assert t.database.read(lambda db: side_by_side.tally(db, pair.first_id)).votes == 2


async def test_the_page_hears_of_context_menus(tmp_path: Path) -> None:
    async with town(tmp_path) as t:
        await until(lambda: len(t.playground.backend.commands()) > 5)
        names = {c["name"] for c in t.playground.backend.commands() if c.get("type") == 3}
        assert names == {"Regenerate", "Stop writing", "Better answer", "Why this reply?", "Report reply"}
