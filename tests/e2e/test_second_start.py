"""A deployment is stopped and started in the middle of everything: nothing that was learned is lost."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from storage.config_sections import LOOPING_PENALTY
from tests.e2e.deployment import Deployment, deployed, until
from tests.e2e.test_whole_loop import ANY_PORTS, BY_HAND, rated, said_in_channel

# A tiny random model learns nothing good: here a restart is on trial, not the gate. By ten prompts it doesn't
# say whether answers are beside the point.
SETTINGS = """min_liked = 3
min_raters = 1
epochs = 1
objective = "sft"
[model]
base = "{base}"
[chat]
max_new_tokens = 16
[gate]
policy = "canary-first"
canary_share = 0.5
holdback_share = 0.0
max_general_nll_increase = 100.0
max_kl = 100.0
max_prompts = 10
"""
# What has to be the same after a restart, row by row. Messages and replies may only grow.
KEPT = (
    "select id, scope, state, outcome, message, adapter_id, report_channel_id, report_message_id from runs",
    "select id, scope, base_hash, state, path from adapters",
    "select scope, base_hash, adapter_id, promotion_id from champions",
    "select id, kind, scope, newcomer_id, share, ended_ms, outcome from trials",
    "select id, run_id, first_is_challenger, closed_ms from duels",
    "select duel_id, user_id, choice from duel_votes",
    "select reply_id, user_id, kind, value, retracted from ratings",
    "select guild_id, channel_id, key, value_json from settings",
    "select id, content from messages",
    "select reply_id, discord_id from reply_parts",
)

ASKED = "select discord_id, content from messages where role = 'user' and discord_id > 0"


def stored(strop: Deployment) -> dict[str, list[dict[str, Any]]]:
    """Everything that a restart must keep."""
    return {query: strop.query(query) for query in KEPT}


async def restarted_unchanged(strop: Deployment, times: int = 1) -> None:
    before = stored(strop)
    for _ in range(times):
        await strop.restart()
        # By then the trainer has looked after the runs and adapters that it found, and loaded those in use.
        await until(lambda: strop.logged("The model server is ready."), "the trainer's checks", strop)
        assert stored(strop) == before
        seen = {int(each["id"]): each["content"] for each in strop.snapshot["messages"][strop.channel]}
        # The mention before a question isn't stored, and is there again all the same.
        asked = {row["discord_id"]: f"<@{strop.bot['id']}> {row['content']}" for row in strop.query(ASKED)}
        assert asked and asked.items() <= seen.items()


async def told(strop: Deployment, outcome: str) -> None:
    """Wait until the run has come out so and its message says it."""
    said = "select 1 from runs where outcome = ? and report_outcome = outcome"
    await until(lambda: strop.query(said, outcome), f"the message of {outcome}", strop)


def champion(strop: Deployment) -> str | None:
    rows = strop.query("select adapter_id from champions")
    return rows[0]["adapter_id"] if rows else None


async def test_the_first_hour_and_every_restart_in_it_keep_what_was_learned_until_it_is_erased(
    tmp_path: Path, tiny_source: Path
) -> None:
    """Ratings, /retrain, verdict, answers, promotion, /rollback and erasure, with restarts between."""
    async with deployed(tmp_path, ANY_PORTS + BY_HAND + SETTINGS.format(base=tiny_source)) as strop:
        for number in range(8):
            reply = await strop.ask(f"question number {number}")
            await rated(strop, "👍", "PUT", (1, 0))
        # A small base is penalised for repetition without anybody asking for it.
        assert json.loads(reply["sampling_json"])["repetition_penalty"] == LOOPING_PENALTY
        done = await asyncio.to_thread(strop.run_strop, "settings", "set", "temperature", "0.4")
        assert done.returncode == 0, done.stderr
        await strop.command("retrain")
        judged = "select * from runs where outcome is not null"
        (run,) = await until(lambda: strop.query(judged), "the run to be judged", strop)
        assert run["outcome"] == "votes", run["message"]
        assert strop.query("select 1 from trials where ended_ms is null"), "no canary is on"
        await told(strop, "votes")
        strop.events.clear()
        await restarted_unchanged(strop, times=2)
        # The verdict and the pairs to vote on are in the chat again.
        await until(lambda: "The pairs are below" in said_in_channel(strop), "the verdict again", strop)
        await until(
            lambda: "Which answer do you like better?" in said_in_channel(strop), "a pair again", strop
        )

        challenger = run["adapter_id"]
        done = await asyncio.to_thread(strop.run_strop, "promote", challenger)
        assert done.returncode == 0, done.stderr
        assert (await strop.ask("who answers?"))["adapter_id"] == challenger
        # The trainer ends the vote that the promotion made needless.
        await told(strop, "promoted")
        await restarted_unchanged(strop)
        assert (await strop.ask("and who now?"))["adapter_id"] == challenger

        await strop.command("rollback")
        await until(lambda: champion(strop) is None, "the roll-back", strop)
        await restarted_unchanged(strop)
        assert (await strop.ask("and now?"))["adapter_id"] is None

        done = await asyncio.to_thread(strop.run_strop, "privacy", "erase", strop.owner["id"], "--yes")
        assert done.returncode == 0, done.stderr
        await strop.restart()
        assert all(row["content"] == "" for row in strop.query(ASKED))
        assert strop.query("select state from adapters where id = ?", challenger) == [{"state": "tainted"}]
        assert (await strop.ask("who is there?"))["adapter_id"] is None
