import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import discord
import pytest

from bot.dashboard.loop_view import LoopSources
from bot.playground.discord import community
from bot.playground.errors import RehearsalError
from bot.playground.page import client as page_client
from bot.playground.server import Playground, PlaygroundLoop, PlaygroundSettings
from bot.playground.simulation.rehearsal import RehearsalSettings
from bot.serving.client import ModelClient
from storage.chat import conversations, members, replies
from storage.db.database import Database
from storage.feedback import duels
from storage.learning import adapters, runs
from tests.bot.playground.conftest import Recorder, connected, until

SCOPE = f"guild:{community.GUILD_ID}"
GOOD, BAD = "Sun and water. Where do you live?", "One should always carefully consider " * 9


class Talker(Recorder):
    """A bot in miniature on a real client: streams a reply by edits and keeps storage's record of it."""

    def __init__(self, database: Database | None) -> None:
        super().__init__()
        self.database = database
        self.number = itertools.count()
        self.busy = self.most_busy = 0

    async def on_message(self, message: discord.Message) -> None:
        if self.user not in message.mentions:
            return
        self.busy += 1
        self.most_busy = max(self.most_busy, self.busy)
        n = next(self.number)
        sent = await message.reply("…", mention_author=False)
        await self._record(message, sent, f"r{n}")
        await asyncio.sleep(0.05)
        text = GOOD if n % 3 == 0 else BAD
        await sent.edit(content=text[:20])
        await sent.edit(content=text)
        if self.database is not None:
            await self.database.awrite(lambda db: _finish(db, f"r{n}", text))
        self.busy -= 1

    async def _record(self, asked: discord.Message, sent: discord.Message, reply_id: str) -> None:
        if self.database is not None:
            await self.database.awrite(lambda db: _start(db, asked, sent, reply_id))


def _start(db: Any, asked: discord.Message, sent: discord.Message, reply_id: str) -> None:
    conversation = conversations.open_conversation(
        db,
        key=str(asked.id),
        guild_id=community.GUILD_ID,
        channel_id=asked.channel.id,
        scope=SCOPE,
        source="rehearsal",
        public=True,
    )
    message_id = conversations.add_message(
        db,
        conversation_id=conversation.id,
        discord_id=asked.id,
        parent_id=None,
        author_id=asked.author.id,
        role="user",
        content=asked.content,
    )
    replies.start(
        db,
        reply_id=reply_id,
        prompt_message_id=message_id,
        scope=SCOPE,
        adapter_id=None,
        base_hash="f" * 64,
        prompt=[],
        seed=1,
        sampling={},
    )
    replies.add_part(db, reply_id, sent.id, sent.channel.id, 0)


def _finish(db: Any, reply_id: str, text: str) -> None:
    replies.finish(
        db,
        reply_id,
        content=text,
        status="complete",
        finish_reason="stop",
        prompt_tokens=1,
        completion_tokens=1,
        queue_ms=0,
        first_token_ms=1,
        duration_ms=2,
    )


@pytest.fixture
def database(tmp_path: Path) -> Any:
    with Database.open(tmp_path / "strop.db") as opened:
        yield opened


@pytest.fixture
async def stage(database: Database, tmp_path: Path) -> AsyncIterator[Playground]:
    async with staged(database, tmp_path, reply_timeout_s=60.0) as running:
        yield running


@asynccontextmanager
async def staged(database: Database, folder: Path, reply_timeout_s: float) -> AsyncIterator[Playground]:
    async with ModelClient("http://127.0.0.1:9") as client:
        sources = LoopSources(
            database,
            client,
            SCOPE,
            folder / "lock",
            min_liked=25,
            min_raters=5,
            min_votes=10,
            min_new_ratings=50,
        )
        settings = RehearsalSettings(scope=SCOPE, quiet_s=0.3, reply_timeout_s=reply_timeout_s)
        async with Playground(PlaygroundSettings(), PlaygroundLoop(sources, settings)) as running:
            yield running


async def ended(playground: Playground, timeout_s: float = 60.0) -> dict[str, Any]:
    assert playground.rehearsal is not None
    await until(lambda: not (playground.rehearsal.state() or {"running": True})["running"], timeout_s)
    state = playground.rehearsal.state()
    assert state is not None
    return state


