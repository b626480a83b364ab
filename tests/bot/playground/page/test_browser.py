"""The playground's page in a real browser, against a server that speaks its API with scripted payloads."""

import asyncio
import base64
import os
import re
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

import discord
import pytest
import pytest_asyncio
from playwright.async_api import (
    Browser,
    BrowserContext,
    FilePayload,
    Locator,
    Page,
    WebSocketRoute,
    async_playwright,
    expect,
)

from bot.dashboard.responses import SHARED
from bot.playground.server import Playground, PlaygroundSettings
from tests.bot.playground.conftest import Recorder, connected
from tests.bot.playground.page.page_fixture import ADA, BOT, DM, GENERAL, PAGE_DIR, YOU, PageWorld, busy_loop
from tests.e2e.operating import ADA as ADA_ID
from tests.e2e.operating import operating

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
EXPECT_MS = 20_000

pytestmark = pytest.mark.asyncio(loop_scope="module")
expect.set_options(timeout=EXPECT_MS)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    if shutil.which(CHROMIUM) is None:
        reason = f"no browser at {CHROMIUM}: apt-get install chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    async with async_playwright() as playwright:
        launched = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        await launched.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[PageWorld]:
    world = PageWorld()
    await world.start()
    yield world
    await world.stop()


@pytest.fixture
def world(server: PageWorld) -> PageWorld:
    """The scripted community, empty."""
    server.clear()
    return server


def is_complaint(kind: str, text: str) -> bool:
    """A refusal by the API is no complaint of the page, though the browser notes it."""
    return kind in ("error", "warning") and "responded with a status of 400" not in text


