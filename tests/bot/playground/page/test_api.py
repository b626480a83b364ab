import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from bot.dashboard.loop_view import LoopSources
from bot.playground.discord import community
from bot.playground.errors import RehearsalError
from bot.playground.page.client import SECRET_HEADER, PageClient
from bot.playground.saved_state import STATE_FILE, LastingState, read_state, write_state
from bot.playground.server import Playground, PlaygroundLoop, PlaygroundSettings
from bot.playground.simulation import sample
from bot.playground.simulation.rehearsal import RehearsalSettings
from bot.serving.client import ModelClient
from storage.chat import context_resets, conversations, members, replies, transcript
from storage.config_sections import TrainerConfig
from storage.db import key_values
from storage.db.database import Database
from storage.feedback import duels, ratings
from storage.learning import eligibility, runs
from tests.bot.playground.conftest import Recorder, connected, until
from tests.bot.playground.discord.test_restored_chat import chat
from tests.databases import copied
from trainer.schedule.scheduler import enqueue_due

GENERAL, YOU = str(community.GENERAL_ID), str(community.OWNER.user_id)
SCOPE = f"guild:{community.GUILD_ID}"
BASE_HASH = "f" * 64


@pytest.fixture
def database(tmp_path: Path, empty_database: Path) -> Any:
    with copied(empty_database, tmp_path / "strop.db") as opened:
        yield opened


@pytest.fixture
async def model_server() -> AsyncIterator[str]:
    """The model server's health answer over a real socket; nothing here needs its model."""

    async def health(_: web.Request) -> web.Response:
        base = {"id": "tiny", "hash": BASE_HASH}
        return web.json_response({"status": "ok", "detail": "ready", "base": base, "adapters": []})

    app = web.Application()
    app.router.add_get("/health", health)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.fixture
async def looped(database: Database, model_server: str, tmp_path: Path) -> AsyncIterator[Playground]:
    async with ModelClient(model_server) as client:
        sources = LoopSources(
            database,
            client,
            SCOPE,
            lambda: False,
            min_liked=25,
            min_raters=5,
            min_votes=10,
            min_new_ratings=50,
        )
        async with Playground(
            PlaygroundSettings(), PlaygroundLoop(sources, RehearsalSettings(scope=SCOPE))
        ) as running:
            yield running


