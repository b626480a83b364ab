"""Settings, threads, files, fresh starts and blocks over real sockets, driven as the page drives them."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from storage.db.database import Database
from tests.bot.fake_server import FakeModelServer
from tests.bot.test_process import Page, Processes, page, processes, until

__all__ = ["page", "processes"]

Payload = dict[str, Any]


class Visit:
    """A visitor who acts as several members of the playground."""

    def __init__(self, page: Page, start: Payload) -> None:
        self.page = page
        people = [member for member in start["members"] if not member["bot"]]
        self.you = next(member["id"] for member in people if member["operator"])
        self.ada = next(member["id"] for member in people if member["name"] == "Ada")
        self.bot = next(member["id"] for member in start["members"] if member["bot"])
        channels = {channel["name"]: channel["id"] for channel in start["channels"]}
        self.general, self.lab = channels["general"], channels["lab"]
        self.socket: Any = None

    async def messages(self, channel: str) -> list[Payload]:
        return list((await self.page.snapshot())["messages"].get(channel, []))

    async def bots(self, channel: str) -> list[Payload]:
        return [each for each in await self.messages(channel) if each["author"]["id"] == self.bot]

    async def say(self, content: str, *, by: str = "", channel: str = "", **more: Any) -> Payload:
        body = {"channel_id": channel or self.general, "author_id": by or self.you, "content": content}
        sent: Payload = await self.page.post("messages", **body, **more)
        return sent

    async def run(self, name: str, *, by: str = "", channel: str = "", **options: Any) -> None:
        await self.page.post(
            "commands",
            channel_id=channel or self.general,
            user_id=by or self.you,
            name=name,
            options=options,
        )

    async def newest(self, channel: str, holds: Callable[[Payload], bool]) -> Payload:
        async def found() -> Payload | None:
            return next((each for each in (await self.bots(channel))[::-1] if holds(each)), None)

        message: Payload = await until(found)
        return message

    async def saying(self, text: str, channel: str = "") -> Payload:
        return await self.newest(channel or self.general, lambda each: text in each["content"])

    async def press(self, message: Payload, custom_id: str, *values: str) -> None:
        await self.page.post(
            "components",
            channel_id=message["channel_id"],
            message_id=message["id"],
            user_id=self.you,
            custom_id=custom_id,
            values=list(values),
        )

    async def modal(self) -> Payload:
        """Wait on the page's event stream for the form that the bot opens."""
        async with asyncio.timeout(60):
            async for frame in self.socket:
                event = json.loads(frame.data)
                if event.get("event") == "MODAL_OPEN":
                    return dict(event["data"])
        raise AssertionError("the stream ended")


@pytest.fixture
async def visit(processes: Processes, page: Page, model_server: FakeModelServer) -> Any:
    processes.start("bot", STROP_PLAYGROUND="1")

    async def online() -> Payload | None:
        snapshot = await page.snapshot()
        return snapshot if snapshot["bot_online"] and snapshot["commands"] else None

    visitor = Visit(page, await until(online))
    async with page.session.ws_connect("/playground/events", max_msg_size=0) as socket:
        await socket.send_json({"secret": page.link["secret"]})
        visitor.socket = socket
        yield visitor


async def test_a_persona_is_set_on_the_page_and_from_the_command_line_without_a_restart(
    visit: Visit, processes: Processes, model_server: FakeModelServer
) -> None:
    await visit.run("settings")
    panel = await visit.saying("In force in this channel")
    await visit.press(panel, "settings:key:channel", "system_prompt")
    await until(lambda: offers(visit, panel, "settings:edit:channel:system_prompt"))
    await visit.press(panel, "settings:edit:channel:system_prompt")
    form = await visit.modal()
    await visit.page.post(
        "modals", user_id=visit.you, modal_id=form["modal_id"], values={"text": "You are a pirate."}
    )
    await visit.saying("✓ **system_prompt** is set for this channel")
    await visit.say(f"<@{visit.bot}> hello")
    await until(lambda: len(model_server.requests) == 1)
    assert model_server.prompt()[0]["content"] == "You are a pirate."

    arguments = ["settings", "set", "system_prompt", "You are a monk.", "--channel", visit.general]
    database = Database.open(processes.data / "strop.db")
    guild = database.read(lambda db: db.conn.execute("SELECT guild_id FROM settings").fetchone())[0]
    database.close()
    command = [sys.executable, "-m", "bot.cli", *arguments, "--guild", str(guild)]
    done = await asyncio.to_thread(
        subprocess.run,
        [*command, "--config", str(processes.config)],
        env=environment(processes),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    await visit.say(f"<@{visit.bot}> hello")
    await until(lambda: len(model_server.requests) == 2)
    assert model_server.prompt()[0]["content"] == "You are a monk."


def environment(processes: Processes) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("DISCORD_", "STROP_"))}
    return {**kept, "STROP_HOME": str(processes.home)}


