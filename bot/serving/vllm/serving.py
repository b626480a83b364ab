"""Serve with vLLM: prepare the base, say where vLLM will listen, keep it alive until the signal."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import structlog

from bot.serving.errors import ServerStartError
from bot.serving.gpu_claim import POLL_S, is_claimed
from bot.serving.model.identity import BFLOAT16, NF4
from bot.serving.protocol import ASLEEP
from bot.serving.settings import Settings
from bot.serving.vllm.child import VllmChild
from bot.serving.vllm.flags import largest_rank, launch

log = structlog.get_logger(__name__)

LOG_FILE = "vllm.log"


async def serve(
    settings: Settings,
    *,
    python: Path,
    secret: str,
    stopping: asyncio.Event,
    environment: Mapping[str, str],
    announce: Callable[[int, dict[str, Any]], None],
    in_4_bits: bool = False,
) -> None:
    """Run vLLM until ``stopping`` is set; where it can't serve the base ``in_4_bits``, in bfloat16.

    ``announce`` writes the address for clients: at first without a base, then with it.

    Raises:
        BaseRefusedError: the base can't be had, or doesn't fit.
        ServerStartError: vLLM does not start, or can't be given what is configured.
    """
    port = settings.port or _free_port()

    def say(described: Mapping[str, Any], asleep: Mapping[str, bool]) -> None:
        announce(port, {**described, **asleep})

    for precision in (NF4, BFLOAT16) if in_4_bits else (BFLOAT16,):
        announce(port, {"engine": "vllm", "base": None})
        prepared = await asyncio.to_thread(_prepare, settings, in_4_bits=precision == NF4)
        child = VllmChild(
            launch(
                settings,
                python=python,
                weights=prepared.weights,
                base=prepared.description,
                linear_layers=prepared.linear_layers,
                port=port,
                secret=settings.api_key or secret,
                environment=environment,
                kept_rank=await asyncio.to_thread(largest_rank, settings.adapters_dir),
            ),
            base_url=f"http://127.0.0.1:{port}",
            log_file=settings.run_dir / LOG_FILE,
        )
        described = {"engine": "vllm", "base": dataclasses.asdict(prepared.description)}
        announce(port, described)
        try:
            await _keep(child, settings.run_dir, stopping, functools.partial(say, described))
        except ServerStartError as error:
            if precision == BFLOAT16:
                raise
            log.warning(f"vLLM can't serve the base in 4 bits, so it serves it in bfloat16. {error}")
        else:
            return


async def _keep(
    child: VllmChild,
    run_dir: Path,
    stopping: asyncio.Event,
    announce: Callable[[Mapping[str, bool]], None],
) -> None:
    """Keep vLLM alive, but for trainings that claim its GPU, until ``stopping`` is set or it can't start."""
    running = asyncio.create_task(child.run())
    lending = asyncio.create_task(lend_the_card(child, run_dir, announce))
    waiting = asyncio.create_task(stopping.wait())
    await asyncio.wait((running, lending, waiting), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    lending.cancel()
    child.stop()
    await running


async def lend_the_card(
    child: VllmChild, run_dir: Path, announce: Callable[[Mapping[str, bool]], None]
) -> None:
    """End vLLM while a training claims its GPU, say so once it is gone, and start it again afterwards."""
    sleeps = told = False
    while True:
        claimed = is_claimed(run_dir)
        if claimed and not sleeps:
            log.info("a training takes the GPU; vLLM starts again after it")
            child.sleep()
            sleeps = True
        elif sleeps and not claimed:
            announce({})
            child.wake()
            sleeps = told = False
        if sleeps and not told and not child.is_running:
            announce({ASLEEP: True})
            told = True
        await asyncio.sleep(POLL_S)


def _prepare(settings: Settings, *, in_4_bits: bool) -> Any:
    from bot.serving.vllm.preparing import prepare

    return prepare(settings, lambda detail: log.info("base.loading", detail=detail), in_4_bits=in_4_bits)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