class Page:
    """What the browser does: the secret in a header, JSON in and out."""

    def __init__(self, playground: Playground, http: aiohttp.ClientSession) -> None:
        self.playground = playground
        self.http = http

    async def call(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        sent = {SECRET_HEADER: self.playground.secret, **headers}
        async with self.http.request(
            method, self.playground.base_url + path, json=body, headers=sent
        ) as response:
            return response.status, json.loads(await response.text())

    async def listen(self) -> aiohttp.ClientWebSocketResponse:
        socket = await self.http.ws_connect(self.playground.base_url + "/playground/events")
        await socket.send_json({"secret": self.playground.secret})
        return socket


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
def page(playground: Playground, http: aiohttp.ClientSession) -> Page:
    return Page(playground, http)


@pytest.fixture
def loop_page(looped: Playground, http: aiohttp.ClientSession) -> Page:
    return Page(looped, http)


async def next_event(socket: aiohttp.ClientWebSocketResponse, name: str) -> dict[str, Any]:
    while True:
        frame = await socket.receive_json(timeout=20)
        if frame.get("event") == name or frame["t"] == name:
            return frame


# ---------------------------------------------------------------- the guard


async def test_the_page_comes_with_its_secret_and_allows_no_foreign_content(page: Page) -> None:
    async with page.http.get(page.playground.base_url + "/") as response:
        html = await response.text()
    assert page.playground.secret in html and "{{PLAYGROUND_SECRET}}" not in html
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy and "unsafe" not in policy
    assert response.headers["Cache-Control"] == "no-store"


async def test_static_files_come_from_the_pages_folder_only(page: Page) -> None:
    for name in ("..%2fpage_api.py", "%2e%2e%2f%2e%2e%2ferrors.py", "index.html", "nothing.js", "x.py"):
        async with page.http.get(f"{page.playground.base_url}/static/{name}") as response:
            assert response.status == 404, name


@pytest.mark.parametrize(
    "headers", [{SECRET_HEADER: "wrong"}, {"Origin": "https://evil.example"}, {"Host": "evil.example"}]
)
async def test_calls_of_other_sites_and_without_the_secret_change_nothing(
    page: Page, headers: dict[str, str]
) -> None:
    body = {"channel_id": GENERAL, "author_id": YOU, "content": "hi"}
    sent = {SECRET_HEADER: page.playground.secret, **headers}
    async with page.http.post(
        page.playground.base_url + "/playground/messages", json=body, headers=sent
    ) as response:
        assert response.status == 403
    assert page.playground.backend.history(10)[GENERAL] == []


async def test_a_form_post_is_not_taken_for_json(page: Page) -> None:
    async with page.http.post(
        page.playground.base_url + "/playground/messages",
        data={"channel_id": GENERAL},
        headers={SECRET_HEADER: page.playground.secret},
    ) as response:
        assert response.status == 415


async def test_the_event_stream_needs_the_secret_first(page: Page) -> None:
    for first in ({"secret": "wrong"}, {}, []):
        socket = await page.http.ws_connect(page.playground.base_url + "/playground/events")
        await socket.send_json(first)
        assert (await socket.receive(timeout=20)).type is aiohttp.WSMsgType.CLOSE
        assert socket.close_code == 4403


# ---------------------------------------------------------------- acting


async def test_a_page_sees_the_snapshot_and_then_what_happens(page: Page) -> None:
    page.playground.backend.send_message(int(GENERAL), int(YOU), "earlier")
    socket = await page.listen()
    snapshot = await next_event(socket, "snapshot")
    assert [message["content"] for message in snapshot["messages"][GENERAL]] == ["earlier"]
    assert snapshot["members"][0] | {"color": ""} == {
        "id": YOU,
        "name": "You",
        "username": "you",
        "color": "",
        "bot": False,
        "simulated": False,
        "operator": True,
    }
    assert snapshot["bot_online"] is False and snapshot["loop"] is None
    body = {"channel_id": GENERAL, "author_id": YOU, "content": "now"}
    status, sent = await page.call("POST", "/playground/messages", body)
    event = await next_event(socket, "MESSAGE_CREATE")
    assert status == 200 and event["data"]["id"] == sent["id"]


async def test_everything_a_member_does_works_through_the_page(page: Page) -> None:
    mine = {"channel_id": GENERAL, "author_id": YOU}
    _, first = await page.call("POST", "/playground/messages", {**mine, "content": "one"})
    _, reply = await page.call(
        "POST", "/playground/messages", {**mine, "content": "two", "reply_to": first["id"]}
    )
    assert reply["message_reference"]["message_id"] == first["id"]
    path = f"/playground/messages/{GENERAL}/{first['id']}"
    assert (await page.call("PATCH", path, {"user_id": YOU, "content": "uno"}))[1]["content"] == "uno"
    reaction = {"channel_id": GENERAL, "message_id": first["id"], "user_id": YOU, "emoji": "👍"}
    assert (await page.call("PUT", "/playground/reactions", reaction))[0] == 200
    shown = page.playground.backend.message(int(GENERAL), int(first["id"]))
    assert shown is not None and shown["reactions"][0]["users"] == [YOU]
    assert (await page.call("DELETE", "/playground/reactions", reaction))[0] == 200
    assert (await page.call("DELETE", path, {"user_id": YOU}))[0] == 200
    assert page.playground.backend.message(int(GENERAL), int(first["id"])) is None


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/playground/messages", {"channel_id": "x", "author_id": YOU, "content": "a"}),
        ("POST", "/playground/messages", {"channel_id": GENERAL, "author_id": YOU}),
        ("POST", "/playground/messages", {"channel_id": GENERAL, "author_id": YOU, "content": 3}),
        ("POST", "/playground/messages", {"channel_id": "9" * 40, "author_id": YOU, "content": "a"}),
        ("POST", "/playground/messages", []),
        ("POST", "/playground/commands", {"channel_id": GENERAL, "user_id": YOU, "name": "nope"}),
        (
            "POST",
            "/playground/components",
            {"channel_id": GENERAL, "message_id": "1", "user_id": YOU, "custom_id": "x"},
        ),
        ("POST", "/playground/modals", {"user_id": YOU, "modal_id": "1", "values": []}),
        ("POST", "/playground/modals", {"user_id": YOU, "modal_id": "1", "values": [1]}),
        ("GET", "/playground/loop", None),
        ("POST", "/playground/sample", {}),
    ],
)
async def test_bad_requests_get_one_sentence(page: Page, method: str, path: str, body: Any) -> None:
    status, answer = await page.call(method, path, body)
    assert 400 <= status < 600 and status != 500
    assert answer["error"].endswith((".", "?"))


