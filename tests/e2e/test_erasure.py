"""A member erases their data from a deployment of real processes: afterwards no file holds a word of theirs.

Each place that words can get to has a canary of its own, so that a failure says where they came from.
"""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

from storage.admin import blocks
from storage.db.database import Database
from tests.e2e.deployment import Deployment, deployed, until
from tests.e2e.test_whole_loop import ANY_PORTS, TRIAL

CANARIES = ("cnry-asked", "cnry-file", "cnry-corrected", "cnry-edited", "cnry-blocked", "cnry-deleted")


def holders(home: Path) -> dict[str, set[str]]:
    """Which file below a home (the database's companions and the logs included) holds which canary."""
    found: dict[str, set[str]] = {}
    for file in home.rglob("*"):
        # The base model's weights are nobody's words.
        if file.is_file() and "models" not in file.relative_to(home).parts:
            content = file.read_bytes()
            held = {canary for canary in CANARIES if canary.encode() in content}
            if held:
                found[str(file.relative_to(home))] = held
    return found


class Story:
    """Ada's words in a deployment, in every place where they can get to."""

    def __init__(self, strop: Deployment) -> None:
        self.strop = strop
        self.ada = next(m["id"] for m in strop.snapshot["members"] if m["name"] == "Ada")

    async def ask(self, who: str, text: str, **more: Any) -> dict[str, Any]:
        """Let a member ask, and return the finished reply with the Discord message that shows it."""
        before = {row["id"] for row in self.strop.query("select id from replies")}
        content = f"<@{self.strop.bot['id']}> {text}"
        body = {"channel_id": self.strop.channel, "author_id": who, "content": content, **more}
        asked = await self.strop.call("POST", "/playground/messages", body)

        def finished() -> dict[str, Any] | None:
            rows = self.strop.query(
                """select replies.*, reply_parts.discord_id from replies
                   join reply_parts on reply_parts.reply_id = replies.id where status <> 'streaming'"""
            )
            return next((row for row in rows if row["id"] not in before), None)

        reply: dict[str, Any] = await until(finished, f"an answer to {text!r}", self.strop)
        return reply | {"asked": asked["id"]}

    async def react(self, who: str, reply: dict[str, Any], emoji: str) -> None:
        message = {"channel_id": self.strop.channel, "message_id": str(reply["discord_id"])}
        await self.strop.call("PUT", "/playground/reactions", {**message, "user_id": who, "emoji": emoji})

    async def event(self, since: int, kind: str, wanted: str = "") -> dict[str, Any]:
        def arrived() -> dict[str, Any] | None:
            news = self.strop.events[since:]
            return next((e["data"] for e in news if e["event"] == kind and wanted in str(e["data"])), None)

        found: dict[str, Any] = await until(arrived, f"{kind} with {wanted!r}", self.strop)
        return found

    async def press(self, message: dict[str, Any], ending: str, who: str) -> None:
        buttons = [button for row in message["components"] for button in row["components"]]
        custom_id = next(b["custom_id"] for b in buttons if ending in b["custom_id"])
        where = {"channel_id": self.strop.channel, "message_id": str(message["id"])}
        await self.strop.call(
            "POST", "/playground/components", {**where, "user_id": who, "custom_id": custom_id}
        )

    async def correct(self, reply: dict[str, Any], text: str) -> None:
        since = len(self.strop.events)
        target = {"name": "Better answer", "target_id": str(reply["discord_id"])}
        who = {"channel_id": self.strop.channel, "user_id": self.ada}
        await self.strop.call("POST", "/playground/commands", {**who, **target})
        form = await self.event(since, "MODAL_OPEN")
        sent = {"user_id": self.ada, "modal_id": form["modal_id"], "values": {"text": text}}
        await self.strop.call("POST", "/playground/modals", sent)
        kept = "select 1 from ratings where text = ?"
        await until(lambda: self.strop.query(kept, text), "it to be kept", self.strop)

    async def tell(self) -> None:
        """Questions, a file, an edit, a correction, a block's reason, a deleted message, ratings by both."""
        strop, you = self.strop, self.strop.owner["id"]
        notes = base64.b64encode(b"my notes: cnry-file " * 20).decode()
        hers = [
            await self.ask(self.ada, "my street is cnry-asked"),
            await self.ask(self.ada, "read this", files=[{"name": "notes.txt", "data": notes}]),
            *[await self.ask(self.ada, f"number {number} cnry-asked") for number in range(4)],
        ]
        below = await self.ask(you, "what did she say?", reply_to=str(hers[0]["discord_id"]))
        mine = [await self.ask(you, f"question of my own, number {number}") for number in range(6)]
        for number, reply in enumerate([*hers, below, *mine]):
            await self.react(you, reply, "👎" if number % 3 == 2 else "👍")
            await self.react(self.ada, reply, "👍")
        await self.correct(mine[0], "You should have said cnry-corrected.")
        edit = {"user_id": self.ada, "content": f"<@{strop.bot['id']}> my street is cnry-edited"}
        await strop.call("PATCH", f"/playground/messages/{strop.channel}/{hers[2]['asked']}", edit)
        await until(lambda: strop.query("select 1 from messages where edited_ms > 0"), "the edit", strop)
        gone = await self.ask(self.ada, "please forget cnry-deleted")
        await strop.call(
            "DELETE", f"/playground/messages/{strop.channel}/{gone['asked']}", {"user_id": self.ada}
        )
        self._block_somebody()

    def _block_somebody(self) -> None:
        """What a moderator wrote of others is the moderator's word."""
        grace = next(m["id"] for m in self.strop.snapshot["members"] if m["name"] == "Grace")
        guild_id = int(self.strop.snapshot["guild"]["id"])
        with Database.open(self.strop.data / "strop.db") as database:
            database.write(
                lambda db: blocks.block(
                    db, guild_id=guild_id, user_id=int(grace), actor=self.ada, reason="cnry-blocked"
                )
            )

    async def retrain(self) -> dict[str, Any]:
        """One run until it is judged (an erasure also ends a vote that is still on), with its report."""
        strop = self.strop
        done = await asyncio.to_thread(strop.run_strop, "retrain", "--wait", "--json", timeout_s=300)
        assert done.returncode == 0, done.stderr
        (run,) = strop.query("select * from runs")
        assert run["adapter_id"], run["message"]
        reported = await asyncio.to_thread(strop.run_strop, "report", run["id"])
        assert reported.returncode == 0, reported.stderr
        return run

    async def erase(self) -> None:
        """/privacy delete, and the button that confirms it."""
        since = len(self.strop.events)
        who = {"channel_id": self.strop.channel, "user_id": self.ada}
        await self.strop.call(
            "POST", "/playground/commands", {**who, "name": "privacy", "subcommand": "delete", "options": {}}
        )
        question = await self.event(since, "MESSAGE_CREATE", "strop:erase:")
        await self.press(question, ":yes:", self.ada)
        await self.event(since, "MESSAGE_UPDATE", "Done: everything")


