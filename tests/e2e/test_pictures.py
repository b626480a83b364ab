"""/stats, /status and /adapters over the playground's real REST and gateway, with a restart between."""

from __future__ import annotations

import io
from pathlib import Path

import aiohttp
from PIL import Image

from bot.learning.run_progress import ProgressReporter
from storage.db import sql
from storage.learning import adapters
from tests.bot.fake_server import BASE_HASH
from tests.e2e.operating import ADA, GENERAL, YOU, Deck, Payload, operating, signed_in, until


async def picture_of(answer: Payload) -> Image.Image:
    """Fetch the one picture of a message as the page does."""
    (file,) = answer["attachments"]
    async with aiohttp.ClientSession() as http, http.get(file["url"]) as response:
        assert (response.status, response.content_type) == (200, "image/png")
        drawn = Image.open(io.BytesIO(await response.read()))
    assert drawn.size == (file["width"], file["height"])
    return drawn


def promoted(deck: Deck, adapter_id: str) -> None:
    def work(db: object) -> None:
        where = {"scope": deck.scope, "base_hash": BASE_HASH, "adapter_id": adapter_id}
        adapters.insert_candidate(db, path=f"adapters/{adapter_id}", **where)
        adapters.promote(db, actor="trainer", reason="better", **where)

    deck.database.write(work)


async def test_stats_and_status_answer_one_member_with_a_picture_and_its_words(tmp_path: Path) -> None:
    async with operating(tmp_path, "[trainer]\nmin_liked = 4\nmin_raters = 2\n") as deck:
        await deck.liked_reply("hello", ADA)
        promoted(deck, "a1")
        deck.command("stats", ADA)
        answer = await deck.told("**Ratings a day**")
        assert answer["visible_to"] == str(ADA)
        (file,) = answer["attachments"]
        assert file["description"].startswith("Ratings of the last 14 days: 1 liked, 0 disliked.")
        assert str(ADA) not in str(file["description"]) + answer["content"]
        assert (await picture_of(answer)).width == 1100

        deck.command("status", ADA)
        answer = await deck.told("The only reply in 24 hours")
        (file,) = answer["attachments"]
        assert (
            "Liked or corrected: 1, needed: 4. Raters: 1, needed: 2. New ratings: 1, needed: 50."
            in file["description"]
        )
        await picture_of(answer)


async def test_the_history_of_adapters_turns_its_pages_after_a_restart(tmp_path: Path) -> None:
    names = [f"a{number}" for number in range(6)]
    async with operating(tmp_path) as deck:
        await until(lambda: deck.bot.guilds)
        for age, name in enumerate(names):
            promoted(deck, name)
            made = (age * 1000, name)
            deck.database.write(
                lambda db, made=made: sql.change(db, "UPDATE adapters SET created_ms = ? WHERE id = ?", made)
            )
        deck.command("adapters", ADA)
        first = await deck.told("Adapter `a5` answers. Page 1 of 2.")
        assert (
            "▶ `a5` promoted" in first["content"]
            and "-# Promoted by itself in place of `a4`" in first["content"]
        )
        await deck.bot.feature(ProgressReporter).stop()
        await deck.bot.close()
        async with signed_in(deck.services, deck.playground) as bot:
            deck.bot = bot
            await until(lambda: bot.guilds)
            deck.press(first, "1", ADA)
            second = await deck.told("Page 2 of 2.")
            assert "`a1` retired" in second["content"] and "; replaced by `a2`" in second["content"]
            assert second["id"] == first["id"]
            deck.press(second, "0", ADA)
            await until(lambda: deck.private()[-1]["content"] == first["content"])


async def test_operators_choose_from_what_may_answer_and_from_what_answered(tmp_path: Path) -> None:
    async with operating(tmp_path) as deck:
        await until(lambda: deck.bot.guilds)
        for name in ("a1", "a2"):
            promoted(deck, name)
        backend = deck.playground.backend
        offered = {
            command: await backend.autocomplete(
                GENERAL, YOU, command, subcommand="", option="adapter", value=""
            )
            for command in ("promote", "rollback")
        }
        assert [choice["value"] for choice in offered["promote"]] == ["a1", "base"]
        assert [choice["value"] for choice in offered["rollback"]] == ["a1", "base"]
        deck.command("rollback", YOU, adapter="base")
        await deck.told("Rolled back: the base model answers again.")
        assert deck.champion() is None