async def test_a_command_from_the_page_reaches_the_bot(page: Page) -> None:
    client = Recorder()

    @client.tree.command(description="Say it")
    async def echo(interaction: Any, text: str) -> None:
        await interaction.response.send_message(text)

    async with connected(client, page.playground):
        await client.tree.sync()
        socket = await page.listen()
        assert (await next_event(socket, "snapshot"))["commands"][0]["name"] == "echo"
        body = {"channel_id": GENERAL, "user_id": YOU, "name": "echo", "options": {"text": "hello"}}
        _, answer = await page.call("POST", "/playground/commands", body)
        message = await next_event(socket, "MESSAGE_CREATE")
        done = await next_event(socket, "INTERACTION_RESPONSE")
    assert message["data"]["content"] == "hello"
    assert (done["data"]["interaction_id"], done["data"]["state"]) == (answer["interaction_id"], "answered")


# ---------------------------------------------------------------- the loop


async def test_the_loop_panel_hears_of_changes_within_a_second(loop_page: Page, database: Database) -> None:
    socket = await loop_page.listen()
    await next_event(socket, "snapshot")
    loop = loop_page.playground
    await until(lambda: loop.page is not None)
    await database.awrite(lambda db: _rated_reply(db))
    async with asyncio.timeout(60):
        while (frame := await next_event(socket, "loop"))["loop"]["ratings"]["liked"] != 1:
            pass
    state = frame["loop"]
    assert state["server"] == {"status": "ok", "detail": "ready"}
    assert (state["trainer_alive"], state["rehearsal"], state["needs"]["liked"][1]) == (False, None, 25)


def _rated_reply(db: Any) -> None:
    conversation = conversations.open_conversation(
        db,
        key="k",
        guild_id=community.GUILD_ID,
        channel_id=1,
        scope=SCOPE,
        source="playground",
        public=True,
    )
    asked = conversations.add_message(
        db,
        conversation_id=conversation.id,
        discord_id=7,
        parent_id=None,
        author_id=5,
        role="user",
        content="q",
    )
    replies.start(
        db,
        reply_id="r",
        prompt_message_id=asked,
        scope=SCOPE,
        adapter_id=None,
        base_hash=BASE_HASH,
        prompt=[],
        seed=1,
        sampling={},
    )
    ratings.rate(db, reply_id="r", user_id=5, kind="thumb", means="reaction", value=1)


async def test_starting_over_empties_the_chat_for_good_and_keeps_what_was_rated(
    loop_page: Page, database: Database
) -> None:
    database.write(chat)
    world = loop_page.playground.backend
    world.restore(database.read(lambda db: transcript.latest(db, 100)))
    socket = await loop_page.listen()
    assert (await socket.receive_json())["messages"][GENERAL]
    assert await loop_page.call("POST", "/playground/start-over", {}) == (200, {"ok": True})
    emptied = await next_snapshot(socket)
    assert not any(emptied["messages"].values())
    # Nor does it come back with the next start; the rows and the ratings are there.
    after = database.read(lambda db: int(key_values.get(db, key_values.SHOWN_AFTER) or 0))
    assert database.read(lambda db: transcript.latest(db, 100, after=after)) == []
    assert database.read(lambda db: ratings.counts(db, "guild:1")).liked == 1
    assert database.read(lambda db: context_resets.boundary(db, [int(GENERAL)])) > 0


