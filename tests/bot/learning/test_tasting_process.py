"""A tasting over real sockets: begun on the page and on the command line, and it goes on after a restart."""

from __future__ import annotations

import asyncio
import base64
import signal
import subprocess
import sys
from typing import Any

from storage.chat import members, replies
from storage.db import sql
from storage.db.database import Database
from storage.learning import eligibility
from tests.bot.admin.test_settings_process import Visit, environment, visit
from tests.bot.fake_server import FakeModelServer
from tests.bot.test_process import Processes, page, processes, until

__all__ = ["page", "processes", "visit"]


async def tasting(visit: Visit, subcommand: str, **options: Any) -> None:
    where = {"channel_id": visit.general, "user_id": visit.you}
    await visit.page.post("commands", **where, name="tasting", subcommand=subcommand, options=options)


async def says(visit: Visit, text: str) -> bool:
    return any(text in each["content"] for each in await visit.bots(visit.general))


def strop(processes: Processes, *arguments: str, text: str = "") -> str:
    done = subprocess.run(
        [sys.executable, "-m", "bot.cli", "tasting", *arguments, "--config", str(processes.config)],
        env=environment(processes),
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def hasten(processes: Processes) -> None:
    """As if the pause to the next prompt had passed."""
    with Database.open(processes.data / "strop.db") as database:
        database.write(lambda db: sql.change(db, "UPDATE tastings SET next_ms = 0"))


async def test_prompts_by_form_file_and_command_line_are_asked_rated_and_trained_on(
    visit: Visit, processes: Processes, model_server: FakeModelServer
) -> None:
    await tasting(visit, "add")
    form = await visit.modal()
    values = {"text": "What is good bread?\nName three trees."}
    await visit.page.post("modals", user_id=visit.you, modal_id=form["modal_id"], values=values)
    await visit.saying("2 new prompts are in the bank.")
    data = base64.b64encode(b"# ours\nName three trees!\nWhy do cats purr?\n").decode()
    await tasting(visit, "add", file={"name": "ours.txt", "data": data})
    await visit.saying("1 new prompts are in the bank. 1 were there already.")
    assert "1 new prompts" in await asyncio.to_thread(strop, processes, "add", "-", text="What is tea?\n")

    await tasting(visit, "start", count=3, minutes=0.1)
    await visit.saying("**A tasting begins.** I answer 3 prompts")
    first = await visit.saying("Hello there, friend.\n\n-# Tasting, 1 of 3")
    assert first["content"].startswith("> What is good bread?\n\nHello there, friend.")
    body = {"channel_id": visit.general, "message_id": first["id"], "user_id": visit.ada, "emoji": "👍"}
    async with visit.page.session.put("/playground/reactions", json=body) as response:
        assert response.status < 300

    # Another process of the bot goes on, and begins nothing anew.
    bot = processes.children[-1]
    bot.send_signal(signal.SIGTERM)
    await processes.ended(bot)
    processes.start("bot", STROP_PLAYGROUND="1")
    # The second prompt comes when the clock says so; the test need not sit out the other pauses.
    for coming in ("-# Tasting, 2 of 3", "-# Tasting, 3 of 3", "**The tasting is over.**"):
        await until(lambda coming=coming: says(visit, coming), 150)
        await asyncio.to_thread(hasten, processes)
    said = [each["content"] for each in await visit.bots(visit.general)]
    assert sum(each.startswith("**A tasting begins.**") for each in said) == 1
    assert [each.split("\n")[0] for each in said if "-# Tasting, " in each] == [
        "> What is good bread?",
        "> Name three trees.",
        "> Why do cats purr?",
    ]
    shown = await asyncio.to_thread(strop, processes, "status")
    assert "3 of 3 asked, 1 rated (ratings: 1, by members: 1), done" in shown
    await check_rows(processes)


async def check_rows(processes: Processes) -> None:
    database = await asyncio.to_thread(Database.open, processes.data / "strop.db")
    try:
        answered = database.read(lambda db: replies.recent(db, 0, 10))
        scope = answered[0].scope
        rows = database.read(lambda db: eligibility.eligible_rows(db, scope, permission_reference="")).rows
        assert {reply.asker_id for reply in answered} == {members.OPERATOR_ID}
        # In the playground nothing is anybody's in earnest, and its rows say so.
        assert [(row.source, row.prompt_messages[-1]["content"]) for row in rows] == [
            ("playground", "What is good bread?")
        ]
    finally:
        await asyncio.to_thread(database.close)
