"""`/metrics` for Prometheus: one port for bot, trainer and model server, off unless it is configured."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import structlog
from aiohttp import hdrs, web
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from bot.telemetry.families import families
from bot.telemetry.reading import Reader
from bot.telemetry.snapshot import Snapshot
from storage.config_sections import MetricsConfig

# A port that is in use is tried again: whoever has it may go.
RETRY_S = 60.0

_log = structlog.get_logger(__name__)


class _Once(Collector):
    """Hands one snapshot to the library's encoders."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        return families(self._snapshot)


class MetricsExporter:
    """Listens for Prometheus from `start` to `stop`; without its port the bot works all the same."""

    def __init__(self, config: MetricsConfig, reader: Reader, *, retry_s: float = RETRY_S) -> None:
        self._config = config
        self._reader = reader
        self._retry_s = retry_s
        self._one_at_a_time = asyncio.Lock()
        self._runner: web.AppRunner | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def address(self) -> tuple[str, int] | None:
        """Where it listens; None while it doesn't."""
        if self._runner is None or not self._runner.addresses:
            return None
        host, port, *_ = self._runner.addresses[0]
        return str(host), int(port)

    def start(self) -> None:
        """Begin to listen, if a port is configured."""
        if self._config.port and self._task is None:
            self._task = asyncio.create_task(self._listen())

    async def stop(self) -> None:
        """Stop listening."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        await self._reader.stop()

    async def _listen(self) -> None:
        host, port = self._config.host, self._config.port
        app = web.Application()
        app.router.add_get("/metrics", self._answer)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        while True:
            try:
                await web.TCPSite(self._runner, host, port).start()
            except OSError as error:
                _log.error(
                    f"No metrics: {host}:{port} can't be used ({error.strerror or error}). Stop the other "
                    "program, or set another metrics.port; it is tried again every minute."
                )
                await asyncio.sleep(self._retry_s)
                continue
            _log.info("metrics.listening", host=host, port=port)
            return

    async def _answer(self, request: web.Request) -> web.Response:
        async with self._one_at_a_time:
            snapshot = await self._reader.read()
            encode, content_type = choose_encoder(",".join(request.headers.getall(hdrs.ACCEPT, [])))
            body = await asyncio.to_thread(lambda: encode(_registry(snapshot)))
        response = web.Response(body=body, headers={hdrs.CONTENT_TYPE: content_type})
        response.enable_compression()
        return response


def _registry(snapshot: Snapshot) -> CollectorRegistry:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(_Once(snapshot))
    return registry
