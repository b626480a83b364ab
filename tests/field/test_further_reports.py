"""The fourth round of reports in README.md here, one test a report."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
import sys
import zoneinfo
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import discord
import pytest
from aiohttp import web
from simcord.backend.models.channel import Overwrite
from simcord.enums import OverwriteType

from bot.diagnostics.doctor import examine
from bot.feedback.reactions import RatingRecorder
from bot.serving.client import ModelClient
from bot.serving.endpoint import Endpoint
from bot.serving.errors import RequestRejectedError, ServingError, UnknownModelError
from bot.serving.model.lora.foreign import check_base, check_fits, read_foreign
from bot.serving.protocol import ChatMessage, Sampling
from storage.config import load_config
from storage.cron import time_zone
from storage.db.database import Database
from storage.feedback import ratings
from storage.learning import eligibility
from tests.bot.admin.test_settings import put
from tests.bot.conftest import Community
from tests.bot.fake_server import FakeModelServer
from tests.field.listening import listening
from tests.field.test_machines import ROOT, strop

CONTENT = pytest.mark.parametrize("settings", ["[discord]\nmessage_content = true"], indirect=True)
ANSWER = "Hello there, friend."


# ----------------------------------------------------------------------------------------------- on Discord
def close_to(community: Community, channel: Any, target_id: int, kind: OverwriteType) -> None:
    """Take the permission to join a voice channel, which everybody still sees in the list."""
    denied = Overwrite(target_id, kind, deny=discord.Permissions(connect=True).value)
    community.env.backend.edit_channel(channel.id, {}, overwrites=[denied])


def excluded(community: Community) -> dict[str, int]:
    scope = f"guild:{community.guild.id}"
    return community.services.database.read(
        lambda db: eligibility.eligible_rows(db, scope, permission_reference="")
    ).excluded


async def test_the_text_of_a_voice_channel_that_not_everybody_may_join_never_trains(
    community: Community,
) -> None:
    voice = community.guild.create_voice_channel("Board")
    await community.ann.send(voice, f"{community.mention} hello")
    await community.bob.react(community.messages(voice)[0], "👍")
    assert excluded(community) == {}
    close_to(community, voice, community.guild.id, OverwriteType.ROLE)
    await community.env.settle()
    assert excluded(community) == {"not_public": 1}


async def test_a_voice_channel_that_the_bot_may_not_join_is_named_with_the_permission(
    community: Community,
) -> None:
    voice = community.guild.create_voice_channel("Board")
    assert community.bot.user is not None
    close_to(community, voice, community.bot.user.id, OverwriteType.MEMBER)
    await community.ann.send(voice, f"{community.mention} hello")
    assert community.said(voice) == []
    (told,) = community.said(community.ann.user.dm_channel)
    assert "**Connect**" in told


async def test_a_super_reaction_is_a_rating_that_no_comparison_takes_back(
    community: Community, monkeypatch: pytest.MonkeyPatch
) -> None:
    await community.ann.send(community.channel, f"{community.mention} hello")
    (answer,) = community.messages()
    await community.ann.react(answer, "👍")
    _as_super_reactions(community, monkeypatch, {community.ann.id})
    with community.unheard() as backend:
        backend.set_reaction(community.channel.id, answer.id, "👍", community.bob.id, True)

    assert await community.bot.feature(RatingRecorder).reconcile() == 1
    reply_id = community.replies()[0].id
    stored = community.services.database.read(lambda db: ratings.list_for_reply(db, reply_id))
    assert {each.user_id for each in stored if not each.retracted} == {community.ann.id, community.bob.id}


def _as_super_reactions(community: Community, monkeypatch: pytest.MonkeyPatch, members: set[int]) -> None:
    """Have Discord count and list what some members gave apart from the rest, as it does super reactions."""
    http = community.bot.http
    get_message, get_users = http.get_message, http.get_reaction_users

    async def counted(*arguments: Any) -> Any:
        message = await get_message(*arguments)
        for each in message["reactions"]:
            each["count_details"] = {"normal": each["count"] - len(members), "burst": len(members)}
        return message

    async def listed(*arguments: Any, type: int | None = None, **options: Any) -> Any:
        users = await get_users(*arguments, **options)
        return [each for each in users if (int(each["id"]) in members) == (type == 1)]

    monkeypatch.setattr(http, "get_message", counted)
    monkeypatch.setattr(http, "get_reaction_users", listed)


@pytest.mark.parametrize(("status", "code"), [(400, 50083), (403, 160005)], ids=["archived", "locked"])
async def test_a_thread_that_is_closed_while_the_bot_writes_ends_the_reply_at_once(
    community: Community, model_server: FakeModelServer, status: int, code: int
) -> None:
    model_server.answer, model_server.pause_s = "one two three four five six seven eight", 0.1
    community.env.inject_error("PATCH", "/channels/*/messages/*", status=status, code=code, times=None)
    await community.ann.send(community.channel, f"{community.mention} hello")
    await community.env.settle()
    (reply,) = community.replies()
    assert (reply.status, reply.error) == ("failed", "ThreadClosedError")
    tried = [request for request in community.env.http_requests if request.method == "PATCH"]
    # An edit on the way and the last one, not half a minute of them; and nobody lacks a permission.
    assert 1 <= len(tried) <= 2 and community.said(community.ann.user.dm_channel) == []


@pytest.mark.parametrize("kind", ["stage", "news"])
async def test_the_chat_of_a_stage_and_an_announcement_channel_are_channels(
    community: Community, kind: str
) -> None:
    create = getattr(community.guild, f"create_{kind}_channel")
    channel = create("Town hall")
    await community.ann.send(channel, f"{community.mention} hello")
    assert community.said(channel) == [ANSWER]


@CONTENT
async def test_what_somebody_said_who_has_left_is_still_read(
    community: Community, model_server: FakeModelServer
) -> None:
    bobs = await community.bob.send(community.channel, "I was first.")
    community.guild.remove_member(community.bob)
    await community.ann.send(community.channel, f"{community.mention} who?", reply_to=bobs)
    assert model_server.prompt()[-1]["content"] == "bob: I was first.\nann: who?"


async def test_a_server_that_sends_single_characters_costs_no_more_edits_than_any(
    community: Community, model_server: FakeModelServer
) -> None:
    model_server.answer = " ".join("abcdefghij"[place % 10] for place in range(3000))
    await community.ann.send(community.channel, f"{community.mention} hello")
    await community.env.settle()
    assert "".join(community.said()).count(" ") > 2900
    calls = [each for each in community.env.http_requests if each.path.startswith("/channels/")]
    assert len(calls) < 20


async def test_after_a_reply_that_failed_the_next_question_is_asked_alone(
    community: Community, model_server: FakeModelServer
) -> None:
    put(community, "triggers", "mention reply thread every")
    model_server.answers_before_refusing = 0
    await community.ann.send(community.channel, f"{community.mention} hello")
    model_server.answers_before_refusing = None
    await community.ann.send(community.channel, f"{community.mention} hello again")
    assert [message["role"] for message in model_server.prompt()] == ["system", "user"]
    assert community.said()[-1] == ANSWER


# ------------------------------------------------------------------------------------------- other servers
class StrictServer:
    """A server whose template knows no system role and wants turns to alternate, as it says it."""

    def __init__(self, status: int, refusal: str) -> None:
        self.status, self.refusal = status, refusal
        self.asked: list[list[str]] = []
        self.texts: list[str] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        messages = (await request.json())["messages"]
        roles = [message["role"] for message in messages]
        self.asked.append(roles)
        if "system" in roles:
            kind = "text/event-stream" if self.status == 200 else "application/json"
            return web.Response(status=self.status, text=self.refusal, content_type=kind)
        self.texts = [message["content"] for message in messages]
        if request.path == "/tokenize":
            return web.json_response({"tokens": [1, 2], "count": 2})
        choice = {"index": 0, "delta": {"content": "Hi"}, "finish_reason": "stop"}
        return web.Response(
            text=f"data: {json.dumps({'choices': [choice]})}\n\ndata: [DONE]\n\n",
            content_type="text/event-stream",
        )


REFUSALS = {
    "vllm before 0.10": (400, '{"object": "error", "message": "System role not supported", "code": 400}'),
    "vllm": (400, '{"error": {"message": "System role not supported System role not supported"}}'),
    "llama.cpp": (500, '{"error": {"code": 500, "message": "Jinja: Conversation roles must alternate"}}'),
    "fastapi": (400, '{"detail": "Only user and assistant roles are supported!"}'),
    "in the stream": (200, 'data: {"object": "error", "message": "System role not supported"}\n\n'),
}


@pytest.fixture
async def strict_server(request: pytest.FixtureRequest) -> AsyncIterator[StrictServer]:
    server = StrictServer(*REFUSALS[request.param])
    async with listening(server.answer) as server.url:
        yield server


PERSONA = [ChatMessage("system", "Be kind."), ChatMessage("user", "hello")]


@pytest.mark.parametrize("strict_server", list(REFUSALS), indirect=True)
async def test_a_server_without_a_system_role_gets_the_persona_in_the_first_turn(
    strict_server: StrictServer,
) -> None:
    async with ModelClient(strict_server.url) as client:
        for _ in range(2):
            said = await client.chat(model="m", messages=PERSONA, sampling=Sampling(5))
            assert said.text == "Hi"
        assert await client.count_tokens(model="m", messages=PERSONA) == 2
    # It is refused once, then remembered, for counting as well.
    assert strict_server.asked == [["system", "user"], ["user"], ["user"], ["user"]]
    assert strict_server.texts == ["Be kind.\n\nhello"]


@pytest.mark.parametrize("strict_server", ["vllm before 0.10"], indirect=True)
async def test_an_error_that_is_the_answer_itself_keeps_its_sentence(strict_server: StrictServer) -> None:
    strict_server.refusal = '{"object": "error", "message": "the context is full", "code": 400}'
    async with ModelClient(strict_server.url) as client:
        with pytest.raises(RequestRejectedError, match="the context is full"):
            await client.chat(model="m", messages=PERSONA, sampling=Sampling(5))
    assert len(strict_server.asked) == 1


async def test_a_server_that_reads_a_long_prompt_in_silence_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ours sends a comment line every few seconds; others send nothing until the first word."""
    monkeypatch.setattr("bot.serving.connection.SILENCE_LIMIT_S", 0.05)
    read_to_the_end = b'{"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}]}'

    async def slowly(_: web.Request) -> web.Response:
        await asyncio.sleep(0.3)
        return web.Response(body=read_to_the_end, content_type="application/json")

    async with listening(slowly) as url:
        async with ModelClient(url) as client:
            assert (await client.chat(model="m", messages=PERSONA, sampling=Sampling(5))).text == "Hi"
        async with ModelClient(url, secret="ours") as client:
            with pytest.raises(ServingError):
                await client.chat(model="m", messages=PERSONA, sampling=Sampling(5))
    assert not Endpoint(url, "secret", engine="vllm").sends_comments


