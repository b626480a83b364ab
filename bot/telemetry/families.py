"""The names under which Prometheus knows the figures: https://prometheus.io/docs/practices/naming/.

Label values are few by construction: at most `MOST_SCOPES` scopes, and the ids of their champions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate

import structlog
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.parser import text_string_to_metric_families

from bot.gateway.state import GatewayState
from bot.telemetry.snapshot import DiskState, ServerState, Snapshot
from storage.telemetry.counts import Counts, ScopeCounts, Trend
from storage.telemetry.reply_totals import BUCKETS_S, Histogram, ReplyTotals

BASE_MODEL = "base"
# What a model server says of itself, ours and vLLM's; its process would be taken for the bot's.
SERVER_PREFIXES = ("strop_", "vllm:")

_log = structlog.get_logger(__name__)
Labelled = Iterable[tuple[Sequence[str], float | None]]


def families(snapshot: Snapshot) -> Iterator[Metric]:
    """Yield every metric family of one moment; what is not known has no sample."""
    yield InfoMetricFamily("strop_build", "The version of Strop that runs.", {"version": snapshot.version})
    yield _gauge("strop_start_timestamp_seconds", "When the bot was started.", snapshot.started_ms / 1000)
    known = snapshot.counts is not None
    yield _gauge("strop_database_up", "Whether the database can be read: 1 or 0.", float(known))
    yield _gauges(
        "strop_process_up",
        "Whether a process of the deployment works: 1 or 0.",
        ["process"],
        [
            (["bot"], 1.0),
            (["model server"], float(snapshot.server.up)),
            (["trainer"], float(snapshot.trainer_up)),
        ],
    )
    yield _gauges(
        "strop_process_memory_bytes",
        "Memory of each process (PSS: shared pages counted once), where the system tells it.",
        ["process"],
        [([name], float(size)) for name, size in snapshot.memory.items()],
    )
    yield from _gateway(snapshot.gateway)
    yield from _replies(snapshot.replies)
    if snapshot.counts is not None:
        yield from _learning(snapshot.counts)
        yield from _scopes(snapshot.counts)
    yield from _trends(snapshot.trends)
    if snapshot.disk is not None:
        yield from _disk(snapshot.disk)
    yield from _server(snapshot.server)


def _gateway(state: GatewayState) -> Iterator[Metric]:
    yield _gauges(
        "strop_gateway_connected",
        "Whether a shard is connected to Discord's gateway: 1 or 0.",
        ["shard"],
        [([str(shard)], float(up)) for shard, (up, _) in state.shards.items()],
    )
    yield _gauges(
        "strop_gateway_latency_seconds",
        "Round trip of the latest heartbeat of a shard's gateway connection.",
        ["shard"],
        [([str(shard)], latency) for shard, (_, latency) in state.shards.items()],
    )
    yield _gauge("strop_gateway_guilds", "Servers that the bot is in.", state.guilds)
    yield _counters(
        "strop_gateway_malformed_events_total",
        "Gateway events that could not be read, since the bot's start.",
        ["event"],
        [([event], count) for event, count in state.malformed.items()],
    )


def _replies(totals: ReplyTotals) -> Iterator[Metric]:
    yield _counters(
        "strop_replies_total",
        "Replies that ended, since the bot's start, by how: complete, stopped, failed.",
        ["status"],
        [([status], count) for status, count in totals.by_status.items()],
    )
    family = HistogramMetricFamily(
        "strop_reply_seconds",
        "How long replies took: until the model was asked (queue), until the first token, and the whole.",
        labels=["part"],
    )
    for part, histogram in totals.parts.items():
        family.add_metric([part], _buckets(histogram), histogram.sum_s)
    yield family
    yield _counter(
        "strop_reply_prompt_tokens_total",
        "Tokens of the prompts of replies, since the bot's start.",
        totals.prompt_tokens,
    )
    yield _counter(
        "strop_reply_completion_tokens_total",
        "Tokens of the replies, since the bot's start.",
        totals.completion_tokens,
    )


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    bounds = [*map(str, BUCKETS_S), "+Inf"]
    return list(zip(bounds, map(float, accumulate(histogram.counts)), strict=True))


def _learning(counts: Counts) -> Iterator[Metric]:
    yield _counters(
        "strop_runs_total",
        "Training runs that are decided, over the deployment's life, by outcome.",
        ["outcome"],
        [
            ([outcome], counts.runs.get(outcome, 0))
            for outcome in ("promoted", "refused", "not_yet", "failed", "cancelled")
        ],
    )
    yield _gauges(
        "strop_runs_undecided",
        "Training runs that are not decided, by state: queued, running, awaiting_votes.",
        ["state"],
        [
            (["queued"], counts.queued),
            (["running"], counts.running),
            (["awaiting_votes"], counts.awaiting_votes),
        ],
    )
    yield _counters(
        "strop_promotions_total",
        "Changes of champion, over the deployment's life, by kind.",
        ["kind"],
        [([kind], counts.promotions.get(kind, 0)) for kind in ("promote", "rollback", "erase", "initial")],
    )
    yield _gauges(
        "strop_trials",
        "Trials that are on: canaries and holdbacks.",
        ["kind"],
        [([kind], counts.trials.get(kind, 0)) for kind in ("canary", "holdback")],
    )


def _scopes(counts: Counts) -> Iterator[Metric]:
    scopes = counts.scopes
    yield _gauges(
        "strop_ratings",
        "Ratings in force, by kind: liked, disliked, correction.",
        ["scope", "kind"],
        [
            ([each.scope, kind], value)
            for each in scopes
            for kind, value in (
                ("liked", each.liked),
                ("disliked", each.disliked),
                ("correction", each.corrections),
            )
        ],
    )
    yield _counters(
        "strop_rating_changes_total",
        "Ratings given or changed, over the deployment's life.",
        ["scope"],
        [([each.scope], each.changes) for each in scopes],
    )
    yield _by_scope("strop_raters", "Members who rate.", {each.scope: each.raters for each in scopes})
    yield _by_scope(
        "strop_last_rating_timestamp_seconds",
        "When a reply was last rated.",
        {each.scope: _seconds(each.last_rating_ms) for each in scopes},
    )
    champions = InfoMetricFamily("strop_champion", "Which adapter answers.", labels=["scope"])
    for each in scopes:
        named = {"adapter_id": each.adapter_id or BASE_MODEL, "base": counts.base_hash[:12]}
        champions.add_metric([each.scope], named)
    yield champions
    yield _by_scope(
        "strop_champion_since_timestamp_seconds",
        "When the adapter that answers was promoted.",
        {each.scope: _seconds(each.champion_since_ms) for each in scopes},
    )
    yield from _last_runs(scopes)


def _last_runs(scopes: Sequence[ScopeCounts]) -> Iterator[Metric]:
    last = {each.scope: each.last_run for each in scopes if each.last_run is not None}
    yield _by_scope(
        "strop_last_run_timestamp_seconds",
        "When the last training run ended.",
        {scope: _seconds(run.finished_ms) for scope, run in last.items()},
    )
    yield _by_scope(
        "strop_last_run_duration_seconds",
        "How long the last training run took.",
        {
            scope: (run.finished_ms - run.started_ms) / 1000
            for scope, run in last.items()
            if run.finished_ms is not None and run.started_ms is not None
        },
    )
    costs = {scope: run.metrics.process for scope, run in last.items() if run.metrics.process is not None}
    yield _by_scope(
        "strop_last_run_cpu_seconds",
        "Processor time of the last training run.",
        {scope: cost.cpu_s for scope, cost in costs.items()},
    )
    yield _by_scope(
        "strop_last_run_peak_memory_bytes",
        "Resident memory of the last training run at its peak.",
        {scope: float(cost.peak_bytes) for scope, cost in costs.items()},
    )
    yield _by_scope(
        "strop_last_run_energy_joules",
        "What the machine's processors used during the last training run, where they tell it.",
        {scope: cost.energy_j for scope, cost in costs.items()},
    )
    gains = {scope: run.metrics.headline for scope, run in last.items() if run.metrics.headline is not None}
    yield _by_scope(
        "strop_last_run_gain_ratio",
        "The gain in predicted P(liked) that the last run measured.",
        {scope: gain.value for scope, gain in gains.items()},
    )
    yield _by_scope(
        "strop_last_run_gain_lower_ratio",
        "The lower end of that gain's interval.",
        {scope: gain.low for scope, gain in gains.items()},
    )
    yield _by_scope(
        "strop_last_run_gain_upper_ratio",
        "The upper end of that gain's interval.",
        {scope: gain.high for scope, gain in gains.items()},
    )


def _trends(trends: Mapping[str, Trend]) -> Iterator[Metric]:
    rates = {scope: trend.lately for scope, trend in trends.items() if trend.lately is not None}
    yield _by_scope(
        "strop_like_ratio",
        "The share of the last 28 days' ratings that like the reply.",
        {scope: rate.share for scope, rate in rates.items()},
    )
    yield _by_scope(
        "strop_like_lower_ratio",
        "The lower end of that share's 95 % interval (Wilson).",
        {scope: rate.interval[0] for scope, rate in rates.items()},
    )
    yield _by_scope(
        "strop_like_upper_ratio",
        "The upper end of that share's 95 % interval (Wilson).",
        {scope: rate.interval[1] for scope, rate in rates.items()},
    )
    drifts = {scope: trend.drift for scope, trend in trends.items() if trend.drift is not None}
    yield _by_scope(
        "strop_like_change_ratio",
        "The like rate of the last 7 days less that of the 28 days before.",
        {scope: drift.change for scope, drift in drifts.items()},
    )
    yield _by_scope(
        "strop_like_change_lower_ratio",
        "The lower end of that change's 99.5 % interval: above 0, the like rate rose.",
        {scope: drift.low for scope, drift in drifts.items()},
    )
    yield _by_scope(
        "strop_like_change_upper_ratio",
        "The upper end of that change's 99.5 % interval: below 0, the like rate fell.",
        {scope: drift.high for scope, drift in drifts.items()},
    )


def _disk(disk: DiskState) -> Iterator[Metric]:
    yield _gauge("strop_disk_size_bytes", "Size of the disk of the data folder.", disk.total_bytes)
    yield _gauge("strop_disk_free_bytes", "Free room on the disk of the data folder.", disk.free_bytes)
    yield _gauges(
        "strop_data_bytes",
        "Size of the data by part: database, adapters, runs, models, backups.",
        ["part"],
        [([part], size) for part, size in disk.parts.items()],
    )
    if disk.backup_ms is not None:
        yield _gauge(
            "strop_backup_timestamp_seconds",
            "When the newest backup that is whole was made.",
            disk.backup_ms / 1000,
        )


def _server(server: ServerState) -> Iterator[Metric]:
    if server.up:
        yield _gauges(
            "strop_model_server_requests",
            "Requests that the model server works on or lets wait, as its health tells them.",
            ["state"],
            [(["running"], server.running), (["waiting"], server.waiting)],
        )
    try:
        yield from [
            family
            for family in text_string_to_metric_families(server.exposition)
            if family.name.startswith(SERVER_PREFIXES)
        ]
    except (ValueError, LookupError) as error:
        _log.warning("metrics.server_unreadable", error=type(error).__name__)


def _seconds(time_ms: int | None) -> float | None:
    return None if time_ms is None else time_ms / 1000


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(name, about, value=value)


def _by_scope(name: str, about: str, values: Mapping[str, float | None]) -> Metric:
    return _gauges(name, about, ["scope"], [([scope], value) for scope, value in values.items()])


def _gauges(name: str, about: str, labels: Sequence[str], values: Labelled) -> Metric:
    family = GaugeMetricFamily(name, about, labels=labels)
    for each, value in values:
        if value is not None:
            family.add_metric(each, value)
    return family


def _counter(name: str, about: str, value: float) -> Metric:
    return CounterMetricFamily(name, about, value=value)


def _counters(name: str, about: str, labels: Sequence[str], values: Labelled) -> Metric:
    family = CounterMetricFamily(name, about, labels=labels)
    for each, value in values:
        if value is not None:
            family.add_metric(each, value)
    return family
