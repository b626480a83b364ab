"""Start the model server: ``python -m bot.serving``, with its settings as JSON on standard input."""

from __future__ import annotations

import os

# OpenMP reads these once, when torch is imported. Spinning threads that outnumber the cores slow everything
# on the machine (4-bit decoding from 20 to 2 tokens a second).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import asyncio
import contextlib
import functools
import json
import secrets
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import structlog
from aiohttp import web

from bot.serving import logs
from bot.serving.api.routes import build_app
from bot.serving.api.service import Service
from bot.serving.client import SERVER_FILE
from bot.serving.errors import BaseRefusedError, ServerStartError, ServingError
from bot.serving.settings import Settings, read_settings
from bot.serving.vllm.child import find_python, has_4_bit_plugin
from bot.serving.vllm.serving import serve

log = structlog.get_logger(__name__)

DRAIN_S = 10.0
EXIT_REFUSED = 2
LOADING = "loading"
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


def main() -> int:
    """Run the server until SIGTERM or SIGINT; return the exit code (2: refused, with one sentence)."""
    # Until the event loop listens for it there is nothing to clean up, so Ctrl-C may end the process at once.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    logs.configure()
    try:
        settings = read_settings(sys.stdin.read())
        python = _vllm_for(settings)
        comes = python is not None and _has_to_be_downloaded(settings)
        # The bundled base answers meanwhile; once the files are there vLLM takes over.
        if comes and not asyncio.run(_serve(settings, for_vllm=True)):
            return 0
        if python is None or not _ran_vllm(settings, python):
            asyncio.run(_serve(settings))
    except ServingError as error:
        print(f"strop serve: {error}", file=sys.stderr)
        return EXIT_REFUSED
    return 0


def _leave(code: int) -> NoReturn:
    """End the process, also in the middle of loading.

    The interpreter's own end would stop the loading thread wherever it is; inside torch that is a C++ abort
    ("terminate called without an active exception"), or a wait of seconds for what it is computing.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if any(thread.name in (LOADING, "engine") for thread in threading.enumerate()):
        os._exit(code)
    sys.exit(code)


def _vllm_for(settings: Settings) -> Path | None:
    """Return the interpreter that has vLLM, where vLLM is to serve."""
    if settings.engine == "strop":
        return None
    python = find_python(os.environ)
    if settings.engine == "vllm" and python is None:
        log.warning("[server] engine is vllm, which is not installed (make install-gpu): Strop's own serves.")
    return python if settings.engine == "vllm" or NVIDIA_DRIVER.exists() else None


def _has_to_be_downloaded(settings: Settings) -> bool:
    """Whether the configured base is still to come from the hub; what can't be told is told later."""
    from bot.serving.model.loading import resolve_device
    from bot.serving.model.quantize import configured_source, has_to_be_downloaded

    try:
        source = configured_source(settings, resolve_device(settings.device))
    except BaseRefusedError:
        return False
    return has_to_be_downloaded(source, settings.models_dir)


def _ran_vllm(settings: Settings, python: Path) -> bool:
    """Serve with vLLM until the end; False where it can't, so that our own engine takes its place."""
    try:
        asyncio.run(_serve_with_vllm(settings, python))
    except ServingError as error:
        log.warning(f"vLLM can't serve, and Strop's own engine takes its place. {error}")
        return False
    return True


async def _serve_with_vllm(settings: Settings, python: Path) -> None:
    secret = secrets.token_urlsafe(32)
    written: list[Path] = []

    def announce(port: int, more: dict[str, Any]) -> None:
        written.append(_announce(settings, port, secret, more))

    try:
        await serve(
            settings,
            python=python,
            secret=secret,
            stopping=_until_signal(),
            environment=os.environ,
            announce=announce,
            in_4_bits=_reads_4_bits(python),
        )
    finally:
        for announcement in written[-1:]:
            _withdraw(announcement)


def _reads_4_bits(python: Path) -> bool:
    """Whether vLLM may try our 4-bit base: with the plugin, and on a GPU, for which the plugin is made."""
    return NVIDIA_DRIVER.exists() and has_4_bit_plugin(python)


def _until_signal() -> asyncio.Event:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stopping.set)
    return stopping


async def _serve(settings: Settings, *, for_vllm: bool = False) -> bool:
    """Serve with our own engine until the signal; return whether it ended as vLLM's base had come instead."""
    stopping = _until_signal()
    service = Service(settings)
    secret = secrets.token_urlsafe(32)
    app = build_app(service, secret=secret)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=2.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, settings.host, settings.port)
        port = await _listen(site, runner, settings)
        announcement = _announce(settings, port, secret)
        try:
            return await _load_and_wait(service, stopping, for_vllm=for_vllm)
        finally:
            await asyncio.to_thread(_withdraw, announcement)
            await asyncio.to_thread(service.stop, DRAIN_S)
    finally:
        await runner.cleanup()


async def _listen(site: web.TCPSite, runner: web.AppRunner, settings: Settings) -> int:
    try:
        await site.start()
    except OSError as error:
        raise ServerStartError(
            f"The model server cannot listen on {settings.host}:{settings.port} ({error.strerror or error}); "
            "stop what uses it or change [server] port."
        ) from error
    return int(runner.addresses[0][1])


async def _load_and_wait(service: Service, stopping: asyncio.Event, *, for_vllm: bool) -> bool:
    """Load in a thread while /health already answers; then wait for the signal, or for vLLM's base."""
    loading = _in_daemon_thread(functools.partial(service.load, prepare_only=for_vllm))
    waiting = asyncio.create_task(stopping.wait())
    await asyncio.wait((loading, waiting), return_when=asyncio.FIRST_COMPLETED)
    if loading.done() and loading.result() and for_vllm:
        waiting.cancel()
        return True
    await waiting
    return False


def _in_daemon_thread(work: Callable[[], bool]) -> asyncio.Future[bool]:
    """Run blocking work that the process' end need not wait for (a download, a quantization)."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[bool] = loop.create_future()

    def settle(done: bool, error: BaseException | None) -> None:
        if outcome.cancelled():
            return
        if error is None:
            outcome.set_result(done)
        else:
            outcome.set_exception(error)

    def run() -> None:
        failure: BaseException | None = None
        done = False
        try:
            done = work()
        except BaseException as error:  # handed over to the event loop whole
            failure = error
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, done, failure)

    threading.Thread(target=run, name=LOADING, daemon=True).start()
    return outcome


def _announce(settings: Settings, port: int, secret: str, more: dict[str, Any] | None = None) -> Path:
    """Write ``server.json`` in one step, readable by this user alone."""
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    host = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)
    value = {"base_url": f"http://{host}:{port}", "secret": secret, "pid": os.getpid(), **(more or {})}
    # mkstemp makes the file with mode 0600.
    descriptor, name = tempfile.mkstemp(dir=settings.run_dir, prefix=".server-")
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    target = settings.run_dir / SERVER_FILE
    Path(name).replace(target)
    log.info("server.listening", base_url=value["base_url"])
    return target


def _withdraw(announcement: Path) -> None:
    """Remove ``server.json`` unless another server has replaced it."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        if json.loads(announcement.read_text(encoding="utf-8"))["pid"] == os.getpid():
            announcement.unlink()


if __name__ == "__main__":
    _leave(main())
