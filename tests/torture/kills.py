"""kill -9 of any process of a deployment, again and again, and what must be true of it all the same."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from bot.chat.answerer import STOPPED
from bot.chat.draft import Progress, answer_text
from bot.chat.generation import LOADING
from bot.delivery.splitting import visible_parts
from bot.playground.discord import community
from bot.playground.server import Playground, PlaygroundSettings
from storage.db.database import Connection, Database
from tests.torture.forks import Forks
from tests.torture.siege import POLL_S, REPLIES, SUPERVISOR, Siege, asked_by

STOPPING_S = 60.0
SETTINGS = """[server]
port = 0
[model]
base = "{source}"
[chat]
max_new_tokens = 24
[trainer]
min_new_ratings = 0
interval_hours = 0.0
nice = 0
min_liked = 3
min_raters = 1
epochs = 1
checkpoint_seconds = 0.2
[gate]
min_effect = 0.9
canary_share = 0.0
max_prompts = 4
max_new_tokens = 8
bootstrap = 100
"""


def broken(siege: Siege) -> list[str]:
    """Say what is not as it must be at every moment, also between a kill and the next start."""
    # The rows first: what they call delivered must be there afterwards.
    rows, champions = siege.database.read(lambda db: (list(db.query(REPLIES)), _champions(db)))
    shown = siege.shown()
    known = {row["discord_id"] for row in rows}
    asked = {row["asked"] for row in rows}
    wrong = [
        f"no row knows {message['content'][:50]!r}"
        for message_id, message in shown.items()
        if message_id not in known
        and asked_by(message) in siege.asked
        and asked_by(message) not in asked
        # It may have been stored since.
        and not siege.query(f"{REPLIES} where reply_parts.discord_id = {message_id}")
        and not siege.query(f"{REPLIES} where asked.discord_id = {asked_by(message)}")
    ]
    for row in rows:
        there = shown.get(row["discord_id"])
        said = row["status"] == "complete" and row["text"].strip()  # else a note says that nothing was
        if said and there is not None and _part(row).strip() != there["content"].strip():
            wrong.append(f"{row['id']} is complete and not delivered")
    return wrong + champions + _erased(siege) + _runs(siege)


def disorder(siege: Siege) -> list[str]:
    """Say what is not as it must be once everything had its time."""
    wrong = broken(siege)
    rows = siege.query(REPLIES)
    known = {row["discord_id"] for row in rows}
    wrong += [f"{row['id']} is open" for row in rows if row["status"] == "streaming"]
    for message_id, message in siege.shown().items():
        if asked_by(message) in siege.asked and message_id not in known:
            wrong.append(f"no row knows {message['content'][:50]!r}")
        waits = LOADING in message["content"] and STOPPED not in message["content"]
        if waits or "strop:reply:stop:" in str(message["components"]):
            wrong.append(f"{message_id} is half written")
    wrong += [f"question {asked} has no answer" for asked in siege.unanswered()]
    wrong += [
        f"the champion {row['adapter_id']} has no files"
        for row in siege.query("select adapter_id from champions where adapter_id is not null")
        if not (siege.home / "playground" / "adapters" / row["adapter_id"]).is_dir()
    ]
    kept = siege.database.read(_dump)
    wrong += [f"deleted {siege.words[each]} is kept" for each in siege.deleted if siege.words[each] in kept]
    return wrong + _ratings(siege)


def _ratings(siege: Siege) -> list[str]:
    """Compare what stands with what members did, in their order: the last of two emoji may be either."""
    stored = siege.query(
        """select reply_parts.discord_id, ratings.user_id, ratings.emoji from ratings
           join reply_parts on reply_parts.reply_id = ratings.reply_id and position = 0
           where retracted = 0 and kind = 'thumb'"""
    )
    standing = {(row["discord_id"], row["user_id"]): row["emoji"] for row in stored}
    given = {key: emoji for key, emoji in siege.reactions.items() if emoji and key[1] not in siege.left}
    return [
        f"a rating of {key} is {standing.get(key)} and should be {given.get(key)}"
        for key in standing.keys() | given.keys()
        if standing.get(key) not in given.get(key, [None])
    ]


def _erased(siege: Siege) -> list[str]:
    """Say what is kept of members whose erasure was acknowledged."""
    if siege.leaves is not None and siege.query(
        f"select 1 from members where user_id = {siege.leaves} and erased_ms is not null"
    ):
        siege.left.add(siege.leaves)
        siege.leaves = None
    if not siege.left:
        return []
    kept = siege.database.read(_dump)
    wrong = [
        f"{siege.words[each]} of {who} is kept"
        for each, who in siege.asked.items()
        if who in siege.left and siege.words[each] in kept
    ]
    gone = ", ".join(map(str, siege.left))
    wrong += [
        f"a rating of {row['user_id']}, who left, is kept"
        for row in siege.query(f"select user_id from ratings where user_id in ({gone})")
    ]
    return wrong + [
        f"{row['display_name']}, who left, is kept"
        for row in siege.query(
            f"select display_name from members where user_id in ({gone}) and display_name <> ''"
        )
    ]


def _runs(siege: Siege) -> list[str]:
    """A run whose process was killed once goes on; nothing else ends one here."""
    rows = siege.query("select id, state, attempts, message, error from runs where state = 'failed'")
    wrong = [
        f"run {row['id']} failed: {row['message']} {row['error']}" for row in rows if row["attempts"] < 2
    ]
    on = siege.query("select id from runs where state = 'running'")
    return wrong + (["two runs are on"] if len(on) > 1 else [])


def words_in_files(siege: Siege) -> list[str]:
    """Say which files hold a word of whoever erased theirs, or deleted the message."""
    gone = {
        siege.words[each].encode()
        for each, who in siege.asked.items()
        if who in siege.left or each in siege.deleted
    }
    wrong = []
    # What is removed meanwhile is passed over; the models are behind a link.
    for folder, _, names in os.walk(siege.home):
        for name in names:
            with contextlib.suppress(OSError):
                content = Path(folder, name).read_bytes()
                wrong += [f"{word.decode()} is in {name}" for word in gone if word in content]
    return wrong


def _champions(db: Connection) -> list[str]:
    rows = list(
        db.query(
            """select scope, base_hash, adapter_id, (select promotions.adapter_id from promotions
                   where promotions.scope = champions.scope and promotions.base_hash = champions.base_hash
                   order by id desc limit 1) as promoted from champions"""
        )
    )
    wrong = [f"{row['promoted']} was promoted last" for row in rows if row["promoted"] != row["adapter_id"]]
    if len({(row["scope"], row["base_hash"]) for row in rows}) != len(rows):
        wrong.append("two champions")
    return wrong


def _dump(db: Connection) -> str:
    names = [name for (name,) in db.conn.execute("select name from sqlite_master where type = 'table'")]
    return "\n".join(repr(list(db.conn.execute(f"select * from {name}"))) for name in names)


def _part(row: dict[str, Any]) -> str:
    """What one message of a reply shows."""
    parts = visible_parts(answer_text(Progress(0.0, row["text"], finish_reason=row["finish_reason"])))
    return parts[row["position"]] if row["position"] < len(parts) else ""


@asynccontextmanager
async def besieged(folder: Path, source: Path, models: Path, forks: Forks, seed: int) -> AsyncIterator[Siege]:
    """A deployment of a tiny model with a few liked answers, so that it can train."""
    home = folder / "Strop für uns"
    home.mkdir(parents=True)
    (home / "models").symlink_to(models, target_is_directory=True)
    (home / "strop.toml").write_text(SETTINGS.format(source=source))
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("DISCORD_", "STROP_"))}
    environment = {**kept, "STROP_HOME": str(home), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    async with AsyncExitStack() as stack:
        playground = await stack.enter_async_context(
            Playground(PlaygroundSettings(rate_limits=(), global_per_s=1000))
        )
        run = home / "playground" / "run"
        run.mkdir(parents=True)
        addresses = {"api": playground.api_url, "gateway": playground.gateway_url, "token": playground.token}
        (run / "playground.json").write_text(json.dumps({**addresses, "pid": os.getpid()}))
        database = stack.enter_context(Database.open(home / "playground" / "strop.db"))
        siege = Siege(home, playground, database, forks, environment, random.Random(seed))
        playground.backend.on_page_event(siege.heard)
        # What is older than all that a playground has may be of before it was started over: it is kept.
        playground.backend.send_message(community.GENERAL_ID, community.OWNER.user_id, "Welcome.")
        siege.start()
        try:
            await siege.all_there()
            for number in range(8):
                siege.ask()
                await siege.until(lambda: not siege.unanswered(), f"answer {number}")
            await siege.until(lambda: not disorder(siege), "order before the first kill")
            for _ in range(15):
                siege.rate("👍")
            await siege.until(lambda: not disorder(siege), "the first ratings")
            siege.command("retrain")
            await siege.until(lambda: siege.query("select 1 from adapters"), "an adapter to promote")
            acting = asyncio.create_task(siege.go_on_acting())
            try:
                yield siege
            finally:
                acting.cancel()
        finally:
            await stop(siege)


async def stop(siege: Siege) -> None:
    """Stop the deployment as its operator does, and whatever is left of it by force."""
    for pid in siege.victims().get(SUPERVISOR, []):
        os.kill(pid, signal.SIGTERM)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(STOPPING_S):
            while siege.victims():  # noqa: ASYNC110 - processes, which tell nobody
                await asyncio.sleep(POLL_S)
    for pids in siege.victims().values():
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


async def one_kill(siege: Siege, *, settle: bool) -> None:
    """Kill something in the midst of everything; ``settle`` waits until all is in order.

    Raises AssertionError for whatever is not as it must be.
    """
    siege.may_act.set()
    await siege.all_there()
    name = await siege.kill()
    wrong = broken(siege)
    assert not wrong, f"after a kill of {name}: {wrong}"
    if not settle:
        return
    siege.may_act.clear()
    wrong = []

    def in_order() -> bool:
        nonlocal wrong
        wrong = disorder(siege)
        return not wrong

    try:
        await siege.all_there()
        await siege.until(in_order, f"order after a kill of {name}")
    except AssertionError as error:
        raise AssertionError(f"after a kill of {name}: {wrong}\n{error}") from error


def runs_of(siege: Siege) -> Counter[str]:
    """Count the runs by how they ended."""
    rows = siege.query("select state, outcome from runs where state in ('finished', 'failed', 'cancelled')")
    return Counter(row["outcome"] or row["state"] for row in rows)
