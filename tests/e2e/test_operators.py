"""What operators do, over the playground's real sockets: REST, gateway, model server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yarl
from discord.gateway import DiscordWebSocket
from discord.http import Route

from bot.admin.records import PAGE
from bot.learning.run_buttons import STALE
from bot.learning.run_progress import ProgressReporter
from bot.operators import NOT_OPERATOR
from storage.admin import audit
from storage.learning import adapters, runs
from tests.bot.adapter_files import FIRST, SECOND
from tests.bot.fake_server import BASE_HASH
from tests.e2e.operating import ADA, MEMBERS_PROMPT, YOU, Deck, Payload, buttons, operating, signed_in, until


@pytest.fixture(autouse=True)
def real_addresses_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Route, "BASE", Route.BASE)
    monkeypatch.setattr(DiscordWebSocket, "DEFAULT_GATEWAY", yarl.URL(DiscordWebSocket.DEFAULT_GATEWAY))


async def decided(deck: Deck, adapter_id: str) -> Payload:
    """Queue a run by command, end it with an adapter that waits for a word, and return its card."""
    await until(lambda: deck.bot.is_ready() and deck.bot.guilds)
    deck.command("retrain")
    await until(lambda: deck.database.read(lambda db: runs.active(db, deck.scope)))
    deck.judge(deck.take(), adapter_id, "refused")
    return await card_of(deck, adapter_id)


async def card_of(deck: Deck, adapter_id: str) -> Payload:
    return await until(lambda: next((m for m in deck.said() if adapter_id in _title(m)), None))


def _title(message: Payload) -> str:
    return str(message["embeds"][0]["title"]) if message.get("embeds") else ""


def _fields(message: Payload) -> dict[str, str]:
    return {field["name"]: field["value"] for field in message["embeds"][0]["fields"]}


async def test_the_card_shows_the_measurement_and_its_buttons_decide(tmp_path: Path) -> None:
    async with operating(tmp_path) as deck:
        card = await decided(deck, FIRST)
        fields = _fields(card)
        assert fields["Score"] == (
            "Gain in the chance of a like: +0.12 (95 % interval +0.05 to +0.19) against the base model, "
            "on 32 held-out conversations and 8 general prompts"
        )
        assert (
            "than disliked ones (nats per token): +0.30 (interval +0.10 to +0.50)" in fields["Also measured"]
        )
        assert fields["Regressions"] == "empty replies: 0.20, at most 0.05 allowed"
        assert "replies liked 30, disliked 12, corrected 2, by 7 raters" in fields["Data used"]
        assert fields["Left out"].startswith("4: somebody in its context has not opted in")
        assert fields["Sample 1"].splitlines()[0] == "> Say hello." and "Sample 2" not in fields
        assert MEMBERS_PROMPT not in str(card)
        assert buttons(card) == {"promote": True, "reject": True, "rollback": False, "compare": True}

        deck.press(card, "promote", ADA)
        await deck.told(NOT_OPERATOR)
        assert deck.champion() is None
        deck.press(card, "compare")
        await deck.told(MEMBERS_PROMPT)
        deck.press(card, "promote")
        await deck.told(f"adapter `{FIRST}` answers, not the base model")
        assert deck.champion() == FIRST and deck.model.adapters == [FIRST]
        card = await until(lambda: _with_rollback(deck))
        deck.press(card, "rollback")
        await deck.told("the base model answers again")
        assert deck.champion() is None
        await until(lambda: not any(buttons(deck.said()[-1])[each] for each in ("promote", "rollback")))
        (promoted, *_) = deck.database.read(lambda db: adapters.promotions(db, deck.scope, BASE_HASH))[1:]
        assert promoted.run_id is not None


def _buttons(deck: Deck, message: Payload) -> dict[str, bool]:
    """A message's buttons as they are now."""
    return buttons(next(each for each in deck.said() if each["id"] == message["id"]))


def _with_rollback(deck: Deck) -> Payload | None:
    message = deck.said()[-1]
    return message if buttons(message).get("rollback") else None


async def test_a_card_decides_after_a_restart_and_says_when_it_is_too_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with operating(tmp_path) as deck:
        old = await decided(deck, FIRST)
        newer = await decided(deck, SECOND)
        await deck.bot.feature(ProgressReporter).stop()
        await deck.bot.close()
        # Cards that nobody presses stay as they are, so that what they still offer can be pressed.
        monkeypatch.setattr("bot.learning.run_progress.POLL_S", 3600.0)
        async with signed_in(deck.services, deck.playground) as bot:
            deck.bot = bot
            await until(lambda: bot.guilds)
            deck.press(newer, "promote")
            await deck.told(f"adapter `{SECOND}` answers, not the base model")
            deck.press(old, "promote")
            await deck.told(STALE)
            await until(lambda: not _buttons(deck, old)["promote"] and not _buttons(deck, old)["rollback"])
            deck.press(old, "reject")
            await deck.told(f"`{FIRST}` is rejected")
            await until(lambda: not _buttons(deck, old)["reject"])
            assert deck.champion() == SECOND
            actions = [entry.action for entry in deck.database.read(audit.latest)]
            assert actions.count("champion.promote") == 1 and actions.count("adapter.reject") == 1


