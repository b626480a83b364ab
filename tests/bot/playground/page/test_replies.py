"""The bot's reply buttons, forms, Apps menu and pairs on the page, in a real browser with the real bot."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Locator, Page, expect

from bot.playground.discord import community
from tests.bot.playground.page.test_browser import FLAGS, browser, composer, open_page
from tests.e2e.test_reply_buttons import YOU, Town, town

__all__ = ["FLAGS", "browser"]

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module")
async def there(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Town]:
    async with town(tmp_path, getattr(request, "param", "")) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Browser, there: Town) -> AsyncIterator[Page]:
    complaints: list[str] = []
    context = await browser.new_context(viewport={"width": 1440, "height": 900}, reduced_motion="reduce")
    yield await open_page(context, there.playground.base_url, complaints)
    await context.close()
    assert not complaints


async def ask(page: Page, text: str) -> Locator:
    await composer(page).fill(text)
    await page.keyboard.press("Enter")
    return page.locator(".message", has=page.locator(".component-row")).last


async def test_a_reply_is_written_again_paged_and_corrected_on_the_page(page: Page, there: Town) -> None:
    reply = await ask(page, "hello")
    await expect(reply).to_contain_text("Hello there, friend.")
    there.model.answer = "Another way to say it."
    await reply.get_by_role("button", name="Write it again").click()
    await expect(reply).to_contain_text("Another way to say it.")
    await expect(reply.get_by_role("button", name="Later version, 2/2")).to_be_visible()
    await reply.get_by_role("button", name="Earlier version").click()
    await expect(reply).to_contain_text("Hello there, friend.")
    await expect(reply.get_by_role("button", name="Later version, 1/2")).to_be_visible()

    await reply.get_by_role("button", name="Write a better answer").click()
    await page.get_by_label("What should I have said?").fill("Ahoy!")
    await page.get_by_role("button", name="Submit").click()
    await expect(page.locator(".message").last).to_contain_text("I keep this as the better answer")
    await reply.get_by_role("button", name="Why this reply?").click()
    await expect(page.locator(".message").last).to_contain_text("The base model wrote this")


async def test_a_link_to_a_message_leads_to_its_place_on_the_page(page: Page, there: Town) -> None:
    reply = await ask(page, "hello")
    await expect(reply).to_contain_text("Hello there, friend.")
    message = there.said()[-1]
    address = f"https://discord.com/channels/{community.GUILD_ID}/{message['channel_id']}/{message['id']}"
    there.playground.backend.send_message(community.PLACES[1].channel_id, YOU, f"look: {address}")
    await page.get_by_role("button", name="lab").click()
    await page.get_by_role("button", name="#general › message").click()
    found = page.locator(f'.message[data-id="{message["id"]}"]')
    await expect(found).to_have_class(re.compile("is-found"))
    await expect(found).to_be_in_viewport()


async def test_the_apps_menu_offers_the_bots_entries_with_the_keyboard_too(page: Page, there: Town) -> None:
    reply = await ask(page, "hello")
    await expect(reply.get_by_role("button", name="Write it again")).to_be_visible()
    await reply.hover()
    await page.get_by_role("button", name="Apps").click()
    menu = page.get_by_role("menu", name="Apps")
    await expect(menu.get_by_role("menuitem")).to_have_count(5)
    await expect(menu.get_by_role("menuitem").first).to_be_focused()
    await menu.get_by_role("menuitem", name="Report reply").click()
    await page.get_by_label("What is wrong with it?").fill("Rude.")
    await page.get_by_role("button", name="Submit").click()
    await expect(page.locator(".message").last).to_contain_text("the people who run me have your report")


async def test_the_buttons_stay_in_the_background(page: Page, there: Town) -> None:
    reply = await ask(page, "hello")
    again = reply.get_by_role("button", name="Write it again")
    await expect(again).to_be_visible()
    assert await again.evaluate("node => getComputedStyle(node).borderTopColor") == "rgba(0, 0, 0, 0)"
    box = await again.bounding_box()
    assert box is not None and box["height"] <= 30
    stops = "[...document.querySelectorAll('.component-row .button')].filter((b) => !b.tabIndex).length"
    await ask(page, "hello again")
    await expect(page.get_by_role("button", name="Write it again")).to_have_count(2)
    assert await page.evaluate(stops) <= 3


@pytest.mark.parametrize("there", ["[replies]\ncompare = 1.0"], indirect=True)
async def test_two_candidates_are_voted_on_and_carry_no_thumbs(page: Page, there: Town) -> None:
    reply = await ask(page, "hello")
    await expect(reply).to_contain_text("Two answers this time")
    await expect(reply.get_by_role("button", name=re.compile("^Like"))).to_have_count(0)
    await reply.get_by_role("button", name="A", exact=True).click()
    await expect(page.locator(".message").last).to_contain_text("Counted: A.")


@pytest.mark.parametrize("there", ["[replies]\nrating_buttons = true"], indirect=True)
async def test_thumbs_as_buttons_replace_the_pages_own(page: Page, there: Town) -> None:
    reply = await ask(page, "hello")
    good = reply.get_by_role("button", name="Good reply")
    await good.click()
    await expect(reply.get_by_role("button", name="Good reply, 1")).to_be_visible()
    await expect(reply.get_by_role("button", name=re.compile("^Like"))).to_have_count(0)
