"""The bot's benchmark: what it makes of its numbers, and that its relay changes nothing."""

from __future__ import annotations

import functools
import time
from pathlib import Path

import pytest

from bot.serving.client import ModelClient
from bot.serving.errors import ServerBusyError
from bot.serving.protocol import ChatMessage, Sampling
from storage.config import Config
from storage.db import sql
from storage.db.database import Database
from tests.bench.bot.__main__ import Row, Window, lag_row, table
from tests.bench.bot.processes import BenchError
from tests.bench.bot.relay import Relay
from tests.bench.ceiling import RATINGS_A_REPLY, Case, as_many_as_will_go, in_bursts, measured
from tests.bench.storage.large_database import fill
from tests.bot.fake_server import FakeModelServer


def test_only_lags_inside_the_window_count() -> None:
    lags = [(100.0 + number / 4, 0.001, 0.0005) for number in range(400)]
    lags += [(50.0, 9.0, 1.0), (250.0, 9.0, 1.0), (150.1, 0.3, 0.0005)]
    row = lag_row(Window("alone", 100.0, 200.0, 1.5), lags, 50)
    assert (row.ms, row.reached) == (pytest.approx(1.0), "yes")
    assert "longest 300 of 401" in row.note and "own work 0.5" in row.note and "load 1.5" in row.note


def test_a_loop_that_nobody_watched_is_no_good_news() -> None:
    with pytest.raises(BenchError):
        lag_row(Window("alone", 0.0, 1.0, 0.0), [], 50)


def test_the_table_says_what_is_missed() -> None:
    rows = [Row("late", "alone", 120.0, 100.0, "n"), Row("words", "alone", 40.0, None, "")]
    assert table(rows).splitlines()[2:] == [
        "| late | alone | 120.0 | < 100 | no | n |",
        "| words | alone | 40.0 | – | – |  |",
    ]


async def test_the_relay_passes_on_what_is_said_and_knows_when(model_server: FakeModelServer) -> None:
    model_server.pause_s = 0.05
    async with Relay(model_server.base_url) as relay, ModelClient(relay.base_url) as client:
        assert (await client.health()).status == "ok"
        messages = [ChatMessage("user", "what is a strop?")]
        deltas = client.chat_stream(model="base-model", messages=messages, sampling=Sampling(max_tokens=9))
        begun = time.monotonic()
        text = "".join([delta.text async for delta in deltas])
        told_s = time.monotonic() - begun
        assert text == model_server.answer
        exchange = relay.exchanges["what is a strop?"]
        # Of all that it took at least the pauses after the first words are none of the model's thinking.
        assert exchange.thought_s is not None and 0 <= exchange.thought_s <= told_s - model_server.pause_s
        model_server.busy_times = 1
        refused = client.chat_stream(model="base-model", messages=messages, sampling=Sampling(max_tokens=9))
        with pytest.raises(ServerBusyError) as busy:
            await anext(refused)
        assert busy.value.retry_after_s == pytest.approx(0.05)


@pytest.mark.parametrize("drive", [as_many_as_will_go, functools.partial(in_bursts, rate=1000.0)])
def test_the_ceiling_is_measured_with_whole_replies_and_their_ratings(
    tmp_path: Path, drive: functools.partial[None]
) -> None:
    with Database.open(tmp_path / "strop.db") as database:
        database.write(lambda db: fill(db, 50))
        config = Config.model_validate({"home": tmp_path, "discord": {}})
        case = measured(
            database, Case("load", 50), lambda load, case: drive(load, case, count=20), config, known=40
        )
        ended = database.read(
            lambda db: sql.value(
                db, "SELECT count(*) FROM replies WHERE id LIKE 'c%' AND status = 'complete' AND seed = 1"
            )
        )
        rated = database.read(lambda db: sql.value(db, "SELECT count(*) FROM ratings")) - 50
    assert (case.replies, ended) == (20, 20)
    assert rated == 20 * RATINGS_A_REPLY
    assert case.per_s > 0 and case.cpu_ms > 0 and len(case.waits_ms) == 20
