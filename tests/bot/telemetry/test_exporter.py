"""`/metrics` over a real socket: what Prometheus reads, by its own library's parsers."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import AsyncIterator
from statistics import median

import aiohttp
import pytest
from prometheus_client.core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from bot.client import StropClient
from bot.services import Services
from bot.serving.engine.metrics import Metrics
from bot.serving.protocol import QueueState
from bot.telemetry.exporter import MetricsExporter
from bot.telemetry.reading import Reader
from storage.config_sections import MetricsConfig
from storage.privacy import backup
from tests.bot.conftest import Community
from tests.bot.fake_server import FakeModelServer

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
VLLM = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="base"} 2.0
# HELP process_open_fds Number of open file descriptors.
# TYPE process_open_fds gauge
process_open_fds 99.0
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
async def exporter(community: Community) -> AsyncIterator[MetricsExporter]:
    reader = Reader(community.services, community.bot)
    made = MetricsExporter(MetricsConfig(port=free_port()), reader, retry_s=0.05)
    made.start()
    yield made
    await made.stop()


async def listening(exporter: MetricsExporter) -> str:
    for _ in range(500):
        if exporter.address is not None:
            break
        await asyncio.sleep(0.01)
    assert exporter.address is not None
    host, port = exporter.address
    return f"http://{host}:{port}/metrics"


async def scraped(exporter: MetricsExporter, accept: str = "") -> tuple[str, str]:
    """The exposition, and its content type."""
    url = await listening(exporter)
    async with aiohttp.ClientSession() as session, session.get(url, headers={"Accept": accept}) as response:
        assert response.status == 200
        return await response.text(), response.headers["Content-Type"]


async def families(exporter: MetricsExporter) -> dict[str, Metric]:
    text, _ = await scraped(exporter)
    return {family.name: family for family in read_text(text)}


async def families_with_server(exporter: MetricsExporter, *read_behind: str) -> dict[str, Metric]:
    """The families of a scrape that the model server and what is read behind the scrapes were in time for."""
    for _ in range(50):  # On a busy machine a scrape goes without them.
        found = await families(exporter)
        if value(found, "strop_process_up", process="model server") and found.keys() >= set(read_behind):
            break
    return found


def value(found: dict[str, Metric], name: str, **labels: str) -> float:
    """The one sample of this name with these labels."""
    matching = [
        sample
        for family in found.values()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    assert len(matching) == 1, (name, labels, matching)
    return float(matching[0].value)


async def a_rated_reply(community: Community) -> None:
    await community.ann.send(community.channel, f"{community.mention} a secret question")
    await community.bob.react(community.messages()[0], "👍")


async def test_replies_ratings_and_the_champion_are_shown(
    community: Community, exporter: MetricsExporter
) -> None:
    await a_rated_reply(community)
    scope = f"guild:{community.guild.id}"
    found = await families_with_server(exporter, "strop_like_ratio", "strop_data_bytes")
    assert value(found, "strop_replies_total", status="complete") == 1
    assert value(found, "strop_reply_seconds_count", part="whole") == 1
    assert value(found, "strop_reply_seconds_bucket", part="whole", le="+Inf") == 1
    assert value(found, "strop_ratings", scope=scope, kind="liked") == 1
    assert value(found, "strop_champion_info", scope=scope, adapter_id="base") == 1
    assert value(found, "strop_like_ratio", scope=scope) == 1
    assert value(found, "strop_runs_undecided", state="queued") == 0
    assert value(found, "strop_runs_total", outcome="failed") == 0
    assert value(found, "strop_process_up", process="model server") == 1
    assert value(found, "strop_process_up", process="trainer") == 0
    assert value(found, "strop_database_up") == 1
    assert value(found, "strop_data_bytes", part="database") > 4096
    assert value(found, "strop_disk_free_bytes") > 0
    assert value(found, "strop_process_memory_bytes", process="bot") > 10**7
    assert abs(value(found, "strop_last_rating_timestamp_seconds", scope=scope) - time.time()) < 60
    # A counter goes on, and does not count twice.
    await community.ann.send(community.channel, f"{community.mention} another")
    assert value(await families(exporter), "strop_replies_total", status="complete") == 2


async def test_every_name_follows_the_conventions_and_says_what_it_is(
    community: Community, exporter: MetricsExporter
) -> None:
    """https://prometheus.io/docs/practices/naming/ and the library's own strict parser."""
    await a_rated_reply(community)
    plain, content_type = await scraped(exporter)
    assert content_type.startswith("text/plain; version=0.0.4")
    strict, content_type = await scraped(exporter, OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    names = {family.name for family in read_openmetrics(strict)}
    assert {family.name for family in read_text(plain)} >= names - {"strop_build", "strop_champion"}
    for family in read_text(plain):
        assert family.documentation.endswith(".") or family.name.startswith("process_"), family.name
        assert re.fullmatch(r"(strop|process)_[a-z_]+", family.name)
        assert not re.search(r"_(ms|minutes|hours|days|percent|mb|count)$", family.name)
        if family.type == "counter":
            assert all(sample.name.endswith(("_total", "_created")) for sample in family.samples)
        else:
            assert not family.name.endswith("_total")


async def test_nobody_is_in_the_figures(community: Community, exporter: MetricsExporter) -> None:
    await a_rated_reply(community)
    text, _ = await scraped(exporter)
    assert "secret" not in text and "ann" not in re.sub(r"^#.*$", "", text, flags=re.MULTILINE)
    for person in (community.ann, community.bob):
        assert str(person.id) not in text


async def test_what_the_model_server_says_of_itself_is_passed_on(
    community: Community, exporter: MetricsExporter, model_server: FakeModelServer
) -> None:
    engine = Metrics()
    engine.count_request("complete")
    engine.observe_step(0.02)
    model_server.exposition = engine.render(running=1, queue=QueueState(people=3), adapters=2) + VLLM
    found = await families_with_server(exporter)
    assert value(found, "strop_requests_waiting", priority="people") == 3
    assert value(found, "strop_step_seconds_bucket", le="0.025") == 1
    assert found["strop_requests"].documentation
    assert value(found, "vllm:num_requests_running") == 2
    # The server's own process is not taken for the bot's.
    assert value(found, "process_open_fds") != 99


async def test_a_model_server_that_is_away_or_talks_nonsense_costs_only_its_own_figures(
    community: Community, exporter: MetricsExporter, model_server: FakeModelServer
) -> None:
    model_server.exposition = 'strop_requests_total{outcome="complete'
    found = await families_with_server(exporter)
    assert value(found, "strop_process_up", process="model server") == 1
    await model_server.stop()
    found = await families(exporter)
    assert value(found, "strop_process_up", process="model server") == 0
    assert value(found, "strop_database_up") == 1


async def test_a_database_that_is_closed_costs_only_its_own_figures(
    community: Community, exporter: MetricsExporter
) -> None:
    await asyncio.to_thread(community.services.database.close)
    found = await families(exporter)
    assert value(found, "strop_database_up") == 0
    assert "strop_ratings" not in found
    assert value(found, "strop_process_up", process="bot") == 1


async def test_only_a_backup_that_is_whole_counts(community: Community, exporter: MetricsExporter) -> None:
    assert "strop_backup_timestamp_seconds" not in await families(exporter)
    services = community.services
    folder = services.config.backups / "one"
    await asyncio.to_thread(backup.backup, services.database, folder)

    for _ in range(50):  # It is read behind the scrapes.
        if "strop_backup_timestamp_seconds" in (found := await families(exporter)):
            break
    assert value(found, "strop_backup_timestamp_seconds") > time.time() - 60
    with (folder / "strop.db").open("r+b") as damaged:
        damaged.write(b"not a database")
    fresh = MetricsExporter(MetricsConfig(port=free_port()), Reader(services, community.bot))
    fresh.start()
    assert "strop_backup_timestamp_seconds" not in await families(fresh)
    await fresh.stop()


async def test_a_port_in_use_is_said_and_taken_once_it_is_free(
    community: Community, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        exporter = MetricsExporter(
            MetricsConfig(port=port), Reader(community.services, community.bot), retry_s=0.05
        )
        exporter.start()
        await asyncio.sleep(0.3)
        assert exporter.address is None
    said = capsys.readouterr().out
    assert f"No metrics: 127.0.0.1:{port} can't be used" in said and "metrics.port" in said
    assert (await families(exporter))["strop_database_up"]
    await exporter.stop()


async def test_without_a_port_nothing_listens(services: Services, simcord_bot: StropClient) -> None:
    exporter = MetricsExporter(MetricsConfig(), Reader(services, simcord_bot))
    exporter.start()
    await asyncio.sleep(0.05)
    assert exporter.address is None
    await exporter.stop()


async def test_a_scrape_leaves_the_event_loop_free(community: Community, exporter: MetricsExporter) -> None:
    """Processor time of the loop's thread between two of its turns, which no busy machine adds to.

    A collection of garbage, which may fall into any turn, falls into few of the scrapes.
    """
    await a_rated_reply(community)
    await families(exporter)
    longest_s = [0.0] * 10

    async def watch(number: int) -> None:
        while True:
            before = time.thread_time()
            await asyncio.sleep(0)
            longest_s[number] = max(longest_s[number], time.thread_time() - before)

    for number in range(10):
        watcher = asyncio.create_task(watch(number))
        await scraped(exporter)
        watcher.cancel()
    print(f"the longest turn of the event loop, by scrape: {[f'{each * 1000:.1f} ms' for each in longest_s]}")
    assert 0 < median(longest_s) < 0.010


async def test_the_figures_are_there_before_discord_is(services: Services, simcord_bot: StropClient) -> None:
    """An alarm for a lost connection needs somebody who tells of it."""
    exporter = MetricsExporter(MetricsConfig(port=free_port()), Reader(services, simcord_bot))
    exporter.start()
    found = await families(exporter)
    assert value(found, "strop_gateway_connected", shard="0") == 0
    await exporter.stop()
