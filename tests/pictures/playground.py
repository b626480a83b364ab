"""The pictures of the playground after a promotion, and of an answer with what its buttons show.

The run and the two answers are made up; the bot, the playground and its page are the product's own, and the
other ratings are the sample community's.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.async_api import Locator, Page, async_playwright, expect

from bot import charts
from bot.dashboard.loop_view import LoopSources
from bot.playground.discord import community
from bot.playground.server import Playground, PlaygroundLoop
from bot.playground.simulation import sample
from bot.playground.simulation.rehearsal import RehearsalSettings
from bot.services import Services
from bot.serving.client import ModelClient
from bot.serving.model import adapter_files
from storage.config import load_config
from storage.db import sql
from storage.db.database import Database
from storage.learning import adapters, evaluations, runs
from storage.learning.evaluations import ProcessFigures
from storage.sentences import Figure, Sentence
from tests.bot.fake_server import FakeModelServer
from tests.bot.playground.page.test_browser import CHROMIUM, FLAGS, act_as, composer
from tests.e2e.operating import GENERAL, Deck, signed_in, until
from tests.pictures.operators import IMAGES

WIDTH, HEIGHT, TALL, SCALE, MARGIN = 1440, 1186, 1800, 1.5, 28
# A dialog's rounded edge lies on what is behind it.
EDGE = 2
GAIN, LOW, HIGH, JUDGED = 0.14, 0.06, 0.22, 36
METRICS: dict[str, Any] = {
    "headline": {"value": GAIN, "low": LOW, "high": HIGH, "n": JUDGED},
    "evaluation": {"same_replies": 0.03},
    "data": {
        "train": {"liked": 21, "disliked": 105, "corrections": 5},
        "development": {"liked": 4, "disliked": 12},
        "gate": {"liked": 8, "disliked": 28},
        "raters": 20,
    },
    "guardrails": [{"name": f"limit {n}", "value": 0.0, "limit": 0.1, "kept": True} for n in range(13)],
    "training": {"objective": "sft_ranked"},
}
ASKED, ANSWER = (
    "How do I make a cup of tea?",
    "Boil fresh water, pour it over the leaves and wait three minutes. Milk or lemon?",
)
THEN_ASKED = "Tell me about the moon."
DRAFTS = (
    "The moon is a beautiful planet of our solar system.",
    "The moon goes around the earth in 27 days, and we always see the same side of it.",
)
BETTER = "It is about 384,000 km away, and its pull makes the tides. Are you watching it tonight?"


async def take() -> None:
    """Write the pictures."""
    async with playground() as deck, async_playwright() as playwright:
        fonts = _fonts(deck.services.config.home)
        await _promote(deck)
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, env=fonts)
        page = await browser.new_page(
            viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="dark", device_scale_factor=SCALE
        )
        await page.goto(deck.playground.base_url)
        await _picture_playground(deck, page)
        await _picture_reply(deck, page)
        await browser.close()


@asynccontextmanager
async def playground() -> AsyncIterator[Deck]:
    """The playground with its loop and the bot, beside a model server whose answers are given."""
    async with AsyncExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (home / "strop.toml").write_text("[gate]\nholdback_share = 0.0\n")
        config = load_config(home / "strop.toml", {"STROP_HOME": str(home)})
        server = FakeModelServer()
        server.base_hash = sample.read_sample()["base"]["hash"]
        server.pause_s = 0.03
        await server.start()
        stack.push_async_callback(server.stop)
        database = stack.enter_context(Database.open(home / "strop.db"))
        model = await stack.enter_async_context(ModelClient(server.base_url))
        services = Services(config, database, model, playground=True)
        sources = LoopSources(
            database,
            model,
            services.scope(community.GUILD_ID),
            lambda: True,
            config.trainer.min_liked,
            config.trainer.min_raters,
            config.gate.min_votes,
            config.trainer.min_new_ratings,
        )
        world = Playground(loop=PlaygroundLoop(sources, RehearsalSettings(), reply_buttons=True))
        await stack.enter_async_context(world)
        bot = await stack.enter_async_context(signed_in(services, world))
        yield Deck(world, services, server, bot)


def _fonts(folder: Path) -> dict[str, str]:
    """Return the environment of a browser that has the charts' fonts beside the system's.

    Raises SystemExit where no font has coloured emoji.
    """
    configured = folder / "fonts.conf"
    configured.write_text(
        "<fontconfig><include>/etc/fonts/fonts.conf</include>"
        f"<dir>{Path(charts.__file__).parent / 'fonts'}</dir></fontconfig>"
    )
    environment = {**os.environ, "FONTCONFIG_FILE": str(configured)}
    listed = subprocess.run(["fc-list"], env=environment, capture_output=True, text=True, check=True).stdout
    if "Emoji" not in listed:
        raise SystemExit("The pictures need a font with emoji: apt install fonts-noto-color-emoji")
    return environment


async def _promote(deck: Deck) -> None:
    """Load the sample community, ask for a run and let its adapter be promoted."""
    await until(lambda: deck.bot.guilds)
    base_hash = deck.model.base_hash
    sample.load_sample(deck.database, base_hash, deck.scope, community.GUILD_ID, GENERAL)
    deck.command("retrain")
    await until(lambda: deck.database.read(lambda db: runs.latest(db, deck.scope, 1)))
    run_id = deck.take()
    adapter_id = _adapter(deck.services.config.adapters, base_hash)
    deck.model.adapters.append(adapter_id)
    deck.database.write(lambda db: _end(db, deck.scope, base_hash, run_id, adapter_id))
    await until(lambda: any("replaced" in message["content"] for message in deck.said()))


def _adapter(folder: Path, base_hash: str) -> str:
    """Write an adapter's files, whose weights are only bytes, and return its id: the hash of its files."""
    new = folder / "new"
    new.mkdir(parents=True)
    (new / adapter_files.CONFIG).write_text('{"r": 16}')
    (new / adapter_files.WEIGHTS).write_bytes(b"weights")
    adapter_id = adapter_files.write_manifest(new, base_hash=base_hash, chat_template_hash="c" * 64, extra={})
    new.rename(folder / adapter_id)
    return adapter_id


