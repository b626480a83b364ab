"""Alerts by webhook over a real socket: each once, again where it failed, and never the address in a log."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from typer.testing import CliRunner

from bot.admin.alert_destinations import AlertWebhook
from bot.admin.alerts import OperationsWatch
from bot.cli.app import app
from bot.delivery.webhook import Webhook, WebhookError
from storage.config import load_config
from storage.db import key_values
from storage.errors import ConfigError
from storage.learning import runs
from storage.process.locks import TRAINER_LOCK, ProcessLock
from storage.sentences import Sentence
from tests.bot.conftest import Community

SECRET = "T0KEN-of-the-operator"


class Receiver:
    """Somebody's webhook: what it got, and what it answers next (then 200)."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.asked: list[str] = []
        self.answers: list[int] = []
        self.url = ""

    async def take(self, request: web.Request) -> web.Response:
        self.asked.append(str(request.rel_url))
        status = self.answers.pop(0) if self.answers else 200
        if status == 200:
            self.got.append(await request.json())
        return web.Response(status=status)

    @property
    def lines(self) -> list[str]:
        return [line for message in self.got for line in message["lines"]]


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    server = web.Application()
    server.router.add_post("/{path:.*}", made.take)
    # Its own log would hold the secret that its clients' must not.
    runner = web.AppRunner(server, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hooks/{SECRET}"
    yield made
    await runner.cleanup()


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bot.admin.alerts.LOOK_S", 0.03)


def watch(community: Community, receiver: Receiver) -> OperationsWatch:
    destination = AlertWebhook(Webhook(receiver.url), first_retry_s=0.05)
    return OperationsWatch(community.services, community.bot, destination)


def fail_a_run(community: Community) -> str:
    def work(db: Any) -> str:
        scope = f"guild:{community.guild.id}"
        run = runs.enqueue(db, scope=scope, trigger="manual", requested_by="1")
        return runs.fail(db, run.id, error="E", message=Sentence("The server stayed away.")).id

    return community.services.database.write(work)


def noted(community: Community) -> str:
    return community.services.database.read(lambda db: key_values.get(db, AlertWebhook.fact) or "")


async def until(met: Any) -> None:
    for _ in range(300):
        if met():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not happen in time")


async def test_a_failed_run_is_told_once_and_a_restart_repeats_nothing(
    community: Community, receiver: Receiver
) -> None:
    first = watch(community, receiver)
    with ProcessLock(community.services.config.run / TRAINER_LOCK).acquire("{pid}"):
        first.start()
        await asyncio.sleep(0.2)
        run_id = fail_a_run(community)
        # What is stopped before it has kept note of what it told tells it again.
        await until(lambda: run_id in noted(community))
        await first.stop()
        again = watch(community, receiver)
        again.start()
        await asyncio.sleep(0.3)
        await again.stop()
    assert [run_id in line for line in receiver.lines].count(True) == 1
    (message,) = [each for each in receiver.got if run_id in each["text"]]
    assert message["source"] == "strop" and message["title"] and message["id"]
    assert message["text"] == "\n".join(message["lines"])


async def test_what_fails_is_tried_again_after_a_longer_wait_and_arrives_once(
    community: Community, receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    receiver.answers = [503, 429, 500]
    running = watch(community, receiver)
    with ProcessLock(community.services.config.run / TRAINER_LOCK).acquire("{pid}"):
        running.start()
        await asyncio.sleep(0.2)
        run_id = fail_a_run(community)
        await until(lambda: any(run_id in line for line in receiver.lines))
        await asyncio.sleep(0.2)
        await running.stop()
    assert [run_id in line for line in receiver.lines].count(True) == 1
    assert len(receiver.asked) == 4
    said = capsys.readouterr().out
    assert said.count("alerts.webhook_failed") == 3 and "127.0.0.1 answers 503" in said
    assert SECRET not in said and "retry_s=0.05" in said and "retry_s=0.2" in said


async def test_a_refusal_is_left_alone_for_an_hour(
    community: Community, receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    receiver.answers = [404] * 50
    running = watch(community, receiver)
    running.start()
    await asyncio.sleep(0.2)
    fail_a_run(community)
    await until(lambda: receiver.asked)
    await asyncio.sleep(0.3)
    await running.stop()
    assert len(receiver.asked) == 1
    assert "retry_s=3600" in capsys.readouterr().out


async def test_dead_processes_are_told_and_no_words_of_members_are(
    community: Community, receiver: Receiver
) -> None:
    await community.ann.send(community.channel, f"{community.mention} a very secret question")
    running = watch(community, receiver)
    running.start()
    await until(lambda: "⚠️ The trainer is not running." in receiver.lines)
    await running.stop()
    assert "secret question" not in json.dumps(receiver.got)
    assert "Hello there" not in json.dumps(receiver.got)


async def test_a_lost_connection_is_told_and_so_is_its_return(
    community: Community, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ProcessLock(community.services.config.run / TRAINER_LOCK).acquire("{pid}"):
        running = watch(community, receiver)
        running.start()
        await asyncio.sleep(0.2)
        known = community.bot.ws
        monkeypatch.setattr(community.bot, "ws", None)
        await until(lambda: "⚠️ The connection to Discord is lost." in receiver.lines)
        monkeypatch.setattr(community.bot, "ws", known)
        await until(lambda: "✅ The connection to Discord is back." in receiver.lines)
        await running.stop()


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/T0KEN", "http://[broken/T0KEN", "http://no such host/T0KEN"]
)
async def test_an_address_that_can_t_be_used_is_never_named(url: str) -> None:
    with pytest.raises(WebhookError) as failure:
        await Webhook(url).send(["hello"])
    assert "T0KEN" not in str(failure.value)
    assert "T0KEN" not in repr(Webhook(url))
    assert failure.value.__cause__ is None and failure.value.__suppress_context__


async def test_the_address_goes_through_the_proxy(receiver: Receiver) -> None:
    await Webhook("http://hooks.example/abc", receiver.url).send(["hello"])
    assert receiver.asked == ["http://hooks.example/abc"] or receiver.asked == ["/abc"]
    assert receiver.lines == ["hello"]


def test_the_configuration_takes_it_from_file_or_environment_and_shows_it_to_nobody(tmp_path: Any) -> None:
    path = tmp_path / "strop.toml"
    path.write_text(
        f'[alerts]\nwebhook = "https://hooks.example/{SECRET}"\n[network]\nproxy = "http://proxy:3128"\n'
    )
    config = load_config(path, {})
    webhook = Webhook.from_config(config)
    assert webhook == Webhook(f"https://hooks.example/{SECRET}", "http://proxy:3128")
    assert SECRET not in repr(config) and SECRET not in str(config.model_dump())
    environment = load_config(None, {"STROP_ALERTS_WEBHOOK": "https://other.example/x"})
    assert Webhook.from_config(environment) == Webhook("https://other.example/x")
    assert Webhook.from_config(load_config(None, {})) is None
    path.write_text(f'[alerts]\nwebhook = "hooks.example/{SECRET}"\n')
    with pytest.raises(ConfigError) as failure:
        load_config(path, {})
    assert "alerts.webhook" in str(failure.value) and SECRET not in str(failure.value)


async def test_doctor_sends_a_test_when_it_is_asked_to(receiver: Receiver, tmp_path: Any) -> None:
    (tmp_path / "strop.toml").write_text(f'[alerts]\nwebhook = "{receiver.url}"\n')

    def doctor(*arguments: str) -> list[dict[str, str]]:
        command = ["doctor", "--json", "--config", str(tmp_path / "strop.toml"), *arguments]
        ran = CliRunner().invoke(app, command, env={"STROP_HOME": str(tmp_path / "data")})
        assert SECRET not in ran.output
        return [check for check in json.loads(ran.output) if check["name"] == "alerts"]

    (only_said,) = await asyncio.to_thread(doctor)
    assert only_said["state"] == "note" and "127.0.0.1" in only_said["detail"] and not receiver.got
    (sent,) = await asyncio.to_thread(doctor, "--webhook")
    assert sent["state"] == "ok" and receiver.lines == ["This is a test: alerts of Strop arrive here."]
    receiver.answers = [404]
    (failed,) = await asyncio.to_thread(doctor, "--webhook")
    assert failed["state"] == "problem" and "answers 404" in failed["detail"] and failed["fix"]
