"""The operators' page over real sockets: who may read it, who may change something, and what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import sqlite_utils

from bot.dashboard.errors import RequestRefusedError
from bot.dashboard.loop_view import LoopSources, LoopView
from bot.dashboard.server import SECRET_HEADER, Dashboard
from bot.serving.client import ModelClient
from storage.admin import audit, left_out
from storage.db import key_values
from storage.db.database import Database
from storage.learning import eligibility
from tests.bot.dashboard.deployment import BASE_HASH, dashboard, lived_in
from tests.storage.conftest import SCOPE

TOKEN = "a-token-of-some-length"


async def secret_of(page: Dashboard) -> str:
    async with aiohttp.ClientSession() as http, http.get(page.url) as response:
        assert "default-src 'self'" in response.headers["Content-Security-Policy"]
        found = re.search(r'name="dashboard-secret" content="([^"]*)"', await response.text())
    assert found
    return found[1]


async def call(
    page: Dashboard, path: str, secret: str, method: str = "GET", **headers: str
) -> tuple[int, Any]:
    async with (
        aiohttp.ClientSession() as http,
        http.request(method, f"{page.url}/{path}", headers={SECRET_HEADER: secret, **headers}) as response,
    ):
        text = await response.text()
        return response.status, await response.json() if response.content_type == "application/json" else text


async def test_the_page_says_how_the_loop_stands_and_what_came_of_it(
    database: Database, tmp_path: Path
) -> None:
    replies, run_id = database.write(lived_in)
    async with dashboard(database, tmp_path) as page:
        secret = await secret_of(page)
        _, loop = await call(page, "api/loop", secret)
        _, runs = await call(page, "api/runs", secret)
        _, weeks = await call(page, "api/weeks", secret)
        _, rows = await call(page, "api/rows", secret)
        _, made = await call(page, f"api/reports/{run_id}", secret, "POST")
        _, report = await call(page, made["path"].lstrip("/"), "")

    assert (loop["scope"], loop["scopes"], loop["write"]) == (SCOPE, [SCOPE, "guild:9"], False)
    assert loop["loop"]["ratings"]["liked"] == 2 and loop["loop"]["champion"]["id"] == "a1"
    assert loop["loop"]["server"]["status"] == "ok" and loop["alarms"] == []
    (run,) = runs["runs"]
    assert (run["id"], run["outcome"], run["planned_steps"], runs["count"]) == (run_id, "refused", 28, 1)
    assert (weeks["weeks"][-1]["liked"], weeks["weeks"][-1]["disliked"]) == (2, 1)
    assert [each["adapter_id"] for each in weeks["changes"]] == ["a1"]
    assert (
        rows["all"]
        and {row["reply_id"] for row in rows["rows"]} == set(replies)
        and "rye bread" in rows["rows"][0]["prompt"]
    )
    assert report == f"<!doctype html><p>report of {run_id}</p>\n"


async def test_nobody_reads_it_without_the_secret_from_another_name_or_from_another_site(
    database: Database, tmp_path: Path
) -> None:
    database.write(lived_in)
    async with dashboard(database, tmp_path) as page:
        secret = await secret_of(page)
        assert (await call(page, "api/loop", ""))[0] == 403
        assert (await call(page, "api/loop", secret, Host="evil.example"))[0] == 403
        assert (await call(page, "api/loop", secret, Origin="https://evil.example"))[0] == 403
        assert (await call(page, "api/loop?scope=guild:77", secret))[0] == 404
        assert (await call(page, "static/..%2fserver.py", secret))[0] == 404
        assert (await call(page, "api/loop", secret, Origin=page.url))[0] == 200


async def test_a_page_that_only_shows_changes_nothing(database: Database, tmp_path: Path) -> None:
    replies, _ = database.write(lived_in)
    async with dashboard(database, tmp_path) as page:
        status, said = await call(page, f"api/left-out/{replies[0]}", await secret_of(page), "PUT")
    assert status == 403 and "--write" in said["error"]
    assert database.read(lambda db: left_out.listing(db, SCOPE)) == []


async def test_a_row_that_is_left_out_does_not_train_and_comes_back(
    database: Database, tmp_path: Path
) -> None:
    replies, _ = database.write(lived_in)
    async with dashboard(database, tmp_path, write=True, actor="cli:ann") as page:
        secret = await secret_of(page)
        assert await call(page, f"api/left-out/{replies[0]}", secret, "PUT") == (200, {"changed": True})
        found = database.read(lambda db: eligibility.eligible_rows(db, SCOPE, permission_reference=""))
        assert found.excluded == {"left_out": 1} and len(found.rows) == 2
        _, rows = await call(page, "api/rows", secret)
        assert [each["reply_id"] for each in rows["left_out"]] == [replies[0]] and rows["count"] == 2
        assert await call(page, f"api/left-out/{replies[0]}", secret, "DELETE") == (200, {"changed": True})
        assert (await call(page, "api/left-out/none", secret, "PUT"))[0] == 404
    assert [each.action for each in database.read(lambda db: audit.latest(db, 2))] == [
        "row.put_back",
        "row.leave_out",
    ]


async def test_behind_a_token_the_page_carries_no_secret_and_asks_for_it(
    database: Database, tmp_path: Path
) -> None:
    database.write(lived_in)
    async with dashboard(database, tmp_path, token=TOKEN, write=True) as page:
        assert await secret_of(page) == ""
        assert (await call(page, "api/loop", ""))[0] == 401
        assert (await call(page, "api/loop", "a-token-of-other-length"))[0] == 401
        status, loop = await call(page, "api/loop", TOKEN, Host="strop.example")
        assert (status, loop["write"]) == (200, True)


async def test_what_an_operator_has_to_look_at_is_an_alarm(database: Database, tmp_path: Path) -> None:
    database.write(lived_in)

    def fail(db: Any) -> None:
        db.execute("UPDATE runs SET outcome = 'failed', message = 'The disk is full.', message_sentence = ''")

    database.write(fail)
    async with dashboard(database, tmp_path) as page:
        _, loop = await call(page, "api/loop", await secret_of(page))
    (alarm,) = loop["alarms"]
    assert "failed" in alarm and "The disk is full." in alarm


async def test_a_port_that_is_taken_is_a_sentence(database: Database, tmp_path: Path) -> None:
    async with dashboard(database, tmp_path) as page:
        port = int(page.url.rsplit(":", 1)[1])
        with pytest.raises(RequestRefusedError, match="choose another with --port"):
            async with dashboard(database, tmp_path, port=port):
                pass


async def test_while_the_model_loads_the_champion_of_the_last_base_is_shown(database: Database) -> None:
    def work(db: sqlite_utils.Database) -> None:
        lived_in(db)
        key_values.put(db, key_values.SERVED_BASE, BASE_HASH)

    database.write(work)
    async with ModelClient("http://127.0.0.1:9") as nobody:
        sources = LoopSources(database, nobody, SCOPE, lambda: False, 25, 5, 10, 50)
        state = await LoopView(sources).refresh()
    assert state["server"]["status"] == "down" and state["champion"]["id"] == "a1"
    assert state["promotions"][0]["adapter_id"] == "a1"