async def test_a_tainted_adapter_is_not_promoted_and_its_samples_are_gone(tmp_path: Path) -> None:
    async with operating(tmp_path) as deck:
        card = await decided(deck, FIRST)
        deck.database.write(lambda db: adapters.set_state(db, FIRST, "tainted"))
        deck.press(card, "promote")
        await deck.told("can't be promoted")
        assert deck.champion() is None and deck.model.adapters == []
        await until(lambda: not any(buttons(deck.said()[-1])[each] for each in ("promote", "reject")))


async def test_an_operator_cancels_a_run_from_its_message(tmp_path: Path) -> None:
    async with operating(tmp_path) as deck:
        await until(lambda: deck.bot.guilds)
        deck.command("retrain")
        message = await until(lambda: next((m for m in deck.said() if m["components"]), None))
        deck.press(message, "cancel", ADA)
        await deck.told(NOT_OPERATOR)
        deck.press(message, "cancel")
        await deck.told("is cancelled")
        assert deck.database.read(lambda db: runs.active(db, deck.scope)) is None
        await until(lambda: not deck.said()[-1]["components"] and "cancelled" in deck.said()[-1]["content"])


async def test_retrain_takes_settings_of_its_own_and_a_dry_run_changes_nothing(tmp_path: Path) -> None:
    async with operating(tmp_path, "[trainer]\nmin_liked = 1\nmin_raters = 1\n") as deck:
        deck.command("retrain", ADA, dry_run=True)
        await deck.told(NOT_OPERATOR)
        deck.command("retrain", dry_run=True)
        answer = await deck.told("**Dry run**")
        assert "too few ratings" in answer["content"] and "Left out: nothing" in answer["content"]

        await deck.liked_reply("hello", ADA)
        deck.command("retrain", dry_run=True)
        answer = await deck.told("Used: 1 rated replies")
        assert "Liked or corrected: 1 (needs 1); raters: 1 (needs 1)" in answer["content"]
        assert deck.database.read(lambda db: runs.latest(db, deck.scope)) == []

        deck.command("retrain", objective="sft", epochs=2)
        await deck.told("is queued with objective sft, epochs 2")
        (run,) = deck.database.read(lambda db: runs.latest(db, deck.scope))
        assert run.settings == {"trainer": {"objective": "sft", "epochs": 2}}
        deck.command("retrain", epochs=3)
        await deck.told("Your options were not used.")


async def test_the_data_set_is_exported_as_a_file_and_the_audit_log_says_so(tmp_path: Path) -> None:
    async with operating(tmp_path) as deck:
        deck.command("export", ADA)
        await deck.told(NOT_OPERATOR)
        deck.command("export")
        await deck.told("There is nothing to export.")
        await deck.liked_reply("hello", ADA)
        deck.command("export")
        answer = await deck.told("1 lines from 1 rated replies.")
        (line,) = [json.loads(line) for line in (await deck.download(answer)).splitlines()]
        assert [message["content"] for message in line["messages"][-2:]] == ["hello", "Hello there, friend."]
        assert line["liked"] == 1 and str(ADA) not in json.dumps(line)
        deck.command("export", format="kto")
        await until(lambda: sum("1 lines from" in d.get("content", "") for d in deck.private()) >= 2)

        for _ in range(PAGE):
            deck.database.write(lambda db: audit.record(db, "cli:ann", "run.enqueue", {"run_id": "r1"}))
        deck.command("audit")
        page = await deck.told("cli:ann **run.enqueue** `run_id=r1`")
        assert page["content"].count("\n") == PAGE - 1 and "dataset.export" not in page["content"]
        (older,) = buttons(page)
        deck.press(page, older)
        answer = await deck.told("**dataset.export**")
        assert f"<@{YOU}> **dataset.export**" in answer["content"] and "lines=1" in answer["content"]
        deck.press(answer, "0")
        await until(lambda: deck.private()[-1]["content"] == page["content"])


async def test_setup_finds_the_playground_in_order(tmp_path: Path) -> None:
    async with operating(tmp_path) as deck:
        await until(lambda: deck.bot.guilds)
        deck.command("setup")
        await deck.told("✅ Everything is in place. I answer mentions and replies in 3 channels")
