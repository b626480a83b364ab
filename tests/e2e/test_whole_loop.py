"""The whole loop in real processes over real sockets: chat, rate, retrain, judge, swap, roll back, refuse."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.deployment import Deployment, deployed, until

ENDED = ("finished", "failed", "cancelled")
ANY_PORTS = "[server]\nport = 0\n[playground]\nport = 0\n"
# No trainer steps back here: on a busy machine the tests would wait for it for ever.
BY_HAND = "[trainer]\nmin_new_ratings = 0\ninterval_hours = 0.0\nnice = 0\n"
TRIAL = BY_HAND + "min_liked = 3\nmin_raters = 1\nepochs = 1\n"


# Little of the work that the defaults take, and enough for a promotion by a clear margin: the chance of a
# like rises by 0.33 (95 % CI 0.14 to 0.53) at full strength. No clock shortens the training: how much it
# learns, and with it the verdict, does not hang on how busy the machine is. The held-out conversations are
# all asked once. Answers of 24 tokens are too short to tell which of them are beside the point.
BRIEF = """epochs = 1
ranked_rounds = 1
ranked_replies = 96
max_train_minutes = 60.0
[chat]
max_new_tokens = 32
[gate]
max_new_tokens = 32
max_prompts = 24
generation_minutes = 60.0
"""
DEFAULTS = "[gate]\n"


async def finished_run(deployment: Deployment) -> dict[str, Any]:
    """The newest run once it has ended, blind votes included."""

    def ended() -> dict[str, Any] | None:
        rows = deployment.query("select * from runs order by created_ms desc limit 1")
        over = rows and rows[0]["state"] in ENDED and rows[0]["outcome"] != "votes"
        return rows[0] if over else None

    return await until(ended, "the run to end", deployment)


async def rated(deployment: Deployment, emoji: str, method: str, expected: tuple[int, int]) -> None:
    """React to (or un-react from) the newest reply and wait until the rating row says so."""
    part = deployment.query("select * from reply_parts order by discord_id desc limit 1")[0]
    reaction = {
        "channel_id": str(part["channel_id"]),
        "message_id": str(part["discord_id"]),
        "user_id": deployment.owner["id"],
        "emoji": emoji,
    }
    await deployment.call(method, "/playground/reactions", reaction)

    def stored() -> bool:
        rows = deployment.query("select value, retracted from ratings order by id desc limit 1")
        return bool(rows) and (rows[0]["value"], rows[0]["retracted"]) == expected

    await until(stored, f"the rating {expected}", deployment)


@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    "work", [BRIEF, pytest.param(DEFAULTS, marks=pytest.mark.torture)], ids=["brief", "defaults"]
)
async def test_a_newcomer_chats_rates_retrains_rolls_back_and_erases(
    tmp_path: Path, bundled_models: Path, work: str
) -> None:
    # Without a holdback the very next conversation is the winner's for certain.
    settings = ANY_PORTS + BY_HAND + work + "holdback_share = 0.0\n"
    async with deployed(tmp_path, settings, models=bundled_models) as strop:
        reply = await strop.ask("Tell me a very long story about a ship, please.")
        assert reply["status"] == "complete"
        assert reply["adapter_id"] is None
        assert reply["completion_tokens"] > 0
        edits = {e["data"].get("content") for e in strop.events if e["event"] == "MESSAGE_UPDATE"}
        # A fast machine is done before the second edit is due.
        due = 2 if reply["duration_ms"] > 3_000 else 1
        assert len(edits) >= due, "the reply was not streamed"

        await rated(strop, "👍", "PUT", (1, 0))
        await rated(strop, "👍", "DELETE", (1, 1))
        await rated(strop, "👎", "PUT", (-1, 0))

        await strop.call("POST", "/playground/sample")
        counts = (await strop.get("/playground/loop"))["ratings"]
        assert counts["liked"] >= 25
        assert counts["raters"] >= 5

        await strop.command("retrain")
        await until(lambda: strop.query("select id from runs"), "the run to be queued", strop)
        training = "select 1 from runs where phase = 'train' and progress > 0.2"
        await until(lambda: strop.query(training), "the training to be under way", strop)
        await strop.restart()
        run = await finished_run_with_votes(strop)
        assert run["outcome"] == "promoted", run["message"]
        assert "replaced" in run["message"]
        assert "95 % CI" in run["message"] or "votes" in run["message"]
        await until(lambda: run["message"] in said_in_channel(strop), "the outcome in the channel", strop)

        answer = await strop.ask("What should I cook tonight?")
        assert answer["adapter_id"] == run["adapter_id"]
        await strop.restart()
        answer = await strop.ask("And for dessert?")
        assert answer["adapter_id"] == run["adapter_id"]

        await strop.command("rollback")
        rolled_back = "select 1 from promotions where kind = 'rollback'"
        await until(lambda: strop.query(rolled_back), "the rollback", strop)
        await strop.restart()
        assert (await strop.ask("And tomorrow?"))["adapter_id"] is None

        await strop.command("promote", {"adapter": run["adapter_id"]})
        again = "select 1 from champions where adapter_id is not null"
        await until(lambda: strop.query(again), "the promotion", strop)

        # What it was trained on takes it along: the owner's words and ratings are in it.
        done = await asyncio.to_thread(strop.run_strop, "privacy", "erase", strop.owner["id"], "--yes")
        assert done.returncode == 0, done.stderr
        await strop.restart()
        erased = "select state from adapters where id = ?"
        assert strop.query(erased, run["adapter_id"]) == [{"state": "tainted"}]
        assert (await strop.ask("Who is there?"))["adapter_id"] is None


async def finished_run_with_votes(strop: Deployment) -> dict[str, Any]:
    """Wait for the run; where it asks for blind votes, let the simulated members vote for the challenger."""

    def judged() -> dict[str, Any] | None:
        rows = strop.query("select * from runs order by created_ms desc limit 1")
        return rows[0] if rows and rows[0]["state"] in ENDED else None

    run = await until(judged, "the run to be judged", strop)
    if run["outcome"] == "votes":
        await vote(strop, for_challenger=True)
    return await finished_run(strop)


async def vote(strop: Deployment, *, for_challenger: bool) -> None:
    """Thin evidence is put to the members; here all of them prefer the same model, unnamed as it is."""
    pairs = strop.query("select id, first_is_challenger from duels")
    assert len(pairs) > 1, "votes are asked for, but there is too little to vote on"
    # Ten are the least that decide: once the run is settled a further vote would be refused.
    members = [member for member in strop.snapshot["members"] if not member["bot"]][:5]
    for pair in pairs[:2]:
        for member in members:
            choice = 1 if bool(pair["first_is_challenger"]) is for_challenger else -1
            await strop.call(
                "POST", f"/playground/duels/{pair['id']}/votes", {"user_id": member["id"], "choice": choice}
            )


def said_in_channel(strop: Deployment) -> str:
    """Everything the bot's messages said, edits included."""
    contents = [e["data"].get("content") or "" for e in strop.events if e["event"].startswith("MESSAGE_")]
    return "\n".join(contents)


async def test_a_challenger_that_learned_nothing_is_refused_and_the_champion_stays(
    tmp_path: Path, tiny_source: Path
) -> None:
    model = f'[model]\nbase = "{tiny_source}"\n[gate]\nmin_effect = 0.9\n[chat]\nmax_new_tokens = 16\n'
    async with deployed(tmp_path, ANY_PORTS + TRIAL + model) as strop:
        for number in range(12):
            await strop.ask(f"question number {number}")
            liked = bool(number % 2)
            await rated(strop, "👍" if liked else "👎", "PUT", (1 if liked else -1, 0))
        done = await asyncio.to_thread(strop.run_strop, "retrain", "--wait", "--json", timeout_s=300)
        assert done.returncode == 0, done.stderr
        if strop.query("select outcome from runs")[0]["outcome"] == "votes":
            await vote(strop, for_challenger=False)
        run = await finished_run(strop)
        assert run["outcome"] == "refused", run["message"]
        assert "was not promoted, because" in run["message"]
        assert strop.query("select adapter_id from champions") in ([], [{"adapter_id": None}])
        assert (await strop.ask("still there?"))["adapter_id"] is None