def reactions(playground: Playground) -> dict[str, dict[str, list[str]]]:
    """Text of each bot message in the rehearsal channel -> emoji -> who."""
    messages = playground.backend.history(500)[str(community.REHEARSAL_ID)]
    return {
        f"{message['id']} {message['content']}": {
            reaction["emoji"]["name"]: reaction["users"] for reaction in message["reactions"]
        }
        for message in messages
        if message["author"]["id"] == str(community.BOT_ID)
    }


async def test_members_ask_several_at_once_and_rate_complete_replies_by_their_taste(
    stage: Playground, database: Database
) -> None:
    bot = Talker(database)
    async with connected(bot, stage):
        assert stage.rehearsal is not None
        await stage.rehearsal.start("short-question", 12, bot_online=True)
        state = await ended(stage)
        await until(lambda: bot.reactions.qsize() == state["liked"] + state["disliked"], 20)
    assert (state["done"], state["total"], state["eta_s"]) == (12, 12, None)
    assert bot.most_busy > 2
    rated = reactions(stage)
    assert len(rated) == 12
    for text, given in rated.items():
        right, wrong = ("👍", "👎") if GOOD in text else ("👎", "👍")
        assert len(given[right]) > 3 * len(given.get(wrong, [])), "noise may cost a vote, never the majority"
    people = {int(user) for given in rated.values() for users in given.values() for user in users}
    assert people <= {person.user_id for person in community.SIMULATED} and len(people) >= 5
    known = await database.aread(lambda db: [members.get(db, user) for user in people])
    assert all(member and member.simulated and member.source == "rehearsal" for member in known)


async def test_a_reply_that_storage_doesnt_know_is_complete_when_it_stops_changing(stage: Playground) -> None:
    async with connected(Talker(None), stage):
        assert stage.rehearsal is not None
        await stage.rehearsal.start("short-question", 3, bot_online=True)
        state = await ended(stage)
    assert state["done"] == 3 and state["liked"] >= 1
    assert all(given for given in reactions(stage).values())


async def test_without_a_number_it_goes_on_until_enough_is_liked(
    stage: Playground, database: Database
) -> None:
    async with connected(Talker(database), stage):
        assert stage.rehearsal is not None
        await stage.rehearsal.start("short-question", None, bot_online=True)
        rehearsing = stage.rehearsal.state
        # A third is liked, and the ratings aren't in storage here: it comes to plan for about 75 rounds.
        await until(lambda: rehearsing()["done"] >= 6 and rehearsing()["total"] > 40, 60)
        state = rehearsing()
        await stage.rehearsal.cancel()
    assert state["eta_s"] is not None


async def test_it_can_be_stopped_and_started_again(stage: Playground, database: Database) -> None:
    async with connected(Talker(database), stage):
        assert stage.rehearsal is not None
        await stage.rehearsal.start("warm", 200, bot_online=True)
        with pytest.raises(RehearsalError, match="running already"):
            await stage.rehearsal.start("warm", 1, bot_online=True)
        await until(lambda: stage.rehearsal.state()["done"] >= 2, 60)
        stopped = await stage.rehearsal.cancel()
        assert stopped is not None and not stopped["running"] and stopped["message"].startswith("Stopped.")
        await stage.rehearsal.start("plain", 1, bot_online=True)
        assert (await ended(stage))["taste"] == "plain"


async def test_a_silent_bot_ends_it_with_a_sentence(database: Database, tmp_path: Path) -> None:
    async with staged(database, tmp_path, reply_timeout_s=0.3) as stage, connected(Recorder(), stage):
        assert stage.rehearsal is not None
        await stage.rehearsal.start("warm", 30, bot_online=True)
        state = await ended(stage)
    assert "didn't answer" in state["message"]


@pytest.mark.parametrize(
    ("taste", "rounds", "online", "sentence"),
    [
        ("nope", 3, True, "no taste"),
        ("warm", 999, True, "between 0 and"),
        ("warm", 3, False, "isn't connected"),
    ],
)
async def test_what_cant_start_says_why(
    stage: Playground, taste: str, rounds: int, online: bool, sentence: str
) -> None:
    assert stage.rehearsal is not None
    with pytest.raises(RehearsalError, match=sentence):
        await stage.rehearsal.start(taste, rounds, bot_online=online)