async def offers(visit: Visit, message: Payload, custom_id: str) -> bool:
    current = next(each for each in await visit.bots(message["channel_id"]) if each["id"] == message["id"])
    return custom_id in json.dumps(current["components"])


def nothing_is_being_written(processes: Processes) -> bool:
    """Whether every reply has ended: its text shows a moment before."""
    with Database.open(processes.data / "strop.db") as database:
        return not database.read(
            lambda db: list(db.query("SELECT 1 FROM replies WHERE status = 'streaming'"))
        )


async def test_a_chosen_channel_with_threads_answers_without_a_mention_and_goes_on_in_its_thread(
    visit: Visit, processes: Processes, model_server: FakeModelServer
) -> None:
    await visit.run("settings", channel=visit.lab)
    panel = await visit.saying("In force in this channel", visit.lab)
    await visit.press(panel, "settings:key:channel", "triggers")
    await until(lambda: offers(visit, panel, "settings:value:channel:triggers"))
    await visit.press(panel, "settings:value:channel:triggers", "mention", "thread", "every")
    await visit.saying("**triggers** is set", visit.lab)
    await visit.press(panel, "settings:key:channel", "auto_thread")
    await until(lambda: offers(visit, panel, "settings:value:channel:auto_thread"))
    await visit.press(panel, "settings:value:channel:auto_thread", "on")
    await visit.saying("**auto_thread** is set", visit.lab)

    await visit.say("tell me about strops", channel=visit.lab, by=visit.ada)

    async def opened() -> str | None:
        channels = (await visit.page.snapshot())["channels"]
        return next((each["id"] for each in channels if each.get("parent_id") == visit.lab), None)

    thread = await until(opened)
    await visit.saying("Hello there, friend.", thread)
    await until(lambda: nothing_is_being_written(processes))
    await visit.say("and hones?", channel=thread)
    await until(lambda: len(model_server.requests) == 2)
    assert [turn["content"] for turn in model_server.prompt()[1:]] == [
        "Ada: tell me about strops",
        "Hello there, friend.",
        "You: and hones?",
    ]
    await visit.run("forget", channel=thread)
    await visit.saying("I start afresh", thread)
    await visit.say("who are you?", channel=thread)
    await until(lambda: len(model_server.requests) == 3)
    assert [turn["content"] for turn in model_server.prompt()[1:]] == ["who are you?"]


async def test_a_language_chosen_on_the_page_holds_for_commands_and_runs(visit: Visit) -> None:
    await visit.run("settings")
    panel = await visit.saying("In force in this channel")
    await visit.press(panel, "settings:key:channel", "language")
    await until(lambda: offers(visit, panel, "settings:value:channel:language"))
    await visit.press(panel, "settings:value:channel:language", "de")
    await visit.saying("**language** ist gesetzt")
    await visit.run("status")
    await visit.saying("Es antwortet: das Basismodell, noch kein Adapter")
    await visit.run("retrain")
    run = await visit.saying("**Neues Training** · Lauf")
    assert "Abbrechen" in json.dumps(run["components"])
    await visit.run("retrain", channel=visit.lab)
    await visit.saying("is already queued", visit.lab)
    described = {each["name"]: each for each in (await visit.page.snapshot())["commands"]}
    assert described["status"]["description_localizations"]["de"].startswith("Wie das Lernen steht")


async def test_files_are_read_over_the_wire(visit: Visit, model_server: FakeModelServer) -> None:
    files = [
        {"name": "notes.md", "data": base64.b64encode("Grüße".encode("cp1252")).decode()},
        {"name": "cat.png", "data": base64.b64encode(b"\x89PNG").decode()},
    ]
    await visit.say(f"<@{visit.bot}> sum it up", files=files)
    said = await visit.saying("Hello there, friend.")
    assert "I can't open cat.png" in said["content"]
    assert model_server.prompt()[-1]["content"] == "sum it up\n\n[notes.md]\nGrüße\n[end of notes.md]"


async def test_a_blocked_member_is_left_alone_until_unblocked(
    visit: Visit, model_server: FakeModelServer
) -> None:
    await visit.run("block", member=visit.ada, reason="spam")
    await visit.saying("is blocked now")
    await visit.say(f"<@{visit.bot}> hello", by=visit.ada)
    await visit.run("blocked")
    await visit.saying("spam")
    assert model_server.requests == []
    await visit.run("unblock", member=visit.ada)
    await visit.saying("gets answers again")
    await visit.say(f"<@{visit.bot}> hello", by=visit.ada)
    await visit.saying("Hello there, friend.")