def _end(db: Any, scope: str, base_hash: str, run_id: str, adapter_id: str) -> None:
    where = {"scope": scope, "base_hash": base_hash, "adapter_id": adapter_id}
    adapters.ensure_champion_row(db, scope, base_hash)
    adapters.insert_candidate(db, path=f"adapters/{adapter_id}", run_id=run_id, rehearsal=True, **where)
    labels = ["liked"] * 21 + ["disliked"] * 105 + ["corrected"] * 5
    replies = sql.many(db, "SELECT id FROM replies ORDER BY id LIMIT ?", (len(labels),))
    for reply, label in zip(replies, labels, strict=False):
        row = {"run_id": run_id, "reply_id": reply["id"], "split": "train", "label": label, "weight": 1.0}
        sql.insert(db, "run_rows", row)
    adapters.promote(db, actor="trainer", reason="the gate", **where)
    about = {"run_id": run_id, "adapter_id": adapter_id, "champion_id": None}
    evaluations.add(db, metric="margin", value=0.14, low=0.02, high=0.28, n=JUDGED, **about)
    evaluations.add(db, metric="general_nll_increase", value=-0.01, **about)
    message = Sentence(
        "adapter {adapter} replaced the base model: {gain} (95 % CI {low} to {high}) on {count} held-out "
        "conversations",
        adapter=adapter_id,
        gain=Figure(GAIN, "+.2f"),
        low=Figure(LOW, ".2f"),
        high=Figure(HIGH, ".2f"),
        count=JUDGED,
    )
    runs.finish(db, run_id, outcome="promoted", message=message, metrics=METRICS, adapter_id=adapter_id)
    evaluations.record_process(db, run_id, ProcessFigures(290.0, 540.0, 2_100_000_000, None, None))


async def _picture_playground(deck: Deck, page: Page) -> None:
    """Ask something that three members like the answer of, below the run's card."""
    deck.model.answer = ANSWER
    answer = await _ask(page, "Ada", ASKED)
    message_id = int(deck.said()[-1]["id"])
    for person in [each for each in community.PEOPLE if not each.simulated][:3]:
        deck.playground.backend.set_reaction(GENERAL, message_id, person.user_id, "👍", reacted=True)
    await expect(answer.get_by_role("button", name=re.compile("3 so far"))).to_be_visible()
    await act_as(page, community.OWNER.display_name)
    _save(_image(await page.screenshot()), "playground.png")


async def _picture_reply(deck: Deck, page: Page) -> None:
    """Write an answer again, say where it came from, and give a better one."""
    await page.set_viewport_size({"width": WIDTH, "height": TALL})
    deck.model.answer = DRAFTS[0]
    answer = await _ask(page, "Ada", THEN_ASKED)
    deck.model.answer = DRAFTS[1]
    await answer.get_by_role("button", name="Write it again").click()
    answer = page.locator(".message", has_text=DRAFTS[1]).last
    await answer.get_by_role("button", name="Why this reply?").click()
    await expect(page.locator(".message").last).to_contain_text("wrote this")
    await answer.get_by_role("button", name="Write a better answer").click()
    form = page.get_by_role("dialog")
    await form.get_by_role("textbox").fill(BETTER)
    await form.get_by_role("textbox").blur()
    shown_form = _image(await form.screenshot(style=".message { visibility: hidden }"))
    width, height = shown_form.size
    shown_form = shown_form.crop((EDGE, EDGE, width - EDGE, height - EDGE))
    await form.get_by_role("button", name="Submit").click()
    await expect(page.locator(".message").last).to_contain_text("I keep this as the better answer")
    asked = page.locator(".message", has_text=THEN_ASKED).first
    shown_chat = _image(await page.screenshot(clip=await _from_to(asked, page.locator(".message").last)))
    _save(_beside(shown_chat, shown_form), "reply.png")


async def _ask(page: Page, member: str, text: str) -> Locator:
    """Ask as a member, and return the answer once it is whole."""
    await act_as(page, member)
    await composer(page).fill(text)
    await page.keyboard.press("Enter")
    answer = page.locator(".message", has=page.locator(".quote-text", has_text=text)).last
    await expect(answer.get_by_role("button", name="Write it again")).to_be_visible()
    return answer


async def _from_to(first: Locator, last: Locator) -> Any:
    top, bottom = await first.bounding_box(), await last.bounding_box()
    assert top and bottom
    return {**top, "height": bottom["y"] + bottom["height"] - top["y"]}


def _image(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png)).convert("RGB")


def _save(image: Image.Image, name: str) -> None:
    """Write a picture in 256 colours, a third of its size otherwise."""
    image.quantize(256, dither=Image.Dither.NONE).save(IMAGES / name, optimize=True)


def _beside(left: Image.Image, right: Image.Image) -> Image.Image:
    """Put two pictures side by side, on the colour of the left one's corner."""
    size = (left.width + right.width + 3 * MARGIN, max(left.height, right.height) + 2 * MARGIN)
    whole = Image.new("RGB", size, left.getpixel((0, 0)))
    whole.paste(left, (MARGIN, MARGIN))
    whole.paste(right, (left.width + 2 * MARGIN, (size[1] - right.height) // 2))
    return whole