async def test_members_vote_blindly_where_a_run_waits_for_votes(
    stage: Playground, database: Database
) -> None:
    run_id = await database.awrite(_run_awaiting_votes)
    assert stage.rehearsal is not None
    await stage.rehearsal.start("short-question", 0, bot_online=False)
    state = await ended(stage)
    tally = await database.aread(lambda db: duels.tally(db, run_id))
    assert state["votes"] == tally.votes == 3 * 8
    assert tally.wins > 2 * tally.losses, "the challenger's texts meet the taste, on either side"


def _run_awaiting_votes(db: Any) -> str:
    run = runs.enqueue(db, scope=SCOPE, trigger="manual", requested_by="test")
    adapters.insert_candidate(
        db,
        adapter_id="a1",
        scope=SCOPE,
        base_hash="f" * 64,
        parent_id=None,
        run_id=run.id,
        path="adapters/a1",
        manifest={},
    )
    for n in range(8):
        first = n % 2 == 0
        duels.add(
            db,
            duel_id=f"d{n}",
            run_id=run.id,
            scope=SCOPE,
            challenger_id="a1",
            champion_id=None,
            prompt=[],
            first_text=GOOD if first else BAD,
            second_text=BAD if first else GOOD,
            first_is_challenger=first,
        )
    runs.lease_next(db, "trainer", 60_000)
    runs.finish(db, run.id, outcome="votes", message="votes needed", metrics={})
    return run.id


async def test_the_command_line_follows_a_rehearsal_to_its_end(stage: Playground, database: Database) -> None:
    async with connected(Talker(database), stage):
        states = [
            state
            async for state in page_client.run_rehearsal(stage.base_url, stage.secret, "warm", 4, poll_s=0.05)
        ]
    assert states[0]["running"] and not states[-1]["running"]
    assert states[-1]["done"] == 4 and "4 replies rated" in states[-1]["message"]


async def test_leaving_the_command_early_stops_the_rehearsal(stage: Playground, database: Database) -> None:
    async with connected(Talker(database), stage):
        watching = page_client.run_rehearsal(stage.base_url, stage.secret, "warm", 200, poll_s=0.05)
        await anext(watching)
        await watching.aclose()
        assert stage.rehearsal is not None
        assert (stage.rehearsal.state() or {})["running"] is False


async def test_an_operators_prompts_taste_and_crowd_are_rehearsed_over_the_page(
    stage: Playground, database: Database
) -> None:
    cast = {"prompts": ["Is rye better?", "Name a tree."], "members": 14, "trolls": 4, "noise": 0.0}
    async with connected(Talker(database), stage):
        states = [
            state
            async for state in page_client.run_rehearsal(
                stage.base_url, stage.secret, {"like": ["sun"]}, 6, cast=cast, poll_s=0.05
            )
        ]
    assert states[-1]["done"] == 6
    asked = {
        message["content"].partition("> ")[2]
        for message in stage.backend.history(500)[str(community.REHEARSAL_ID)]
        if message["author"]["id"] != str(community.BOT_ID)
    }
    assert asked == set(cast["prompts"])
    trolls = {str(person.user_id) for person in community.crowd(14)[10:]}
    for text, given in reactions(stage).items():
        right, wrong = ("👍", "👎") if GOOD in text else ("👎", "👍")
        # Trolls rate everything, and the opposite; nobody else is wrong without noise (but for their bias).
        assert trolls <= set(given[wrong])
        assert not trolls & set(given.get(right, []))
    assert {member["id"] for member in stage.backend.members()} >= trolls


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"prompts": [""]}, "1 to 2000 prompts"),
        ({"trolls": 40}, "fewer trolls"),
        ({"noise": "much"}, "“noise” must be a number"),
        ({"taste": {"rude": True}}, "There is no feature 'rude'"),
    ],
)
async def test_what_an_operator_can_not_rehearse_is_one_sentence(
    stage: Playground, changed: dict[str, Any], sentence: str
) -> None:
    async with page_client.PageClient(stage.base_url, stage.secret) as page:
        taste = changed.pop("taste", "warm")
        with pytest.raises(RehearsalError, match=sentence):
            await page.start_rehearsal(taste, 1, changed)
