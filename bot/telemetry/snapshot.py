"""The figures of one moment, as they are read; `bot.telemetry.families` gives them their names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bot.gateway.state import GatewayState
from storage.telemetry.counts import Counts, Trend
from storage.telemetry.reply_totals import ReplyTotals


@dataclass(frozen=True, slots=True)
class DiskState:
    """Bytes on the disk of the data folder, by part, and when the newest backup that is whole was made."""

    total_bytes: int
    free_bytes: int
    parts: Mapping[str, int] = field(default_factory=dict)
    backup_ms: int | None = None


@dataclass(frozen=True, slots=True)
class ServerState:
    """The model server: whether it answers, and its own figures in Prometheus' text format."""

    up: bool
    running: int = 0
    waiting: int = 0
    exposition: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that one scrape shows; None where it could not be read."""

    version: str
    started_ms: int
    gateway: GatewayState
    replies: ReplyTotals
    server: ServerState
    trainer_up: bool
    counts: Counts | None = None
    trends: Mapping[str, Trend] = field(default_factory=dict)
    disk: DiskState | None = None
    memory: Mapping[str, int] = field(default_factory=dict)