async def next_snapshot(socket: aiohttp.ClientWebSocketResponse) -> dict[str, Any]:
    while (frame := await socket.receive_json())["t"] != "snapshot":
        pass
    return dict(frame)


async def test_the_tastes_can_be_read(loop_page: Page) -> None:
    status, tastes = await loop_page.call("GET", "/playground/tastes")
    assert status == 200 and len(tastes) >= 4
    assert [taste["key"] for taste in tastes if taste["default"]] == ["short-question"]
    assert all(taste["title"] and taste["description"] and taste["example"] for taste in tastes)


async def test_another_base_model_is_refused_the_sample(loop_page: Page) -> None:
    status, answer = await loop_page.call("POST", "/playground/sample", {})
    assert status == 409 and "another one is running" in answer["error"]


# ---------------------------------------------------------------- the process


async def test_a_restarted_playground_takes_the_running_bot_back(http: aiohttp.ClientSession) -> None:
    client = Recorder()

    @client.tree.command(description="Say it")
    async def echo(interaction: Any, text: str) -> None:
        await interaction.response.send_message(text)

    async with Playground() as first, connected(client, first):
        await client.tree.sync()
        commands = first.backend.commands()
        port = int(first.base_url.rsplit(":", 1)[1])
        await first.stop()
        second = Playground(PlaygroundSettings(port=port, token=first.token))
        second.backend.restore_commands(commands)
        async with second:
            await until(lambda: second.gateway.online, 20)
            assert second.backend.commands() == commands
            second.backend.run_command(int(GENERAL), int(YOU), "echo", options={"text": "still here"})
            await until(lambda: second.backend.history(1)[GENERAL])
            assert second.backend.history(1)[GENERAL][0]["content"] == "still here"


def test_what_lasts_is_private_and_survives_damage(tmp_path: Path) -> None:
    state = LastingState("playground.abc", [{"name": "echo"}])
    write_state(tmp_path, state)
    assert read_state(tmp_path) == state
    file = tmp_path / STATE_FILE
    assert file.stat().st_mode & 0o777 == 0o600
    for damaged in ("{", "[]", '{"token": "a real one", "commands": []}'):
        file.write_text(damaged)
        assert read_state(tmp_path).token.startswith("playground.")