@pytest.mark.parametrize(
    ("listed", "wanted", "first"),
    [
        ('[{"id": "qwen3:8b"}, {"id": "llama3.2:latest"}]', "", "qwen3:8b"),
        ('[{"id": "qwen3:8b"}, {"id": "llama3.2:latest"}]', "llama3.2", "llama3.2:latest"),
        ('[{"id": "qwen3:8b"}, {"id": "llama3.2:latest"}]', "llama3.2:latest", "llama3.2:latest"),
        ("[]", "loaded/on-demand", "loaded/on-demand"),
        ("null", "loaded/on-demand", "loaded/on-demand"),
    ],
)
async def test_of_a_server_s_models_the_configured_one_is_asked(listed: str, wanted: str, first: str) -> None:
    """Ollama lists what was pulled last first; servers that load on demand list nothing."""
    async with served(f'{{"data": {listed}}}') as url:
        async with ModelClient(url, model=wanted) as client:
            assert (await client.models())[0] == first
        if listed.startswith("[{"):
            async with ModelClient(url, model="gemma3") as client:
                with pytest.raises(UnknownModelError, match=r"no model gemma3; it has qwen3:8b, llama3\.2"):
                    await client.models()


@asynccontextmanager
async def served(body: str) -> AsyncIterator[str]:
    """Yield the address of a server that has one answer."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(text=body, content_type="application/json")

    async with listening(answer) as url:
        yield url


# ------------------------------------------------------------------------------------------------ machines
def test_time_zones_are_known_on_a_system_that_has_none() -> None:
    """Slim images come without /usr/share/zoneinfo."""
    zoneinfo.reset_tzpath(to=[])
    zoneinfo.ZoneInfo.clear_cache()
    try:
        assert time_zone("America/Toronto").key == "America/Toronto"
    finally:
        zoneinfo.reset_tzpath()


LEAVES_A_LOG = """
import os, signal, sys
from pathlib import Path
from storage.db import key_values
from storage.db.database import Database
database = Database.open(Path(sys.argv[1]))
for number in range(3):
    database.write(lambda db: [key_values.put(db, f"{number} {each}", "w" * 3000) for each in range(600)])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_copy_that_is_put_beside_a_write_ahead_log_is_called_damaged(tmp_path: Path) -> None:
    """The log of the file that was there before is laid over the copy."""
    config = load_config(tmp_path / "strop.toml", {"STROP_HOME": str(tmp_path / "data")})
    path = config.database
    path.parent.mkdir(parents=True)
    with Database.open(path):
        pass
    shutil.copy(path, tmp_path / "copy.db")
    ended = subprocess.run(
        [sys.executable, "-c", LEAVES_A_LOG, str(path)], env={"PYTHONPATH": str(ROOT)}, cwd=tmp_path
    )
    assert ended.returncode == -signal.SIGKILL and path.with_name("strop.db-wal").stat().st_size > 100_000
    shutil.copy(tmp_path / "copy.db", path)
    (found,) = [check for check in examine(config) if check.name == "database"]
    assert found.state == "problem" and "strop restore" in found.fix and "\n" not in found.detail


