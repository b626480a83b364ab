"""Where the bot signs in and how often: only to the right place, never too often."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import discord
import discord.gateway
import pytest
import yarl

from bot.app import make_client
from bot.errors import IdentifyBudgetError, PlaygroundError
from bot.gateway.playground_link import PlaygroundLink, read_link, use_playground, wait_for_playground
from bot.gateway.sign_in import HOUR_MS, IdentifyBudget
from bot.services import Services
from storage.db import key_values
from storage.db.clock import now_ms
from storage.db.database import Database

LINK = PlaygroundLink("http://127.0.0.1:8600/api/v10", "ws://127.0.0.1:8600/gateway", "playground.x")


@pytest.fixture(autouse=True)
def _addresses() -> Iterator[None]:
    base, gateway = discord.http.Route.BASE, discord.gateway.DiscordWebSocket.DEFAULT_GATEWAY
    yield
    discord.http.Route.BASE = base
    discord.gateway.DiscordWebSocket.DEFAULT_GATEWAY = gateway


def test_the_playground_replaces_both_addresses() -> None:
    use_playground(LINK, None)
    assert discord.http.Route("GET", "/users/@me").url == "http://127.0.0.1:8600/api/v10/users/@me"
    assert yarl.URL("ws://127.0.0.1:8600/gateway") == discord.gateway.DiscordWebSocket.DEFAULT_GATEWAY


@pytest.mark.parametrize(
    ("link", "token"),
    [
        (LINK, "a-real-token"),
        (PlaygroundLink("http://evil.example/api/v10", LINK.gateway, LINK.token), None),
        (PlaygroundLink(LINK.api, "wss://10.0.0.1/gateway", LINK.token), None),
    ],
)
def test_nothing_is_sent_elsewhere(link: PlaygroundLink, token: str | None) -> None:
    with pytest.raises(PlaygroundError):
        use_playground(link, token)
    assert discord.http.Route.BASE == "https://discord.com/api/v10"


async def test_the_playground_is_waited_for(tmp_path: Path) -> None:
    waiting = asyncio.create_task(wait_for_playground(tmp_path, 5.0))
    await asyncio.sleep(0.05)
    (tmp_path / "playground.json").write_text("{half")
    assert read_link(tmp_path) is None
    await asyncio.sleep(0.25)
    record = {"api": LINK.api, "gateway": LINK.gateway, "token": LINK.token, "pid": 1}
    (tmp_path / "playground.json").write_text(json.dumps(record))
    assert await waiting == LINK


async def test_a_playground_that_never_comes_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(PlaygroundError, match="strop playground"):
        await wait_for_playground(tmp_path, 0.1)


async def test_sign_ins_are_counted_across_restarts(database: Database) -> None:
    for _ in range(3):
        await IdentifyBudget(database, limit=3).spend()
    assert 0 < await IdentifyBudget(database, limit=3).wait_s() <= HOUR_MS / 1000
    assert await IdentifyBudget(database, limit=4).wait_s() == 0


async def test_a_spent_budget_refuses_instead_of_signing_in(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bot.gateway.sign_in._HOOK_WAIT_S", 0.01)
    budget = IdentifyBudget(database, limit=1)
    await budget.spend()
    with pytest.raises(IdentifyBudgetError):
        await budget.spend()
    assert len(json.loads(database.read(lambda db: key_values.get(db, "gateway.identifies")) or "")) == 1


async def test_what_is_older_than_an_hour_is_forgotten(database: Database) -> None:
    old = json.dumps([now_ms() - HOUR_MS - 1] * 30 + ["nonsense"])
    database.write(lambda db: key_values.put(db, "gateway.identifies", old))
    assert await IdentifyBudget(database).wait_s() == 0
    await IdentifyBudget(database).spend()


def signed_in(database: Database, count: int, last_s_ago: float = 0.0) -> None:
    """Make the database remember sign-ins of the last hour, as earlier processes left them."""
    last = now_ms() - round(last_s_ago * 1000)
    moments = json.dumps([last - 60_000] * (count - 1) + [last])
    database.write(lambda db: key_values.put(db, "gateway.identifies", moments))


@pytest.mark.parametrize(
    ("count", "wait_s"), [(5, 0), (6, 10), (7, 20), (8, 40), (10, 160), (11, 300), (19, 300)]
)
async def test_each_sign_in_of_an_hour_waits_longer_than_the_one_before(
    database: Database, count: int, wait_s: float
) -> None:
    signed_in(database, count)
    assert await IdentifyBudget(database).wait_s() == pytest.approx(wait_s, abs=1.0)
    signed_in(database, count, last_s_ago=wait_s + 1)
    assert await IdentifyBudget(database).wait_s() == 0


async def test_an_hour_of_nothing_but_invalid_sessions_stays_within_twenty(database: Database) -> None:
    """The waits add up to most of the hour: the budget is spread over it, not spent in its first minutes."""
    waits = []
    for used in range(1, 20):
        signed_in(database, used)
        waits.append(await IdentifyBudget(database).wait_s())
    assert 2400 < sum(waits) < 3600


async def test_several_shards_can_start_twice_an_hour_whatever_their_number(database: Database) -> None:
    signed_in(database, 15)
    assert await IdentifyBudget(database, shards=15).wait_s() == 0
    signed_in(database, 29)
    assert await IdentifyBudget(database, shards=15).wait_s() == 0
    signed_in(database, 30)
    assert await IdentifyBudget(database, shards=15).wait_s() > 3000


@pytest.mark.parametrize("settings", ["[discord]\nshards = 2"], indirect=True)
async def test_a_shard_that_must_not_sign_in_yet_is_tried_again_instead_of_ending_the_client(
    services: Services, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of another kind ends discord.py's sharded client (`EventType.terminate`)."""
    monkeypatch.setattr("bot.gateway.sign_in._HOOK_WAIT_S", 0.01)
    services.playground = False
    signed_in(database, 20)
    client = make_client(services)
    with pytest.raises(TimeoutError):
        await client.before_identify_hook(1, initial=True)


async def test_a_storm_of_invalid_sessions_stays_within_the_budget(
    services: Services, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """discord.py signs in again after each invalid session: the hook must stop it, connect must wait."""
    monkeypatch.setattr("bot.gateway.sign_in._HOOK_WAIT_S", 0.01)
    services.playground = False
    client = make_client(services)
    client._budget = IdentifyBudget(database, limit=5)
    signed_in = 0
    waits: list[float] = []

    async def connect(self: Any, *, reconnect: bool = True) -> None:
        nonlocal signed_in
        while True:
            await client.before_identify_hook(None, initial=True)
            signed_in += 1

    async def wait() -> None:
        waits.append(await IdentifyBudget(database, limit=5).wait_s())
        if len(waits) == 2:
            await client.close()

    monkeypatch.setattr(discord.Client, "connect", connect)
    monkeypatch.setattr(client._budget, "wait", wait)
    await client.connect()
    assert signed_in == 5
    assert waits[0] == 0 and waits[1] > 3000