async def _start(home: Path, config: Path) -> asyncio.subprocess.Process:
    env = {k: v for k, v in os.environ.items() if not k.startswith("DISCORD_TOKEN")} | {
        "STROP_HOME": str(home)
    }
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bot.playground", "--config", str(config),
        env=env, stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def test_the_process_says_where_it_is_and_leaves_nothing_behind(
    tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    config = tmp_path / "strop.toml"
    config.write_text("[playground]\nport = 0\n")
    run_file = tmp_path / "home" / "playground" / "run" / "playground.json"
    process = await _start(tmp_path / "home", config)
    try:
        await until(run_file.exists, 60)
        record = json.loads(run_file.read_text())
        assert run_file.stat().st_mode & 0o777 == 0o600
        assert record["token"].startswith("playground.") and record["pid"] == process.pid
        async with http.get(record["url"] + "/") as response:
            assert response.status == 200
        headers = {"Authorization": f"Bot {record['token']}"}
        async with http.get(record["api"] + "/users/@me", headers=headers) as response:
            assert (await response.json())["id"] == str(community.BOT_ID)

        port = record["url"].rsplit(":", 1)[1]
        config.write_text(f"[playground]\nport = {port}\n")
        second = await _start(tmp_path / "other", config)
        _, complaint = await asyncio.wait_for(second.communicate(), 60)
        assert second.returncode == 2
        assert f"Port {port} on 127.0.0.1 is in use" in complaint.decode().splitlines()[-1]
    finally:
        process.terminate()
        _, log = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0
    assert not run_file.exists()
    state = json.loads((run_file.parent / "playground-state.json").read_text())
    assert state == {"token": record["token"], "commands": []}
    assert record["token"] not in log.decode() and record["secret"] not in log.decode()


async def test_votes_on_a_duel_are_counted_and_blind(loop_page: Page, database: Database) -> None:
    def add(db: Any) -> None:
        from storage.learning import adapters, runs

        run = runs.enqueue(db, scope=SCOPE, trigger="manual", requested_by="test")
        adapters.insert_candidate(
            db,
            adapter_id="a1",
            scope=SCOPE,
            base_hash=BASE_HASH,
            parent_id=None,
            run_id=run.id,
            path="adapters/a1",
            manifest={},
        )
        duels.add(
            db,
            duel_id="d1",
            run_id=run.id,
            scope=SCOPE,
            challenger_id="a1",
            champion_id=None,
            prompt=[{"role": "user", "content": "q"}],
            first_text="one",
            second_text="two",
            first_is_challenger=True,
        )

    await database.awrite(add)
    _, answer = await loop_page.call("GET", "/playground/duels")
    assert answer["open"] == 1
    duel = answer["duels"][0]
    assert (duel["first"], duel["second"]) == ("one", "two")
    assert not {"challenger_id", "first_is_challenger"} & duel.keys()
    vote = {"user_id": YOU, "choice": "second"}
    assert (await loop_page.call("POST", "/playground/duels/d1/votes", vote))[0] == 200
    tally = await database.aread(lambda db: duels.tally(db, duel["run_id"]))
    assert tally.outcomes == (-1,)
    assert (await loop_page.call("POST", "/playground/duels/none/votes", vote))[0] == 404
    assert (await loop_page.call("POST", "/playground/duels/d1/votes", {**vote, "choice": "x"}))[0] == 400
    await database.awrite(lambda db: duels.close(db, duel["run_id"]))
    status, refused = await loop_page.call("POST", "/playground/duels/d1/votes", {**vote, "choice": "first"})
    assert status == 409 and "Voting on this pair is over" in refused["error"]


async def test_the_command_line_gets_the_playgrounds_own_sentence(looped: Playground) -> None:
    async with PageClient(looped.base_url, looped.secret) as client:
        assert {taste["key"] for taste in await client.tastes()} >= {"warm"}
        with pytest.raises(RehearsalError, match="isn't connected"):
            await client.start_rehearsal("warm", 3)
    async with PageClient("http://127.0.0.1:9", "x") as client:
        with pytest.raises(RehearsalError, match="start it with"):
            await client.loop()


# ---------------------------------------------------------------- the sample community


def _sample_file(tmp_path: Path) -> Path:
    entries = [
        {
            "prompt": f"Question number {n}, about topic {n * 7}?",
            "replies": [
                {
                    "text": f"Answer {n}.{k}" + ("?" if k == 0 else " goes on " * 20),
                    "seed": k,
                    "finish_reason": "stop",
                    "prompt_tokens": 9,
                    "completion_tokens": 5,
                }
                for k in range(4)
            ],
        }
        for n in range(60)
    ]
    sample.rate_entries(entries, "short-question")
    made = {
        "format": sample.FORMAT,
        "base": {"id": "tiny", "hash": BASE_HASH},
        "taste": "short-question",
        "system_prompt": "Be kind.",
        "sampling": {"temperature": 1.0},
        "seed": sample.SEED,
        "raters": sample.RATERS,
        "conversations": entries,
    }
    path = tmp_path / "sample.json"
    path.write_text(json.dumps(made))
    return path


def test_loading_the_sample_twice_changes_nothing(database: Database, tmp_path: Path) -> None:
    path = _sample_file(tmp_path)
    load = lambda: sample.load_sample(  # noqa: E731
        database, BASE_HASH, SCOPE, community.GUILD_ID, community.REHEARSAL_ID, path=path
    )
    first, again = load(), load()
    assert (first.new, again.new, first.replies) == (240, 0, 240)
    counts = database.read(lambda db: ratings.counts(db, SCOPE))
    assert (counts.liked, counts.disliked) == (first.liked, first.disliked) == (again.liked, again.disliked)


def test_loading_the_sample_starts_no_run_by_itself_and_leaves_the_members_own_ratings_their_say(
    database: Database, tmp_path: Path
) -> None:
    path = _sample_file(tmp_path)
    load = lambda: sample.load_sample(  # noqa: E731
        database, BASE_HASH, SCOPE, community.GUILD_ID, community.REHEARSAL_ID, path=path
    )
    load()
    assert enqueue_due(database, TrainerConfig(), "ratings", 1) == []
    assert database.read(lambda db: runs.new_ratings(db, SCOPE, with_set_aside=True)) > 240
    database.write(_rated_reply)
    load()
    assert database.read(lambda db: runs.new_ratings(db, SCOPE)) == 1
    assert len(enqueue_due(database, TrainerConfig(), "ratings", 1)) == 1


def test_the_sample_is_labelled_and_may_train(database: Database, tmp_path: Path) -> None:
    path = _sample_file(tmp_path)
    sample.load_sample(database, BASE_HASH, SCOPE, community.GUILD_ID, community.REHEARSAL_ID, path=path)
    member = database.read(lambda db: members.get(db, sample.rater_id(0)))
    assert member is not None and member.simulated and member.source == "sample"
    assert member.display_name.endswith("(simulated)")
    eligible = database.read(lambda db: eligibility.eligible_rows(db, SCOPE, permission_reference=""))
    assert len(eligible.rows) == 240
    assert {row.source for row in eligible.rows} == {"sample"}
    shares = {split: sum(row.split == split for row in eligible.rows) / 240 for split in ("train", "gate")}
    assert 0.5 < shares["train"] < 0.9 and 0.05 < shares["gate"] < 0.4


def test_a_sample_of_another_base_is_refused_in_a_sentence(database: Database, tmp_path: Path) -> None:
    path = _sample_file(tmp_path)
    with pytest.raises(sample.SampleError, match="base model tiny, and another one is running"):
        sample.load_sample(database, "0" * 64, SCOPE, community.GUILD_ID, 1, path=path)
    path.write_text("{")
    with pytest.raises(sample.SampleError, match="missing or damaged"):
        sample.load_sample(database, BASE_HASH, SCOPE, community.GUILD_ID, 1, path=path)


def test_the_shipped_sample_is_enough_for_a_first_training_run(database: Database) -> None:
    shipped = sample.read_sample()
    loaded = sample.load_sample(
        database, shipped["base"]["hash"], SCOPE, community.GUILD_ID, community.REHEARSAL_ID
    )
    assert 220 <= loaded.replies <= 260
    eligible = database.read(lambda db: eligibility.eligible_rows(db, SCOPE, permission_reference=""))
    liked = [row for row in eligible.rows if sum(rating.value for rating in row.ratings) > 0]
    assert len(liked) >= 30
    assert sum(row.split == "train" for row in liked) >= 25
    assert eligible.raters >= 5
    assert {len(row.ratings) for row in eligible.rows} == {1, 2, 3, 4}
    assert max(len(row.text.split()) for row in eligible.rows) <= 40


def test_the_shipped_ratings_are_what_the_script_gives(database: Database) -> None:
    shipped = sample.read_sample()
    again = [
        {"prompt": entry["prompt"], "replies": [{"text": reply["text"]} for reply in entry["replies"]]}
        for entry in shipped["conversations"]
    ]
    sample.rate_entries(again, shipped["taste"], shipped["seed"])
    assert [[reply["ratings"] for reply in entry["replies"]] for entry in again] == [
        [reply["ratings"] for reply in entry["replies"]] for entry in shipped["conversations"]
    ]
