"""The pictures of what operators see: the dashboard and /stats.

The figures are made up: twenty weeks of a small community whose replies get better with two promotions. Drawn
by the product's own page and charts.
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

import sqlite_utils
from playwright.async_api import async_playwright, expect

from bot.charts import week_chart
from bot.cli.stats import week_figures
from storage.chat import members
from storage.db import key_values, sql
from storage.db.clock import DAY_MS, now_ms
from storage.db.database import Database
from storage.learning import adapters, evaluations, runs
from storage.learning.evaluations import ProcessFigures
from storage.sentences import Sentence
from tests.bot.dashboard.deployment import BASE_HASH, dashboard
from tests.bot.playground.page.test_browser import CHROMIUM, FLAGS
from tests.storage.conftest import SCOPE, Community, thumb

IMAGES = Path(__file__).parents[2] / "deploy" / "images"
WEEKS, RATERS, A_WEEK = 20, 9, 26
# (weeks ago, adapter, share of its replies that are liked); before the first, the base model answers.
ADAPTERS = ((15, "a3f9c2d1e07b", 0.58), (6, "b71e04c95a2f", 0.71))
BASE_LIKED = 0.44
# (weeks ago, outcome, gain with its interval, minutes, processor minutes, gigabytes)
RUNS = (
    (15, "promoted", 0.09, 0.02, 0.16, 14, 26, 2.4),
    (12, "refused", 0.01, -0.05, 0.07, 15, 28, 2.4),
    (9, "refused", 0.03, -0.02, 0.08, 17, 31, 2.5),
    (6, "promoted", 0.11, 0.04, 0.18, 18, 34, 2.5),
    (2, "not_yet", None, None, None, 1, 1, 0.4),
)
QUESTIONS = (
    "Why does rye bread keep?",
    "Which tea for a cold?",
    "How do I true a wheel?",
    "What eats aphids?",
)


def lived_in(db: sqlite_utils.Database) -> None:
    """Write the community's months."""
    chance = random.Random(7)
    community = Community(source="playground")
    key_values.put(db, key_values.SERVED_BASE, BASE_HASH)
    for rater in range(RATERS):
        members.ensure(db, 100 + rater, f"rater {rater}", community.source)
    for ago in range(WEEKS - 1, -1, -1):
        _promote(db, ago)
        share = next((liked for since, _, liked in reversed(ADAPTERS) if ago <= since), BASE_LIKED)
        for number in range(A_WEEK + chance.randint(-6, 6)):
            asked = f"{chance.choice(QUESTIONS)} ({ago}/{number})"
            reply_id = community.asks(db, 1, asked, answer="It holds more water, and dries slowly.")
            thumb(db, reply_id, 100 + chance.randrange(RATERS), 1 if chance.random() < share else -1)
            _date(db, reply_id, now_ms() - 7 * ago * DAY_MS - chance.randrange(5 * DAY_MS))
    for each in RUNS:
        _run(db, *each)


def _promote(db: sqlite_utils.Database, ago: int) -> None:
    for since, adapter_id, _ in ADAPTERS:
        if since == ago:
            where = {"scope": SCOPE, "base_hash": BASE_HASH, "adapter_id": adapter_id}
            adapters.insert_candidate(db, path=f"adapters/{adapter_id}", **where)
            adapters.promote(db, actor="trainer", reason="the gate", **where)
            then = now_ms() - 7 * ago * DAY_MS - 6 * DAY_MS
            sql.change(db, "UPDATE promotions SET created_ms = ? WHERE adapter_id = ?", (then, adapter_id))


def _date(db: sqlite_utils.Database, reply_id: str, when_ms: int) -> None:
    sql.change(db, "UPDATE replies SET created_ms = ? WHERE id = ?", (when_ms, reply_id))
    sql.change(
        db, "UPDATE ratings SET created_ms = ?1, updated_ms = ?1 WHERE reply_id = ?2", (when_ms, reply_id)
    )


def _run(db: sqlite_utils.Database, ago: int, outcome: str, gain: Any, *rest: Any) -> None:
    low, high, minutes, cpu_minutes, gigabytes = rest
    metrics: dict[str, Any] = {"data": {"train": {"liked": 200 - 9 * ago, "disliked": 60, "corrections": 4}}}
    if gain is not None:
        metrics["headline"] = {"value": gain, "low": low, "high": high, "n": 40}
        metrics["training"] = {"objective": "sft", "sft": {"steps": 48, "planned": 48, "seconds": 400.0}}
    run = runs.enqueue(db, scope=SCOPE, trigger="schedule", requested_by="trainer")
    runs.lease_next(db, "trainer", 60_000)
    said = {"promoted": "It was promoted.", "refused": "It was not promoted.", "not_yet": "Not yet."}[outcome]
    runs.finish(db, run.id, outcome=outcome, message=Sentence(said), metrics=metrics)
    figures = ProcessFigures(
        60.0 * minutes, 60.0 * cpu_minutes, round(gigabytes * 1e9), None, 700.0 * minutes
    )
    evaluations.record_process(db, run.id, figures)
    began = now_ms() - 7 * ago * DAY_MS - 6 * DAY_MS
    ended = began + 60_000 * minutes
    sql.change(
        db,
        "UPDATE runs SET created_ms = ?1, started_ms = ?1, finished_ms = ?2 WHERE id = ?3",
        (began, ended, run.id),
    )


async def picture_dashboard(database: Database, home: Path, target: Path) -> None:
    """Take the operators' page as a browser shows it."""
    async with dashboard(database, home) as served, async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = await browser.new_page(viewport={"width": 1280, "height": 1000}, color_scheme="light")
        await page.goto(served.url)
        await expect(page.get_by_role("img", name="Ratings by week")).to_be_visible()
        await page.screenshot(path=target)
        await browser.close()


async def take() -> None:
    """Write the pictures."""
    with tempfile.TemporaryDirectory() as folder:
        with Database.open(Path(folder) / "strop.db") as database:
            database.write(lived_in)
            await picture_dashboard(database, Path(folder), IMAGES / "dashboard.png")
            figures = database.read(lambda db: week_figures(db, SCOPE, WEEKS))
        (IMAGES / "stats.png").write_bytes(week_chart.draw(figures).png)
