"""deploy/monitoring: all figures that rules and dashboard name are in a real scrape; promtool agrees."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families as read_text

from bot.serving.engine.metrics import Metrics
from bot.serving.protocol import QueueState
from bot.telemetry.exporter import MetricsExporter
from storage.db import sql
from storage.db.clock import DAY_MS
from storage.learning import adapters, runs
from storage.privacy import backup
from storage.sentences import Sentence
from tests.bot.conftest import Community
from tests.bot.fake_server import BASE_HASH, FakeModelServer
from tests.bot.telemetry.test_exporter import VLLM, exporter, free_port, listening, scraped

__all__ = ["exporter"]

ROOT = Path(__file__).parent.parent.parent.parent
MONITORING = ROOT / "deploy/monitoring"
RULES = yaml.safe_load((MONITORING / "strop.rules.yml").read_text())
DASHBOARD = json.loads((MONITORING / "grafana-dashboard.json").read_text())
NAME = re.compile(r"\b(?:strop_|vllm:)\w+")
# Where `make test-monitoring` keeps Debian's prometheus.
TOOLS = os.environ.get("TEST_PROMETHEUS", "")


def rules() -> list[dict[str, Any]]:
    return [rule for group in RULES["groups"] for rule in group["rules"]]


def strings(value: Any) -> Iterator[str]:
    """Every text in a nest of lists and tables."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (text for each in value.values() for text in strings(each))
    elif isinstance(value, list):
        yield from (text for each in value for text in strings(each))


async def lived_in(community: Community, model_server: FakeModelServer) -> None:
    """Bring about everything that a deployment can show: ratings of weeks, a champion, a run, a backup."""
    engine = Metrics()
    engine.count_request("complete")
    engine.observe_step(0.02)
    queue = VLLM.replace("running", "waiting")
    model_server.exposition = engine.render(running=1, queue=QueueState(people=3), adapters=2) + VLLM + queue
    await community.ann.send(community.channel, f"{community.mention} hello")
    await community.bob.react(community.messages()[0], "👍")
    scope = f"guild:{community.guild.id}"

    def past(db: Any) -> None:
        (reply,) = sql.many(db, "SELECT * FROM replies")
        (message,) = sql.many(db, "SELECT * FROM messages WHERE id = ?", (reply["message_id"],))
        (rating,) = sql.many(db, "SELECT * FROM ratings")
        for number in range(60):
            member = 100 + number % 6
            sql.insert(
                db,
                "members",
                {"user_id": member, "display_name": "x", "source": "discord", "created_ms": 0},
                on_conflict="DO NOTHING",
            )
            copied = {**message, "id": 1000 + number, "discord_id": None, "author_id": None}
            sql.insert(db, "messages", copied)
            sql.insert(db, "replies", {**reply, "id": f"past-{number}", "message_id": 1000 + number})
            at = rating["updated_ms"] - (1 + number // 6 % 2 * 14) * DAY_MS
            again = {**rating, "id": None, "reply_id": f"past-{number}", "user_id": member, "updated_ms": at}
            sql.insert(db, "ratings", again)
        adapters.insert_candidate(
            db, adapter_id="a" * 16, scope=scope, base_hash=BASE_HASH, path="adapters/a"
        )
        adapters.promote(
            db, scope=scope, base_hash=BASE_HASH, adapter_id="a" * 16, actor="test", reason="test"
        )
        runs.enqueue(db, scope=scope, trigger="manual", requested_by="test")
        run = runs.lease_next(db, "owner", 60_000)
        assert run is not None
        headline = {"value": 0.1, "low": 0.05, "high": 0.2, "n": 9}
        cost = {"seconds": 60.0, "cpu_s": 90.5, "peak_bytes": 2**30, "energy_j": 1234.5}
        measured = {"headline": headline, "process": cost}
        runs.finish(db, run.id, outcome="promoted", message=Sentence("yes"), metrics=measured)

    services = community.services
    await services.database.awrite(past)
    await asyncio.to_thread(backup.backup, services.database, services.config.backups / "one")


async def full_scrape(exporter: MetricsExporter) -> str:
    """A scrape with what is read behind the scrapes as well."""
    text = ""
    for _ in range(50):
        text, _ = await scraped(exporter)
        if "\nstrop_backup_timestamp_seconds " in text and "\nstrop_like_ratio{" in text:
            break
    return text


async def test_every_figure_that_is_named_is_in_a_real_scrape(
    community: Community, exporter: MetricsExporter, model_server: FakeModelServer
) -> None:
    await lived_in(community, model_server)
    text = await full_scrape(exporter)
    there = {sample.name for family in read_text(text) for sample in family.samples}
    named = {
        "rules": {name for rule in rules() for name in NAME.findall(rule["expr"])},
        "dashboard": {name for text in strings(DASHBOARD) for name in NAME.findall(text)},
    }
    assert len(named["rules"]) > 10 and len(named["dashboard"]) > 20
    for file, names in named.items():
        assert names - there == set(), file
    page = (ROOT / "deploy/MONITORING.md").read_text()
    for name in NAME.findall(page):
        assert any(each.startswith(name.rstrip("_")) for each in there), name


def test_every_alert_says_how_urgent_it_is_and_what_to_do() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names) >= 10
    for rule in rules():
        assert rule["labels"]["severity"] in ("page", "ticket", "info"), rule["alert"]
        assert rule["annotations"]["summary"].endswith("."), rule["alert"]
        assert rule["annotations"]["description"].endswith((".", "?")), rule["alert"]


