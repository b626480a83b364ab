"""Importing on the playground's page: in a real browser, through the real calls, into a real database."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from playwright.async_api import BrowserContext, FilePayload, expect
from playwright.async_api import Page as BrowserPage

from bot.dashboard.loop_view import LoopSources
from bot.playground.discord import community
from bot.playground.page.imports import ImportSettings
from bot.playground.server import Playground, PlaygroundLoop, PlaygroundSettings
from bot.playground.simulation.rehearsal import RehearsalSettings
from bot.serving.client import ModelClient
from storage.db.database import Database
from storage.imports import imports
from storage.learning import eligibility
from tests.bot.playground.conftest import Recorder, connected
from tests.bot.playground.page.test_api import SCOPE, Page
from tests.bot.playground.page.test_browser import act_as, browser, open_page, window

__all__ = ["browser", "window"]

OPERATOR, MEMBER = str(community.OWNER.user_id), str(community.PEOPLE[1].user_id)
CHATS = [{"prompt": f"question {n} of ours", "completion": f"answer {n}"} for n in range(40)]

pytestmark = pytest.mark.asyncio(loop_scope="module")


def lines(values: list[Any]) -> bytes:
    return "\n".join(map(json.dumps, values)).encode()


def upload(data: bytes, name: str = "chats.jsonl") -> dict[str, str]:
    return {"name": name, "data": base64.b64encode(data).decode()}


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database.open(tmp_path / "strop.db") as opened:
        yield opened


@asynccontextmanager
async def opened(database: Database) -> AsyncIterator[tuple[Playground, Page]]:
    """A playground with a database and without a model server, and its calls."""
    async with ModelClient("http://127.0.0.1:9") as client, aiohttp.ClientSession() as http:
        figures = {"min_liked": 25, "min_raters": 5, "min_votes": 10, "min_new_ratings": 50}
        sources = LoopSources(database, client, SCOPE, lambda: False, **figures)
        settings = ImportSettings(database, client, SCOPE, database.path.parent, ("👍",), ("👎",))
        loop = PlaygroundLoop(sources, RehearsalSettings(scope=SCOPE), (), settings)
        async with Playground(PlaygroundSettings(), loop) as running:
            yield running, Page(running, http)


async def test_an_operator_looks_takes_in_and_takes_back_on_the_page(
    window: BrowserContext, database: Database
) -> None:
    complaints: list[str] = []
    async with opened(database) as (playground, _), connected(Recorder(), playground):
        page = await open_page(window, playground.base_url, complaints)
        await _import_and_take_back(page, database)
        await page.evaluate("localStorage.clear()")
        await page.close()
    assert not complaints


async def _import_and_take_back(page: BrowserPage, database: Database) -> None:
    await page.get_by_role("button", name="Import a file…").click()
    dialog = page.get_by_role("dialog")
    take = dialog.get_by_role("button", name="Import", exact=True)
    await expect(take).to_be_disabled()
    file = FilePayload(name="chats.jsonl", mimeType="application/json", buffer=lines([*CHATS, {"note": 1}]))
    await dialog.get_by_label("File").set_input_files(file)
    await expect(dialog).to_contain_text("prompt and completion (TRL, KTO)")
    await expect(dialog).to_contain_text(
        "Left out: 1 that hold no prompt with an answer (the first: line 41)."
    )
    await expect(dialog.locator(".import-sample").first).to_contain_text("question 0 of ours")
    assert await database.aread(imports.listing) == []
    await take.click()
    refusal = dialog.locator(".toast").last
    await expect(refusal).to_contain_text("by which right you use the file")
    await refusal.get_by_role("button", name="Dismiss").click()
    await dialog.get_by_label("By which right").fill("our own")
    await dialog.get_by_label("Licence").fill("internal")
    await take.click()
    entry = dialog.locator(".import-entry")
    await expect(entry).to_contain_text("chats.jsonl")
    (done,) = await database.aread(imports.listing)
    assert (done.state, done.rights, done.licence, done.actor) == ("done", "our own", "internal", OPERATOR)
    found = await database.aread(lambda db: eligibility.eligible_rows(db, SCOPE, permission_reference=""))
    assert len(found.rows) == done.stored > 20
    await entry.get_by_role("button", name="Take back import 1").click()
    await entry.get_by_role("button", name="Take back import 1").click()
    await expect(entry).to_contain_text("taken back")
    found = await database.aread(lambda db: eligibility.eligible_rows(db, SCOPE, permission_reference=""))
    assert found.rows == []
    await dialog.get_by_role("button", name="Close").last.click()
    await act_as(page, community.PEOPLE[1].display_name)
    await expect(page.get_by_role("button", name="Import a file…")).to_be_disabled()


async def test_what_can_not_be_imported_is_refused_in_a_sentence(database: Database) -> None:
    look = "/playground/imports/look"
    async with opened(database) as (_, page):
        status, answer = await page.call("POST", look, {"user_id": MEMBER, "file": upload(lines(CHATS))})
        assert (status, answer["error"]) == (403, "Only an operator imports: act as one, at the bottom left.")
        body = {"user_id": OPERATOR, "file": upload(b"\x00\x01", "x.bin")}
        status, answer = await page.call("POST", look, body)
        assert status == 400 and answer["error"].startswith("x.bin is ")
        status, answer = await page.call("POST", look, {"user_id": OPERATOR, "file": upload(lines(CHATS))})
        assert status == 200 and not answer["prompts_only"]
        stale = {"user_id": OPERATOR, "token": "old", "rights": "r", "licence": "l"}
        status, answer = await page.call("POST", "/playground/imports", stale)
        assert status == 400 and "Choose the file again" in answer["error"]
        status, answer = await page.call("DELETE", "/playground/imports/7", {"user_id": OPERATOR})
        assert status == 400 and "There is no import 7" in answer["error"]


async def test_prompts_of_members_need_the_permission_here_as_well(database: Database) -> None:
    table = b"AuthorID,Author,Date,Content\n5,mia,2024,Which flour is best for a rye loaf?\n"
    async with opened(database) as (_, page):
        body = {"user_id": OPERATOR, "file": upload(table, "channel.csv")}
        status, looked = await page.call("POST", "/playground/imports/look", body)
        assert (status, looked["prompts_only"], looked["usable"]) == (200, True, 1)
        said = {"user_id": OPERATOR, "token": looked["token"], "rights": "ours", "licence": "ours"}
        status, answer = await page.call("POST", "/playground/imports", said)
        assert status == 400 and "training_permission_reference" in answer["error"]
        assert await database.aread(imports.listing) == []