@pytest.mark.parametrize(
    "command", [("import", "chats.jsonl"), ("adapters", "import", "lora")], ids=["file", "adapter"]
)
def test_what_is_wrong_with_an_import_is_said_before_the_first_start(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    said = strop("bot.cli", *command, folder=tmp_path, STROP_HOME=str(tmp_path / "data"))
    assert said.returncode != 0 and command[-1].encode() in said.stderr
    assert b"Traceback" not in said.stderr and b"no data" not in said.stderr


# What people's adapter_config.json held, as far as it is no plain setting.
NEWER_PEFT = {
    "corda_config": None,
    "eva_config": None,
    "exclude_modules": None,
    "trainable_token_indices": None,
    "lora_bias": False,
    "layer_replication": None,
    "megatron_core": "megatron.core",
    "rank_pattern": {},
    "revision": "unsloth",
    "use_rslora": True,
}
OLDEST_PEFT = {"enable_lora": None, "merge_weights": False, "modules_to_save": None}


@pytest.mark.parametrize("extra", [NEWER_PEFT, OLDEST_PEFT], ids=["newer", "oldest"])
def test_settings_of_other_versions_that_are_unset_and_endings_of_precision_refuse_no_adapter(
    tmp_path: Path, extra: dict[str, Any]
) -> None:
    shapes = {"A": [2, 4], "B": [4, 2]}
    tensors = {
        f"base_model.model.model.layers.0.q_proj.lora_{half}.weight": {
            "dtype": "F32",
            "shape": shape,
            "data_offsets": [32 * place, 32 * (place + 1)],
        }
        for place, (half, shape) in enumerate(shapes.items())
    }
    header = json.dumps(tensors).encode()
    weights = len(header).to_bytes(8, "little") + header + bytes(64)
    (tmp_path / "adapter_model.safetensors").write_bytes(weights)
    plain = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 16, "lora_dropout": 0}
    named = {"base_model_name_or_path": "unsloth/SmolLM2-135M-Instruct-bnb-4bit"}
    (tmp_path / "adapter_config.json").write_text(json.dumps({**plain, **named, **extra}))
    adapter = read_foreign(tmp_path)
    check_base(adapter, ["HuggingFaceTB/SmolLM2-135M-Instruct"])
    check_fits(adapter, {"model.layers.0.q_proj": (4, 4)})