def test_the_alerts_have_the_names_that_their_test_expects() -> None:
    tested = yaml.safe_load((ROOT / "tests/deploy/strop.rules.test.yml").read_text())["tests"]
    named = {case["alertname"] for test in tested for case in test["alert_rule_test"]}
    assert named <= {rule["alert"] for rule in rules()}


def test_the_dashboard_is_whole() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert {"source", "scope"} == {each["name"] for each in DASHBOARD["templating"]["list"]}
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert panel["title"] and panel["targets"] and not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


def promtool(*arguments: str, text: str | None = None) -> str:
    ran = subprocess.run(
        [f"{TOOLS}/promtool", *arguments], cwd=ROOT, input=text, capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


@pytest.mark.monitoring
def test_promtool_loads_the_configuration_and_the_rules_alarm_as_they_should() -> None:
    promtool("check", "config", "deploy/monitoring/prometheus.yml")
    promtool("test", "rules", "tests/deploy/strop.rules.test.yml")


@pytest.mark.monitoring
async def test_promtool_finds_nothing_to_say_about_a_scrape(
    community: Community, exporter: MetricsExporter, model_server: FakeModelServer
) -> None:
    await lived_in(community, model_server)
    text = await full_scrape(exporter)
    ours = "\n".join(line for line in text.splitlines() if "vllm:" not in line)
    assert await asyncio.to_thread(promtool, "check", "metrics", text=ours + "\n") == ""


@pytest.mark.monitoring
async def test_a_real_prometheus_scrapes_it(
    community: Community, exporter: MetricsExporter, model_server: FakeModelServer, tmp_path: Path
) -> None:
    await lived_in(community, model_server)
    target, port = (await listening(exporter)).removeprefix("http://").removesuffix("/metrics"), free_port()
    text = (MONITORING / "prometheus.yml").read_text()
    text = text.replace("127.0.0.1:9464", target).replace("interval: 30s", "interval: 1s")
    (tmp_path / "prometheus.yml").write_text(text)
    (tmp_path / "strop.rules.yml").write_text((MONITORING / "strop.rules.yml").read_text())
    server = await asyncio.create_subprocess_exec(
        f"{TOOLS}/prometheus",
        f"--config.file={tmp_path}/prometheus.yml",
        f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address=127.0.0.1:{port}",
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            found = await queried(session, "strop_like_ratio and on() strop_database_up == 1")
            assert float(found[0]["value"][1]) == 1.0
            async with session.get("/api/v1/rules") as response:
                groups = (await response.json())["data"]["groups"]
            assert {rule["name"] for rule in groups[0]["rules"]} == {rule["alert"] for rule in rules()}
    finally:
        server.terminate()
        await server.wait()


async def queried(session: aiohttp.ClientSession, question: str) -> list[dict[str, Any]]:
    """Ask until there is an answer."""
    for _ in range(60):
        await asyncio.sleep(0.5)
        try:
            async with session.get("/api/v1/query", params={"query": question}) as response:
                result: list[dict[str, Any]] = (await response.json())["data"]["result"]
        except (aiohttp.ClientError, KeyError, ValueError):
            continue
        if result:
            return result
    raise AssertionError(f"Prometheus knows nothing of {question}")
