"""The operators' page in a real browser, on a desk and on a phone."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, expect

from storage.admin import left_out
from storage.db import sql
from storage.db.database import Database
from tests.bot.dashboard.deployment import dashboard, lived_in
from tests.bot.playground.page.test_browser import EXPECT_MS, browser
from tests.storage.conftest import SCOPE

__all__ = ["browser"]

TOKEN = "a-token-of-some-length"
WIDTHS = [(1440, 900), (390, 844)]
pytestmark = pytest.mark.asyncio(loop_scope="module")
expect.set_options(timeout=EXPECT_MS)


async def opened(browser: Browser, url: str, size: tuple[int, int], complaints: list[str]) -> Page:
    context = await browser.new_context(viewport={"width": size[0], "height": size[1]})
    page = await context.new_page()
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    await page.goto(url)
    return page


async def fits(page: Page) -> bool:
    """Whether nothing reaches past the window's edge."""
    return bool(
        await page.evaluate(
            """() => {
                const width = document.documentElement.clientWidth;
                const cut = [...document.querySelectorAll("main *, header *")].filter((node) => {
                    const box = node.getBoundingClientRect();
                    const aside = node.closest(".table-scroll, .visually-hidden");
                    return box.width && box.right > width + 1 && !aside;
                });
                return document.documentElement.scrollWidth <= width && !cut.length;
            }"""
        )
    )


@pytest.mark.parametrize("size", WIDTHS)
async def test_an_operator_sees_the_loop_and_leaves_a_row_out(
    browser: Browser, database: Database, tmp_path: Path, size: tuple[int, int]
) -> None:
    replies, run_id = database.write(lived_in)
    complaints: list[str] = []
    async with dashboard(database, tmp_path, write=True) as served:
        page = await opened(browser, served.url, size, complaints)
        runs = page.get_by_role("region", name="Runs", exact=True).last
        await expect(runs).to_contain_text(run_id[:9])
        await expect(runs).to_contain_text("+0.12 (+0.03 to +0.20)")
        await expect(runs).to_contain_text("12 of 28")
        await expect(runs).to_contain_text("2.0 Wh")
        await expect(page.get_by_role("img", name="Ratings by week")).to_be_visible()
        await expect(page.get_by_text("Answering now")).to_be_visible()
        await expect(page.get_by_role("heading", name="Alarms")).to_be_visible()
        assert await fits(page)

        row = page.get_by_role("article", name=f"Reply {replies[0]}")
        await row.get_by_role("button", name="Leave out").click()
        await expect(row.get_by_role("button", name="Put back")).to_be_visible()
        assert len(database.read(lambda db: left_out.listing(db, SCOPE))) == 1
        await row.get_by_role("button", name="Put back").click()
        await expect(row.get_by_role("button", name="Leave out")).to_be_visible()
        assert database.read(lambda db: left_out.listing(db, SCOPE)) == []

        async with page.context.expect_page() as tab:
            await page.get_by_role("button", name=f"Open the report of run {run_id}").click()
        await expect((await tab.value).get_by_text(f"report of {run_id}")).to_be_visible()
        await page.context.close()
    assert not complaints


NOBODY = "Nobody has talked to the bot yet: there is nothing to show."
NOTHING = ("Nobody has rated a reply yet.", "No run yet.", "No rated reply may train as of now.")


@pytest.mark.parametrize(
    ("scopes", "said"), [((SCOPE,), NOTHING), ((), (NOBODY,))], ids=["unrated", "unused"]
)
async def test_a_deployment_without_data_is_said_to_have_none(
    browser: Browser, database: Database, tmp_path: Path, scopes: tuple[str, ...], said: tuple[str, ...]
) -> None:
    complaints: list[str] = []
    async with dashboard(database, tmp_path, scopes) as served:
        page = await opened(browser, served.url, WIDTHS[0], complaints)
        for sentence in said:
            await expect(page.get_by_text(sentence).first).to_be_visible()
        await page.context.close()
    assert not [each for each in complaints if "404" not in each]


async def test_behind_a_token_an_operator_signs_in_and_a_reader_sees_no_switch(
    browser: Browser, database: Database, tmp_path: Path
) -> None:
    database.write(lived_in)
    uncounted = "UPDATE runs SET metrics_json = json_set(metrics_json, '$.process.energy_j', NULL)"
    database.write(lambda db: sql.change(db, uncounted))
    async with dashboard(database, tmp_path, token=TOKEN) as served:
        page = await opened(browser, served.url, WIDTHS[1], [])
        field = page.get_by_label("Token")
        await field.fill("another token")
        await page.get_by_role("button", name="Open").click()
        await expect(page.get_by_text("That is not the token.")).to_be_visible()
        await field.fill(TOKEN)
        await page.get_by_role("button", name="Open").click()
        await expect(page.get_by_role("heading", name="What would train next")).to_be_visible()
        await expect(page.get_by_text("rated replies may train")).to_be_visible()
        assert "Memory" in (
            table := await page.get_by_role("region", name="Runs", exact=True).last.inner_html()
        )
        assert "Energy" not in table, "a machine that doesn't count it"
        assert await page.get_by_role("button", name="Leave out").count() == 0 and await fits(page)
        await page.context.close()
