"""A model server of an experiment's own, for another base than the one that answers.

It serves as the deployment's would with `model.base` changed, on a free port of this machine. It writes
where into a folder of the run, and is killed with the run's process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from bot.serving.client import ModelClient
from bot.serving.errors import BaseRefusedError, ServerUnavailableError, ServingError
from bot.serving.model import catalogue
from bot.serving.model.catalogue import Workload
from bot.serving.model.hub import read_config
from bot.serving.model.loading import available_bytes, machine, resolve_device
from bot.serving.model.memory import format_gb
from bot.serving.model.quantize import has_to_be_downloaded
from bot.serving.model.shapes import Shape
from bot.serving.model.sources import BaseSource, named
from bot.serving.protocol import BaseDescription
from storage.config import Config
from storage.process import locks
from storage.sentences import Sentence
from trainer.errors import BaseNotTriedError, EvaluationError, MemoryShortError
from trainer.model_server import run_with_client
from trainer.run.memory_claims import MemoryClaims
from trainer.training import gpu

FOLDER = "base-server"
POLL_S = 0.5
STOP_S = 20.0
# The server reads its key from its settings; the token and the webhook are nothing to it.
SECRETS = ("DISCORD_TOKEN", "DISCORD_TOKEN_FILE", "STROP_API_KEY", "STROP_ALERTS_WEBHOOK")


def find(name: str, config: Config) -> BaseSource:
    """Return the base of this name, which must be on this machine.

    Raises:
        BaseNotTriedError: it has to be downloaded first, or another server than Strop's own answers people.
        BaseRefusedError: it names nothing that exists here and is no hub id.
    """
    if config.server.base_url:
        raise BaseNotTriedError(
            "A base can be tried only beside Strop's own model server, and server.base_url names another one."
        )
    source = named(name)
    if has_to_be_downloaded(source, config.models):
        raise BaseNotTriedError(
            "{base} is not on this machine: `strop models get {base}` brings it.", base=name
        )
    return source


def shape_of(source: BaseSource) -> Shape | None:
    """Return the widths of a base that is on this machine; None where its files don't say them (GGUF)."""
    if known := catalogue.find(source.id):
        return known.shape
    with contextlib.suppress(BaseRefusedError, OSError, ValueError, KeyError):
        if source.kind == "hub":
            return Shape.of(read_config(source, offline=True))
        if source.kind == "folder" and source.path is not None:
            return Shape.of(json.loads((source.path / "config.json").read_text(encoding="utf-8")))
    return None


def parameters_of(name: str) -> int:
    """Return how many weights a base has by its shape; 0 where it isn't known."""
    with contextlib.suppress(BaseRefusedError):
        if name and (shape := shape_of(named(name))):
            return shape.parameters
    return 0


def claim_room(config: Config, source: BaseSource, memory: MemoryClaims) -> None:
    """Claim the memory in which a base can be served and trained, waiting for what other trainings hold.

    Raises:
        MemoryShortError: there isn't enough beside the server that answers.
    """
    shape, device = shape_of(source), resolve_device(config.model.device)
    if shape is None:
        return
    work = Workload(config.model.context_tokens, config.model.slots, config.trainer.rank)
    needs = catalogue.needs(shape, machine(device), work)
    trains_there = config.trainer.where != "ray" and device == resolve_device(
        gpu.device_for(config.trainer, config.model)
    )
    memory.claim(
        device, partial(_room, source.id, device, needs.serve_bytes + trains_there * needs.train_bytes)
    )


def _room(base: str, device: str, needed: int, taken: int) -> tuple[None, int]:
    free = max(available_bytes(device) - taken, 0)
    if needed > free:
        raise MemoryShortError(
            "{base} takes about {needed} to be served and trained beside the base that answers, and {free} "
            "is free.",
            base=base,
            needed=format_gb(needed),
            free=format_gb(free),
        )
    return None, needed


@contextlib.contextmanager
def serving(
    config: Config, source: BaseSource, folder: Path, check: Callable[[], None]
) -> Iterator[BaseDescription]:
    """Serve a base until the end of the context; `folder` is the server's run folder, and goes with it.

    To be entered in a thread that lives as long. `check` is called while the base is loaded, and may raise.

    Raises:
        BaseNotTriedError: the server refuses the base, or ended.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    process = _start(config, source, folder)
    try:
        yield run_with_client(config, partial(_ready, process=process, base=source.id, check=check), folder)
    except (ServingError, EvaluationError) as error:
        if process.poll() is None:
            raise
        raise _ended(source.id, process) from error
    finally:
        locks.end(process, STOP_S)
        shutil.rmtree(folder, ignore_errors=True)


def _start(config: Config, source: BaseSource, folder: Path) -> subprocess.Popen[bytes]:
    asked = config.server_slice() | {
        "base": source.setting,
        "revision": source.revision,
        "host": "127.0.0.1",
        "port": 0,
        # vLLM would take the memory that the one which answers has left.
        "engine": "strop",
        "run_dir": str(folder),
    }
    process = subprocess.Popen(
        locks.die_with_parent([sys.executable, "-m", "bot.serving"]),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={name: value for name, value in os.environ.items() if name not in SECRETS},
    )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
        stdin.write(json.dumps(asked).encode())
    return process


async def _ready(
    client: ModelClient, *, process: subprocess.Popen[bytes], base: str, check: Callable[[], None]
) -> BaseDescription:
    """Wait until the base answers; a stand-in is none."""
    while process.poll() is None:
        check()
        with contextlib.suppress(ServerUnavailableError):
            health = await client.health()
            if health.status == "failed" or (health.base and health.base.stands_in_for):
                # Who stands in here is nothing to people.
                reason = health.detail.values.get("reason")
                said = reason if isinstance(reason, str) else health.detail
                why = Sentence.of(ServerUnavailableError(said))
                raise BaseNotTriedError("{base} can't be served here: {reason}", base=base, reason=why)
            if health.is_ready:
                return health.require_base()
        await asyncio.sleep(POLL_S)
    raise _ended(base, process)


def _ended(base: str, process: subprocess.Popen[bytes]) -> BaseNotTriedError:
    return BaseNotTriedError(
        "The model server for {base} ended with code {code}; the trainer's log says why.",
        base=base,
        code=process.returncode,
    )
