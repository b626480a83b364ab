"""The operators' channel over the playground's real sockets: each piece of news once, restarts included."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
import yarl
from discord.gateway import DiscordWebSocket
from discord.http import Route

from bot.admin.alerts import OperationsWatch
from bot.learning.run_progress import ProgressReporter
from bot.playground.discord import community
from storage.db import key_values
from storage.learning import adapters, runs
from storage.process import logs
from storage.process.locks import ProcessLock
from tests.bot.fake_server import BASE_HASH
from tests.e2e.operating import Deck, operating, signed_in, until

CHANNEL = community.PLACES[1].channel_id
SETTINGS = f"[discord]\noperators_channel = {CHANNEL}\n"
ADAPTER = "a1111111111111111"
SEVERAL_LOOKS_S = 0.5


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(Route, "BASE", Route.BASE)
    monkeypatch.setattr(DiscordWebSocket, "DEFAULT_GATEWAY", yarl.URL(DiscordWebSocket.DEFAULT_GATEWAY))
    monkeypatch.setattr("bot.admin.alerts.LOOK_S", 0.05)
    yield


def told(deck: Deck) -> list[str]:
    return [line for message in deck.said(CHANNEL) for line in message["content"].splitlines()]


def fail_a_run(deck: Deck) -> str:
    def work(db: object) -> str:
        run = runs.enqueue(db, scope=deck.scope, trigger="manual", requested_by="1")  # type: ignore[arg-type]
        return runs.fail(db, run.id, error="E", message="The server stayed away.").id  # type: ignore[arg-type]

    return deck.database.write(work)


@pytest.fixture
def logging_as_the_process_does() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    logs.configure("bot")
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.mark.usefixtures("logging_as_the_process_does")
async def test_an_error_that_somebody_met_is_told_by_its_id_and_kind_without_their_words(
    tmp_path: Path,
) -> None:
    with ProcessLock(tmp_path / "playground/run/trainer.lock").acquire("{pid}"):
        async with operating(tmp_path, SETTINGS) as deck:
            await until(lambda: deck.database.read(lambda db: key_values.get(db, "operations.told")))
            deck.database.write(lambda db: db.execute("ALTER TABLE fresh_starts RENAME TO elsewhere"))
            deck.command("forget")
            shown = re.compile(r"Something went wrong on my side \(error `(\w+)`\)")
            found = await until(
                lambda: next((hit for m in deck.private() if (hit := shown.search(m["content"]))), None)
            )
            line = await until(lambda: next((each for each in told(deck) if found[1] in each), None))
            assert line.startswith("🐞") and "command.failed /forget" in line
            await asyncio.sleep(SEVERAL_LOOKS_S)
            assert [each for each in told(deck) if found[1] in each] == [line]


async def test_failed_runs_and_rollbacks_are_told_once(tmp_path: Path) -> None:
    with ProcessLock(tmp_path / "playground/run/trainer.lock").acquire("{pid}"):
        async with operating(tmp_path, SETTINGS) as deck:
            # What happened before the first look ever is no news.
            await until(lambda: deck.database.read(lambda db: key_values.get(db, "operations.told")))
            before = fail_a_run(deck)
            await until(lambda: any(before in line for line in told(deck)))

            def promote_and_roll_back(db: object) -> None:
                where = {"scope": deck.scope, "base_hash": BASE_HASH}
                adapters.insert_candidate(db, adapter_id=ADAPTER, path="p", **where)  # type: ignore[arg-type]
                adapters.promote(db, adapter_id=ADAPTER, actor="1", reason="r", **where)  # type: ignore[arg-type]
                adapters.rollback(db, actor="1", reason="r", **where)  # type: ignore[arg-type]

            deck.database.write(promote_and_roll_back)
            await until(lambda: len(told(deck)) == 2)
            assert told(deck)[1].endswith(
                f"adapter `{ADAPTER}` no longer answers, the base model does (rolled back)."
            )
            await deck.bot.feature(OperationsWatch).stop()
            await deck.bot.feature(ProgressReporter).stop()
            await deck.bot.close()
            after = fail_a_run(deck)
            async with signed_in(deck.services, deck.playground):
                await until(lambda: len(told(deck)) == 3)
                assert after in told(deck)[2]
                await asyncio.sleep(SEVERAL_LOOKS_S)
                assert len(told(deck)) == 3


async def test_dead_processes_and_a_full_disk_are_told_when_they_come_and_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with operating(tmp_path, SETTINGS) as deck:
        await until(lambda: told(deck) == ["⚠️ The trainer is not running."])
        await deck.model.stop()
        await until(lambda: told(deck)[1:] == ["⚠️ The model server is not running."])
        await deck.model.start()
        await until(lambda: told(deck)[2:] == ["✅ The model server is back."])
        with ProcessLock(deck.services.config.run / "trainer.lock").acquire("{pid}"):
            await until(lambda: told(deck)[3:] == ["✅ The trainer is back."])
            monkeypatch.setattr("bot.admin.alerts.LOW_DISK_BYTES", 1024**5)
            await until(lambda: told(deck)[4:] and "The disk is nearly full" in told(deck)[4])
            monkeypatch.setattr("bot.admin.alerts.LOW_DISK_BYTES", 1)
            await until(lambda: told(deck)[5:] and "has room again" in told(deck)[5])
            await asyncio.sleep(SEVERAL_LOOKS_S)
            assert len(told(deck)) == 6


async def test_without_a_channel_nothing_is_told(tmp_path: Path) -> None:
    async with operating(tmp_path) as deck:
        await until(lambda: deck.bot.guilds)
        fail_a_run(deck)
        await asyncio.sleep(SEVERAL_LOOKS_S)
        assert told(deck) == []