async def test_after_an_erasure_no_file_of_any_process_holds_a_word_of_the_member(
    tmp_path: Path, tiny_source: Path
) -> None:
    model = f'[model]\nbase = "{tiny_source}"\n[chat]\nmax_new_tokens = 16\n'
    async with deployed(tmp_path, ANY_PORTS + TRIAL + model) as strop:
        story = Story(strop)
        await story.tell()
        run = await story.retrain()
        backed_up = await asyncio.to_thread(strop.run_strop, "backup", "--json")
        assert backed_up.returncode == 0, backed_up.stderr
        elsewhere = await asyncio.to_thread(strop.run_strop, "backup", str(tmp_path / "elsewhere"))
        assert elsewhere.returncode == 0, elsewhere.stderr

        home = strop.home
        before = holders(home)
        spread = {Path(name).name for name in before}
        assert {"snapshot.jsonl", "replies.jsonl", "report.html"} & spread, before
        assert set().union(*before.values()) >= {"cnry-asked", "cnry-file", "cnry-corrected", "cnry-blocked"}
        assert any(name.startswith("playground/backups/") for name in before), before

        await story.erase()
        await until(lambda: not holders(home), f"every file to be clean, of {sorted(before)}", strop)
        assert strop.query("select id from adapters where state <> 'tainted'") == []
        assert not (strop.data / "runs" / run["id"]).exists()
        assert (await strop.ask("still there?"))["adapter_id"] is None
        assert holders(home) == {}

    restored = await asyncio.to_thread(strop.run_strop, "restore", str(tmp_path / "elsewhere"), "--yes")
    assert restored.returncode == 0, restored.stderr
    assert holders(home) == {}, "a backup that was made before brings nothing back"
    assert strop.query("select content from messages where content like '%question of my own%'")