async def open_page(context: BrowserContext, url: str, complaints: list[str]) -> Page:
    """Open the page; whatever it logs or requests from elsewhere is added to `complaints`."""
    page = await context.new_page()
    page.on("console", lambda line: is_complaint(line.type, line.text) and complaints.append(line.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: request.url.startswith(url) or complaints.append(request.url))
    await page.goto(url)
    await expect(page.locator("#composer-hint")).to_contain_text("Type / for commands")
    return page


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def window(browser: Browser) -> AsyncIterator[BrowserContext]:
    """A wide window for all tests: what the browser has cached makes each of them faster."""
    context = await browser.new_context(viewport={"width": 1440, "height": 900}, reduced_motion="reduce")
    yield context
    await context.close()


@pytest_asyncio.fixture(loop_scope="module")
async def page(window: BrowserContext, world: PageWorld) -> AsyncIterator[Page]:
    """The page as a newcomer finds it; any complaint fails the test."""
    complaints: list[str] = []
    opened = await open_page(window, world.url, complaints)
    yield opened
    await opened.evaluate("localStorage.clear()")
    await opened.close()
    assert not complaints


def composer(page: Page) -> Locator:
    return page.locator("#composer-input")


def last_message(page: Page) -> Locator:
    return page.locator(".message").last


async def act_as(page: Page, name: str) -> None:
    await page.locator(".actor").click()
    await page.get_by_role("menuitemradio", name=name).click()


async def called(world: PageWorld, name: str) -> dict[str, object]:
    """The body of the latest call of that name, once it has come."""
    for _ in range(100):
        found = next((body for call, body in reversed(world.calls) if call == name), None)
        if found is not None:
            return found
        await asyncio.sleep(0.02)
    raise AssertionError(f"the page never called {name}")


# ---------------------------------------------------------------------- chatting


async def test_a_newcomers_first_message_is_answered_word_by_word(page: Page, world: PageWorld) -> None:
    await composer(page).fill("does rye bread keep?")
    await page.keyboard.press("Enter")
    reply = page.locator(".message", has_text="Rye bread keeps")
    await expect(reply).to_have_class("message is-streaming")
    await expect(reply.locator("strong")).to_have_text("longer")
    await expect(reply).to_contain_text("Do you bake it yourself?")
    assert (await called(world, "POST /messages"))["content"] == f"<@{BOT}> does rye bread keep?"
    await expect(page.locator(".guide .is-done")).to_have_count(1)
    assert await composer(page).input_value() == ""


async def test_two_answers_to_vote_on_are_an_answer_to_a_newcomer(page: Page, world: PageWorld) -> None:
    question = await world.say(YOU, f"<@{BOT}> does rye bread keep?")
    vote = {"type": 2, "style": 2, "label": "A", "custom_id": "strop:compare:first:1"}
    row = {"type": 1, "components": [vote]}
    await world.answer(question, "A\nIt does.\nB\nFor a week.", components=[row])
    await expect(page.locator(".guide .is-done")).to_have_text(["Say hello (done)"])
    await expect(last_message(page).locator(".pill")).to_have_count(0)


async def test_the_caret_goes_when_the_edits_cease(page: Page, world: PageWorld) -> None:
    question = await world.say(YOU, "well?")
    reply = await world.answer(question, "Thinking", streaming=True)
    await expect(last_message(page)).to_have_attribute("aria-busy", "")
    reply["streaming"] = False
    await world.edit(reply, "Thinking is done.")
    await expect(last_message(page)).not_to_have_attribute("aria-busy", "")
    await expect(last_message(page)).not_to_contain_text("(edited)")


async def test_without_ask_strop_a_message_is_sent_as_written(page: Page, world: PageWorld) -> None:
    await page.get_by_role("button", name="Ask Strop").click()
    await composer(page).fill("just between us")
    await page.keyboard.press("Shift+Enter")
    await page.keyboard.type("two lines")
    await page.keyboard.press("Enter")
    assert (await called(world, "POST /messages"))["content"] == "just between us\ntwo lines"
    await composer(page).fill("hey @strop, and you?")
    await page.keyboard.press("Enter")
    await expect(page.locator(".content", has_text="hey @Strop, and you?")).to_be_visible()


async def test_a_thumb_toggles_and_counts_people_only(page: Page, world: PageWorld) -> None:
    reply = await world.answer(await world.say(YOU, "hm"), "An answer.")
    for thumb in ("👍", "👎"):
        await world.react(reply, BOT, thumb)
    like = last_message(page).get_by_role("button", name=re.compile("^Like this reply"))
    await expect(like).to_have_attribute("aria-label", "Like this reply, 0 so far")
    await like.click()
    await expect(like).to_have_attribute("aria-pressed", "true")
    await world.react(reply, ADA, "👍")
    await expect(like.locator(".count")).to_have_text("2")
    await like.click()
    await expect(like).to_have_attribute("aria-pressed", "false")
    await expect(like.locator(".count")).to_have_text("1")


async def test_the_hover_menu_edits_deletes_and_replies(page: Page, world: PageWorld) -> None:
    await world.say(ADA, "a first message")
    mine = await world.say(YOU, "helo")
    row = page.locator(f".message[data-id='{mine['id']}']")
    await row.hover()
    await row.get_by_role("button", name="Edit").click()
    await composer(page).fill("hello")
    await page.keyboard.press("Enter")
    await expect(row.locator(".content")).to_have_text("hello (edited)")
    await row.hover()
    await row.get_by_role("button", name="Delete").click()
    await page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    await expect(row).to_have_count(0)
    await last_message(page).hover()
    await expect(last_message(page).get_by_role("button", name="Edit")).to_have_count(0)
    await last_message(page).get_by_role("button", name="Reply").click()
    await composer(page).fill("answering you")
    await page.keyboard.press("Enter")
    await expect(page.locator(".quote-text").first).to_have_text("a first message")


async def test_a_refused_message_comes_back_with_the_reason(page: Page, world: PageWorld) -> None:
    note = FilePayload(name="note.txt", mimeType="text/plain", buffer=b"words")
    await page.locator("#composer-files").set_input_files(note)
    await composer(page).fill("refuse me")
    await page.keyboard.press("Enter")
    await expect(page.locator(".toast")).to_contain_text("A message has at most 2000 characters.")
    await expect(composer(page)).to_have_value("refuse me")
    await expect(page.locator(".file-tray li")).to_have_text("note.txt")


async def test_what_is_typed_before_the_page_is_connected_stays(
    window: BrowserContext, world: PageWorld
) -> None:
    page, typed = await window.new_page(), asyncio.Event()

    async def hold(socket: WebSocketRoute) -> None:
        await typed.wait()
        socket.connect_to_server()

    await page.route_web_socket("**/playground/events", hold)
    await page.goto(world.url)
    await composer(page).fill("Is anybody there?")
    typed.set()
    await expect(page.locator("#composer-hint")).to_contain_text("Type / for commands")
    await expect(composer(page)).to_have_value("Is anybody there?")
    await composer(page).press("Enter")
    await expect(last_message(page)).to_contain_text("Is anybody there?")
    await page.close()


async def test_files_go_along_and_a_long_text_becomes_one(page: Page, world: PageWorld) -> None:
    note = FilePayload(name="note.txt", mimeType="text/plain", buffer="Grüße".encode())
    await page.locator("#composer-files").set_input_files(note)
    await composer(page).fill("x" * 2_100)
    await expect(page.locator(".composer-count")).to_have_text("goes as a file")
    await page.keyboard.press("Enter")
    await expect(page.locator(".file-tray li")).to_have_count(0)
    await expect(composer(page)).to_have_value("")
    body = await called(world, "POST /messages")
    assert body["content"] == f"<@{BOT}>"
    assert isinstance(body["files"], list)
    sent = {each["name"]: base64.b64decode(each["data"]).decode() for each in body["files"]}
    assert sent == {"message.txt": "x" * 2_100, "note.txt": "Grüße"}


async def test_a_thread_is_listed_below_its_channel_and_its_answers_can_be_rated(
    page: Page, world: PageWorld
) -> None:
    opened = {"id": "1020", "name": "leather strops", "parent_id": GENERAL, "thread_metadata": {}}
    world.messages["1020"] = []
    await world.event("THREAD_CREATE", opened)
    await page.get_by_role("navigation").get_by_role("button", name="leather strops").click()
    await world.say(BOT, "An answer in the thread.", "1020")
    await expect(last_message(page).get_by_role("button", name="Dislike this reply")).to_be_visible()


# ---------------------------------------------------------------------- what messages may contain


async def test_markup_in_a_message_stays_text(page: Page, world: PageWorld) -> None:
    hostile = (
        '<img src=x onerror="document.title=1"><script>alert(1)</script> [x](javascript:alert(1)) <b>b</b>'
    )
    await world.say(ADA, hostile)
    embed = {"title": hostile, "url": "javascript:alert(1)", "description": hostile}
    await world.say(BOT, "", embeds=[embed])
    content = page.locator(".message", has_text="onerror").first.locator(".content")
    await expect(content).to_have_text(hostile)
    await expect(page.locator(".embed-title")).to_have_text(hostile)
    made = page.locator("#messages").locator("img, script, b, [href^=javascript]")
    await expect(made).to_have_count(0)
    assert "general" in await page.title()


async def test_markdown_becomes_structure(page: Page, world: PageWorld) -> None:
    await world.say(
        ADA,
        "**bold** *slanted* ~~gone~~ __under__ `a < b` ||secret|| https://example.org/a.\n"
        "> quoted\n- one\n- two\n```py\nprint('**not bold**')\n```\n5 * 3 * 2 and snake_case_name stay",
    )
    message = last_message(page)
    for selector, text in (
        ("strong", "bold"),
        ("em", "slanted"),
        ("s", "gone"),
        ("u", "under"),
        ("p code", "a < b"),
        ("blockquote", "quoted"),
        ("pre code", "print('**not bold**')"),
        ("a", "https://example.org/a"),
    ):
        await expect(message.locator(selector)).to_have_text(text)
    await expect(message.locator("li")).to_have_text(["one", "two"])
    await expect(message).to_contain_text("5 * 3 * 2 and snake_case_name stay")
    await message.get_by_role("button", name="Spoiler").click()
    await expect(message.locator(".spoiler.is-open")).to_have_text("secret")


async def test_a_huge_message_is_folded_and_right_to_left_text_runs_so(page: Page, world: PageWorld) -> None:
    await world.say(ADA, "word " * 20_000)
    await expect(last_message(page).get_by_role("button", name="Show the whole message")).to_be_visible()
    await world.say(ADA, "مرحبا بالعالم")
    await expect(last_message(page)).to_contain_text("مرحبا")
    direction = await last_message(page).locator("p").evaluate("node => getComputedStyle(node).direction")
    assert direction == "rtl"


async def test_a_thousand_messages_keep_the_page_small_and_the_place(page: Page, world: PageWorld) -> None:
    for number in range(1_000):
        world.message(ADA if number % 3 else YOU, f"message number {number}")
    await page.reload()
    await expect(last_message(page)).to_contain_text("message number 999")
    assert await page.locator(".message").count() <= 120
    await page.locator("#scroller").evaluate("node => { node.scrollTop = 0 }")
    jump = page.locator(".jump")
    # The text is there while it is hidden, too: only when it is seen has the page noticed the scrolling.
    await expect(jump).to_be_visible()
    await expect(jump).to_have_text("Jump to latest")
    await world.say(ADA, "something new")
    await expect(jump).to_have_text("1 new")
    assert await page.locator("#scroller").evaluate("node => node.scrollTop") < 200
    await page.get_by_role("button", name="Show earlier messages").click()
    await expect(page.locator(".message")).to_have_count(240)
    await jump.click()
    await expect(last_message(page)).to_be_in_viewport()
    await expect(jump).to_be_hidden()


# ---------------------------------------------------------------------- commands, components, modals


async def test_the_palette_runs_a_command_with_its_options(page: Page, world: PageWorld) -> None:
    await composer(page).fill("/as")
    await expect(page.get_by_role("option")).to_contain_text(["/ask"])
    await page.keyboard.press("Enter")
    await page.keyboard.type("why leather?")
    await page.get_by_label("tone").select_option("Warm")
    await page.get_by_label("tokens").fill("40")
    await page.keyboard.press("Enter")
    await expect(last_message(page)).to_contain_text("You asked: why leather?")
    body = await called(world, "POST /commands")
    assert body["options"] == {"question": "why leather?", "tone": "warm", "tokens": 40}
    assert (body["user_id"], body["channel_id"]) == (YOU, GENERAL)


async def test_subcommands_are_listed_one_by_one_and_need_no_typing(page: Page, world: PageWorld) -> None:
    await page.get_by_role("button", name="Commands").click()
    await page.get_by_role("option", name="/privacy export").click()
    await page.get_by_role("button", name="Run").click()
    body = await called(world, "POST /commands")
    assert (body["name"], body["subcommand"], body["options"]) == ("privacy", "export", {})


async def test_a_command_takes_a_file(page: Page, world: PageWorld) -> None:
    await page.get_by_role("button", name="Commands").click()
    await page.get_by_role("option", name="/prompts add").click()
    chosen = FilePayload(name="ours.txt", mimeType="text/plain", buffer="Wär's gut?\n".encode())
    await page.locator("#option-file").set_input_files(chosen)
    await page.get_by_role("button", name="Run").click()
    body = await called(world, "POST /commands")
    assert body["options"]["file"]["name"] == "ours.txt"
    assert base64.b64decode(body["options"]["file"]["data"]).decode() == "Wär's gut?\n"


async def test_a_private_answer_is_seen_by_its_member_only(page: Page, world: PageWorld) -> None:
    await world.whisper(YOU, "for your eyes")
    await expect(last_message(page)).to_contain_text("for your eyes")
    await expect(last_message(page)).to_contain_text("Only you can see this")
    await act_as(page, "Ada")
    await expect(page.locator(".message", has_text="for your eyes")).to_have_count(0)
    await act_as(page, "You")
    await last_message(page).get_by_role("button", name="Dismiss").click()
    await expect(page.locator(".message", has_text="for your eyes")).to_have_count(0)


async def test_a_modal_is_filled_and_submitted(page: Page, world: PageWorld) -> None:
    await composer(page).fill("/correct")
    await page.keyboard.press("Enter")
    await page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Correct the reply")
    await dialog.get_by_label("A better reply").fill("Soak them overnight.")
    await dialog.get_by_role("button", name="Submit").click()
    await expect(dialog).to_have_count(0)
    await expect(last_message(page)).to_contain_text("Noted: Soak them overnight.")
    values = {"better": "Soak them overnight."}
    assert await called(world, "POST /modals") == {"user_id": YOU, "modal_id": "77", "values": values}


async def test_buttons_and_selects_of_a_message_reach_the_bot(page: Page, world: PageWorld) -> None:
    buttons = {"type": 1, "components": [{"type": 2, "style": 1, "label": "A", "custom_id": "duel:first"}]}
    options = [{"label": "One", "value": "1"}, {"label": "Two", "value": "2"}]
    select = {"type": 3, "custom_id": "pick", "placeholder": "Pick", "options": options}
    await world.say(BOT, "Which?", components=[buttons, {"type": 1, "components": [select]}])
    await last_message(page).get_by_role("button", name="A", exact=True).click()
    await expect(last_message(page)).to_contain_text("[duel:first]")
    await last_message(page).get_by_label("Pick").select_option("Two")
    await expect(last_message(page)).to_contain_text("[pick]")
    assert (await called(world, "POST /components"))["values"] == ["2"]


async def test_a_menu_of_several_choices_is_sent_whole(page: Page, world: PageWorld) -> None:
    options = [{"label": name, "value": name, "default": name == "one"} for name in ("one", "two", "three")]
    several = {"type": 3, "custom_id": "many", "min_values": 0, "max_values": 3, "options": options}
    await world.say(BOT, "Which?", components=[{"type": 1, "components": [several]}])
    await last_message(page).get_by_label("three").check()
    assert not any(name == "POST /components" for name, _ in world.calls)
    await last_message(page).get_by_role("button", name="Apply").click()
    assert (await called(world, "POST /components"))["values"] == ["one", "three"]


# ---------------------------------------------------------------------- places and members


async def test_direct_messages_belong_to_one_member(page: Page, world: PageWorld) -> None:
    await page.get_by_role("navigation").get_by_role("button", name="Strop").click()
    await composer(page).fill("a quiet word")
    await page.keyboard.press("Enter")
    await expect(page.locator(".message", has_text="Rye bread keeps")).to_be_visible()
    body = await called(world, "POST /messages")
    assert (body["channel_id"], body["content"]) == (DM, "a quiet word")
    await act_as(page, "Ada")
    await expect(page.locator(".message")).to_have_count(0)


async def test_unread_channels_are_counted_and_simulated_members_say_so(page: Page, world: PageWorld) -> None:
    await world.say("1101", "hello from the other room", "102")
    lab = page.get_by_role("navigation").get_by_role("button", name="lab")
    await expect(lab.locator(".unread")).to_have_text("1")
    await lab.click()
    await expect(last_message(page).locator(".badge")).to_have_text("simulated")
    await expect(lab.locator(".unread")).to_have_count(0)


async def test_no_thumbs_stand_below_a_notice_where_no_answer_is_to_be_seen_yet(
    page: Page, world: PageWorld
) -> None:
    """The server knows whether answers have buttons: the page need not have seen one."""
    world.reply_buttons = True
    await world.answer(await world.say(YOU, "hm"), "You ask too fast.")
    await page.reload()
    await expect(last_message(page)).to_contain_text("You ask too fast.")
    await expect(page.get_by_role("button", name="like this reply")).to_have_count(0)


async def test_thumbs_stand_below_answers_and_not_below_notices(page: Page, world: PageWorld) -> None:
    question = await world.say(YOU, "hello")
    notice = await world.answer(question, "You ask too fast.")
    # An answer in two messages: the buttons are below the last one, and rating either counts.
    first = await world.answer(question, "It begins here.")
    last = await world.say(BOT, "And it ends here.", components=reply_buttons("why"))
    for message, thumbs in ((notice, 0), (first, 2), (last, 2)):
        shown = page.locator(f"[data-id='{message['id']}']")
        await expect(shown.get_by_role("button", name="like this reply")).to_have_count(thumbs)


def reply_buttons(action: str) -> list[dict[str, object]]:
    """The row below a finished answer, with one button."""
    button = {"type": 2, "style": 2, "emoji": {"name": "i"}, "custom_id": f"strop:reply:{action}:r1"}
    return [{"type": 1, "components": [button]}]


async def test_where_a_thread_was_opened_its_name_leads_there(page: Page, world: PageWorld) -> None:
    question = await world.say(YOU, "tell me about threads")
    thread = {"id": question["id"], "name": "about threads", "parent_id": GENERAL, "thread_metadata": {}}
    await world.event("THREAD_CREATE", thread)
    reference = {"message_id": question["id"], "channel_id": GENERAL}
    await world.say(BOT, "about threads", type=18, message_reference=reference)
    notice = last_message(page)
    await expect(notice).to_contain_text("opened a thread: about threads")
    await expect(notice).not_to_contain_text("tell me")
    await notice.get_by_role("button", name="about threads").click()
    await expect(page.locator("#stage-head h1")).to_have_text("about threads")


async def test_commands_that_a_member_may_not_use_are_not_offered(page: Page, world: PageWorld) -> None:
    settings = {
        "name": "settings",
        "type": 1,
        "description": "How I behave",
        "default_member_permissions": "32",
    }
    for_all = {"name": "stats", "type": 1, "description": "Ratings", "default_member_permissions": None}
    await world.event("COMMANDS_CHANGED", {"commands": [settings, for_all]})
    await composer(page).fill("/")
    await expect(page.get_by_role("option")).to_have_count(2)
    await act_as(page, "Ada")
    await composer(page).fill("/s")
    await expect(page.get_by_role("option")).to_have_text([re.compile("/stats")])


# ---------------------------------------------------------------------- the loop


async def test_the_loop_panel_shows_needs_phase_chart_and_table(page: Page, world: PageWorld) -> None:
    panel = page.get_by_role("complementary", name="The loop")
    await expect(panel).to_contain_text("0, needed: 25")
    await world.set_loop(**busy_loop())
    await expect(panel).to_contain_text("31, needed: 25")
    bar = panel.get_by_role("progressbar", name="Training the challenger")
    await expect(bar).to_have_attribute("value", "0.42")
    await expect(panel).to_contain_text("1 min 36 s left")
    await expect(panel.locator("[aria-current=step]")).to_have_text("Train")
    await expect(panel.get_by_role("button", name="A run is on its way")).to_be_disabled()
    assert await panel.locator(".chart-point").count() == 5
    await panel.get_by_text("As a table").click()
    await expect(panel.locator("tbody tr").first).to_contain_text("+0.05 to +0.19")
    for width in (1440, 390):
        await page.set_viewport_size({"width": width, "height": 900})
        if width < 1180:  # there the panel is a drawer, and a closed one has no role
            await page.get_by_role("button", name="Show the loop panel").click()
        hidden_px = await panel.locator(".table-scroll").evaluate("it => it.scrollWidth - it.clientWidth")
        assert hidden_px <= 0, f"{hidden_px} pixels of the table of runs are cut off at {width}"
    await page.set_viewport_size({"width": 1440, "height": 900})
    canary = panel.get_by_role("region", name="Side by side")
    await expect(canary).to_contain_text("Canary: ac51d0a7 answers 10 % of new conversations.")
    await expect(canary).to_contain_text(
        "4 of the newer adapter, 31 of the older. In half of all cases 12 to 61 more"
    )
    await world.set_loop(trials={})
    await expect(canary).to_be_hidden()
    await world.set_loop(run=None, server={"status": "loading", "detail": "42 %"})
    await expect(panel).to_contain_text("Loading the model")
    await expect(panel.locator("details")).to_have_attribute("open", "")


async def test_retraining_and_rolling_back_run_the_bots_commands(page: Page, world: PageWorld) -> None:
    for number in range(60):
        await world.say(YOU, f"line {number}")
    await page.locator("#scroller").evaluate("it => it.scrollTo(0, 0)")
    await page.get_by_role("button", name="Retrain now").click()
    await expect(last_message(page)).to_contain_text("/retrain was run")
    await expect(last_message(page)).to_be_in_viewport()
    await expect(page.get_by_role("button", name="Roll back")).to_be_disabled()
    await world.set_loop(champion={"id": "a92f4be0cd18", "since_ms": 1})
    await page.get_by_role("button", name="Roll back").click()
    await page.get_by_role("dialog").get_by_role("button", name="Roll back").click()
    await expect(last_message(page)).to_contain_text("/rollback was run")


async def test_the_panel_says_who_may_retrain_and_what_starts_a_run(page: Page, world: PageWorld) -> None:
    panel = page.get_by_role("complementary", name="The loop")
    due = {"at_ms": round(time.time() * 1000) + 86_400_000, "after_ratings": 50}
    # The base answered a run that found too little: it never had an adapter before it.
    few = {"id": "r1", "state": "finished", "outcome": "not_yet", "message": "not yet: 1 of 25 liked replies"}
    initial = {"adapter_id": None, "previous_id": None, "kind": "initial", "reason": "", "created_ms": 1}
    await world.set_loop(
        champion={"id": None, "since_ms": 1}, promotions=[initial], last_run=few, next_run=due
    )
    await expect(panel).to_contain_text("no adapter yet")
    await expect(panel).to_contain_text("1 of 25 liked replies")
    await expect(panel).to_contain_text("if somebody has rated by then, or after 50 more ratings.")
    # Ratings that start no run by themselves are enough for one that is asked for.
    await world.set_loop(needs={"liked": [40, 25], "raters": [21, 5]})
    await expect(panel).to_contain_text("There is enough to train on. By itself a run starts")
    await expect(panel).not_to_contain_text("1 of 25 liked replies")
    await world.set_loop(
        promotions=[
            {**initial, "kind": "rollback", "previous_id": "a1"},
            {**initial, "kind": "promote", "adapter_id": "a1"},
        ]
    )
    await expect(panel).to_contain_text("again: /promote puts an adapter back")
    await expect(panel.locator(".promotions li")).to_have_text(
        [re.compile("^rolled back to the base model"), re.compile("^a1 promoted")]
    )
    won = {"id": "r2", "state": "finished", "outcome": "promoted", "message": "a1 replaced the base model"}
    past = {
        "run_id": "r2",
        "adapter_id": "a1",
        "outcome": "promoted",
        "finished_ms": 2,
        "message": won["message"],
    }
    await world.set_loop(last_run=won, history=[past], champion={"id": "a1", "since_ms": 2})
    await expect(panel).to_contain_text("a1 replaced the base model")
    await expect(panel).not_to_contain_text("It answers no more")
    await world.set_loop(champion={"id": None, "since_ms": 3})
    await expect(panel).to_contain_text("It answers no more")
    await act_as(page, "Ada")
    await expect(panel.get_by_role("button", name="Retrain now")).to_be_disabled()
    await expect(panel).to_contain_text("Only an operator retrains and rolls back")
    await act_as(page, "You")
    await expect(panel.get_by_role("button", name="Retrain now")).to_be_enabled()


async def test_the_sample_community_is_explained_before_it_is_loaded(page: Page, world: PageWorld) -> None:
    await page.get_by_role("button", name="Load sample community").click()
    await expect(page.get_by_role("dialog")).to_contain_text("labelled as simulated and never used outside")
    await page.get_by_role("button", name="Load it").click()
    await expect(page.locator(".toast")).to_contain_text("230 replies rated by 20 simulated members.")
    await expect(page.locator("#loop")).to_contain_text("31, needed: 25")


async def test_a_rehearsal_starts_with_a_taste_and_can_be_stopped(page: Page, world: PageWorld) -> None:
    await page.get_by_role("button", name="Rehearse…").click()
    await page.get_by_text("Plain words").click()
    await page.get_by_role("button", name="Start rehearsing").click()
    assert await called(world, "POST /rehearsal") == {"taste": "plain"}
    await expect(page.get_by_role("progressbar", name="Rehearsal")).to_have_attribute("value", "14")
    await page.get_by_role("button", name="Stop").click()
    await expect(page.locator(".rehearsal")).to_contain_text("What was rated stays rated.")


async def test_a_blind_vote_hides_whose_answer_is_whose_until_cast(page: Page, world: PageWorld) -> None:
    prompt = [{"role": "user", "content": "What should I cook?"}]
    world.duels = [{"id": "d1", "prompt": prompt, "first": "Lentils.", "second": "Things.", "votes": 0}]
    await world.set_loop(duels={"open": 1, "votes": 0, "needed": [21, 70]})
    card = page.get_by_role("region", name="Which answer is better?")
    await expect(card).to_contain_text("Lentils.")
    await expect(card).to_contain_text("21 to 70 decide in half of all cases")
    await expect(card.locator(".badge")).to_have_count(0)
    await card.get_by_role("button", name="A", exact=True).click()
    await expect(card.locator(".badge")).to_have_text(["challenger", "champion"])
    assert await called(world, "POST /duels/{id}/votes") == {"user_id": YOU, "choice": 1, "id": "d1"}
    await card.get_by_role("button", name="Done").click()
    await expect(card).to_be_hidden()


# ---------------------------------------------------------------------- trouble


async def test_a_lost_connection_is_said_and_healed(page: Page, world: PageWorld) -> None:
    await world.drop_connections()
    await expect(page.locator("#banner")).to_contain_text("The connection to the playground is lost.")
    world.message(ADA, "written while you were away")
    await page.get_by_role("button", name="Try now").click()
    await expect(page.locator("#banner")).to_be_hidden()
    await expect(last_message(page)).to_contain_text("written while you were away")


async def test_a_bot_that_is_away_is_said_where_one_writes(page: Page, world: PageWorld) -> None:
    await world.event("BOT_STATUS", {"online": False})
    await expect(page.locator("#composer-hint")).to_contain_text("Strop is not connected yet")
    await world.event("BOT_STATUS", {"online": True})
    await expect(page.locator("#composer-hint")).to_contain_text("Strop answers this")


# ---------------------------------------------------------------------- the real stand-in


class Barber(Recorder):
    """A small discord.py bot: it answers mentions by edits, has a command, and a button with a modal."""

    async def setup_hook(self) -> None:
        @self.tree.command(description="Repeat something, to you alone")
        async def repeat(interaction: discord.Interaction, words: str) -> None:
            await interaction.response.defer(ephemeral=True, thinking=True)
            await interaction.followup.send(f"You said: {words}", ephemeral=True)

        await self.tree.sync()

    async def on_message(self, message: discord.Message) -> None:
        if self.user not in message.mentions:
            return
        reply = await message.reply("A keen", view=Corrected())
        await reply.edit(content="A keen **edge**.")


class Corrected(discord.ui.View):
    @discord.ui.button(label="Correct")
    async def correct(self, interaction: discord.Interaction, _: discord.ui.Button["Corrected"]) -> None:
        await interaction.response.send_modal(Correction())


class Correction(discord.ui.Modal, title="Correct the reply"):
    better: discord.ui.TextInput["Correction"] = discord.ui.TextInput(label="A better reply")

    async def on_submit(self, interaction: discord.Interaction) -> None:
        await interaction.response.send_message(f"Thank you: {self.better.value}")


async def test_the_page_drives_a_real_discord_client_through_the_real_stand_in(
    window: BrowserContext,
) -> None:
    complaints: list[str] = []
    async with Playground(PlaygroundSettings()) as playground, connected(Barber(), playground):
        page = await open_page(window, playground.base_url, complaints)
        await composer(page).fill("what do you give a razor?")
        await page.keyboard.press("Enter")
        reply = page.locator(".message", has_text="A keen edge.")
        await expect(reply.locator("strong")).to_have_text("edge")
        await expect(reply.locator(".quote-text")).to_have_text("@Strop what do you give a razor?")
        like = reply.get_by_role("button", name=re.compile("^Like"))
        await like.click()
        await expect(like).to_have_attribute("aria-pressed", "true")
        await reply.get_by_role("button", name="Correct").click()
        await page.get_by_label("A better reply").fill("A finer edge.")
        await page.get_by_role("button", name="Submit").click()
        await expect(last_message(page)).to_contain_text("Thank you: A finer edge.")
        await composer(page).fill("/repeat")
        await page.keyboard.press("Enter")
        await page.keyboard.type("stroke by stroke")
        await page.keyboard.press("Enter")
        await expect(last_message(page)).to_contain_text("You said: stroke by stroke")
        await expect(last_message(page)).to_contain_text("Only you can see this")
        await page.close()
    assert not complaints


async def test_an_operators_picture_is_shown_in_place_with_its_words(
    window: BrowserContext, tmp_path: Path
) -> None:
    complaints: list[str] = []
    async with operating(tmp_path) as deck:
        await deck.liked_reply("hello", ADA_ID)
        page = await open_page(window, deck.playground.base_url, complaints)
        for command, words in (
            ("/stats", "1 liked, 0 disliked"),
            ("/status", "Liked or corrected: 1, needed: 25"),
        ):
            await composer(page).fill(command)
            await page.keyboard.press("Enter")
            await page.keyboard.press("Enter")
            await expect(last_message(page)).to_contain_text("Only you can see this")
            picture = last_message(page).get_by_role("img", name=words)
            await expect(picture).to_be_visible()
            assert await picture.evaluate("image => image.decode().then(() => image.naturalWidth)") == 1100
            await expect(page.locator(".jump")).to_be_hidden()
            assert 300 < (await picture.bounding_box() or {"width": 0})["width"] <= 550
        await last_message(page).locator(".picture").click()
        larger = page.get_by_role("dialog")
        await expect(larger.locator("p")).to_contain_text("Liked or corrected: 1, needed: 25")
        assert await larger.locator("img").evaluate("image => image.clientWidth") > 550
        await page.keyboard.press("Escape")
        await expect(larger).to_have_count(0)
        await page.close()
    assert not complaints


# ---------------------------------------------------------------------- other ways in


async def test_everything_that_matters_works_with_the_keyboard_alone(page: Page, world: PageWorld) -> None:
    await expect(composer(page)).to_be_focused()
    await page.keyboard.type("hello there")
    await page.keyboard.press("Enter")
    await expect(page.locator(".message", has_text="bake it yourself?")).to_be_visible()
    await page.keyboard.press("Shift+Tab")
    await page.keyboard.press("Shift+Tab")
    for _ in range(6):
        if await page.evaluate("document.activeElement.matches('.pill')"):
            break
        await page.keyboard.press("Shift+Tab")
    await page.keyboard.press("Space")
    await expect(last_message(page).locator(".pill[aria-pressed=true]")).to_have_count(1)
    await page.keyboard.press("Escape")
    await expect(composer(page)).to_be_focused()
    await page.keyboard.press("ArrowUp")
    await expect(composer(page)).to_have_value("@Strop hello there")
    await page.keyboard.press("Escape")
    await page.keyboard.type("/retrain")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("button", name="Run")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(last_message(page)).to_contain_text("/retrain was run")


async def test_on_a_phone_the_panels_are_drawers(browser: Browser, world: PageWorld) -> None:
    complaints: list[str] = []
    phone = {"width": 390, "height": 844}
    context = await browser.new_context(viewport=phone, has_touch=True, reduced_motion="reduce")
    page = await open_page(context, world.url, complaints)
    assert await page.evaluate("document.documentElement.scrollWidth") <= 390
    panel = page.locator("#loop")
    await expect(panel).not_to_be_in_viewport()
    await page.get_by_role("button", name="Show the loop panel").tap()
    await expect(panel.get_by_role("heading", name="Ratings")).to_be_in_viewport()
    await panel.get_by_role("button", name="Retrain now").tap()
    await expect(panel).not_to_be_in_viewport()
    await expect(last_message(page)).to_contain_text("/retrain was run")
    await page.get_by_role("button", name="Show channels and members").tap()
    await page.get_by_role("navigation").get_by_role("button", name="lab").tap()
    await expect(page.get_by_role("heading", name="lab", exact=True)).to_be_visible()
    await context.close()
    assert not complaints


async def test_no_module_parses_text_as_markup_and_no_style_or_script_is_inline() -> None:
    parsers = re.compile(r"(inner|outer)HTML|insertAdjacentHTML|document\.write")
    for path in (*PAGE_DIR.glob("*.js"), *SHARED.glob("*.js")):
        assert not parsers.search(path.read_text("utf-8")), path.name
    html = (PAGE_DIR / "index.html").read_text("utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)|https?:", html)
