"""Telemetry put together."""

from __future__ import annotations

from bot.client import StropClient
from bot.telemetry.exporter import MetricsExporter
from bot.telemetry.reading import Reader


def setup(app: StropClient) -> None:
    """Add what answers Prometheus; the process starts it, because it also tells of a lost connection."""
    exporter = MetricsExporter(app.services.config.metrics, Reader(app.services, app))
    app.at_shutdown(app.add_feature(exporter).stop)
