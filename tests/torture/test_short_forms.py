"""A short form of what `make torture` does for hours: each part still finds what it is there to find."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, cast

import pytest

from bot.chat.generation import LOADING
from bot.playground.discord.community import GENERAL_ID
from bot.playground.server import Playground, PlaygroundSettings
from storage.chat import members
from storage.db import key_values, sql
from storage.db.database import Database
from storage.feedback import ratings
from storage.privacy import erasure
from tests.e2e.stand_in import ADA
from tests.torture import clock, disk_full
from tests.torture.__main__ import PARTS, table
from tests.torture.kills import broken, disorder
from tests.torture.outages import RATERS, absent
from tests.torture.siege import Siege


def test_a_full_disk_at_every_write_leaves_nothing_half_done(tmp_path: Path) -> None:
    refused, wrong = disk_full.fill(tmp_path, seed=0, writes=40)
    assert wrong == [] and refused > 5


def test_a_clock_that_jumps_changes_neither_order_nor_ratings(tmp_path: Path) -> None:
    assert clock.jumps(tmp_path, seed=0, steps=60) == []


def test_an_order_by_clock_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rate = ratings.rate

    def rate_by_clock(db: Any, **rating: Any) -> bool:
        """Only a later moment counts: the fault that the jumps are there to find."""
        before = sql.value(db, "SELECT max(updated_ms) FROM ratings")
        late = before is None or before <= clock.clock.now_ms()
        return late and rate(db, **rating)

    monkeypatch.setattr(ratings, "rate", rate_by_clock)
    assert clock.jumps(tmp_path, seed=0, steps=60)


async def test_what_is_rated_in_an_outage_is_made_up_for(tmp_path: Path) -> None:
    async with absent(tmp_path, ratings=4 * len(RATERS), seed=1) as outages:
        for _ in range(2):
            assert await outages.one() == (4 * len(RATERS), 0)


async def test_what_a_kill_must_not_leave_would_be_found(tmp_path: Path) -> None:
    async with Playground(PlaygroundSettings()) as playground:
        with Database.open(tmp_path / "strop.db") as database:
            siege = Siege(tmp_path, playground, database, cast(Any, None), {}, random.Random(1))
            siege.leaves = ADA
            question = playground.backend.send_message(GENERAL_ID, ADA, "what is pearl7?")
            siege.asked[int(question["id"])], siege.words[int(question["id"])] = ADA, "pearl7"
            assert broken(siege) == []
            assert disorder(siege) == [f"question {question['id']} has no answer"]

            shown = playground.backend.rest(
                "POST",
                f"/channels/{GENERAL_ID}/messages",
                body={"content": LOADING, "message_reference": {"message_id": question["id"]}},
            )
            database.write(lambda db: members.ensure(db, ADA, "Ada", "playground"))
            database.write(lambda db: erasure.erase_member(db, ADA, str(ADA)))
            database.write(lambda db: key_values.put(db, "left", "pearl7"))
            database.write(lambda db: members.ensure(db, ADA, "Ada", "playground"))
            found = disorder(siege)
    assert f"no row knows {LOADING[:50]!r}" in found and f"{shown['id']} is half written" in found
    assert f"pearl7 of {ADA} is kept" in found and "Ada, who left, is kept" in found


def test_the_table_says_what_was_tried_and_what_was_not() -> None:
    text = table({"outages": {"done": 3, "ratings": 630, "lost": 0}})
    assert "| 3 (100) | 630 ratings, 0 lost |" in text
    assert text.count("not tried") == len(PARTS) - 1
