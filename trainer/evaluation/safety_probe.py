"""Asking the safety prompts: the base once, whose answers are kept, a challenger in every run.

Each try has the same seed for everybody. After the first try only what looks like a new failure is asked
again, so that most runs pay for little more than twenty short replies.
"""

from __future__ import annotations

import asyncio
import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bot.serving.client import ModelClient
from bot.serving.protocol import ChatMessage
from storage.config_sections import ChatConfig
from trainer import model_server
from trainer.evaluation.safety import BASE_TRIES, MAX_NEW_TOKENS, NOTE, PROBES, TRIES, VERSION, Probe, Probed
from trainer.model_server import AT_ONCE

Answers = dict[str, list[str]]
"""A model's answers by the prompt's name, in the order of the tries."""


@dataclass(frozen=True)
class Contest:
    """Who is compared: model names as the server knows them."""

    challenger: str
    champion: str
    base: str


def cache_path(models: Path, base_hash: str, chat: ChatConfig) -> Path:
    """Return where a base's answers are kept: they hold nobody's words, and depend on how it is asked."""
    how = json.dumps([chat.system_prompt, chat.sampling, MAX_NEW_TOKENS, TRIES])
    return models / "safety" / f"{base_hash[:16]}-{zlib.crc32(how.encode()):08x}-v{VERSION}.json"


async def probe(client: ModelClient, contest: Contest, chat: ChatConfig, cache: Path) -> tuple[Probed, ...]:
    """Return everybody's answers to the safety prompts, in their order; `cache` keeps the base's."""
    kept = await asyncio.to_thread(_read, cache)
    found = {probe.name: Probed(probe.name, (), ()) for probe in PROBES}
    for number in range(TRIES):
        asked = [probe for probe in PROBES if number == 0 or found[probe.name].suspect]
        base = await _base_answers(client, contest.base, asked, number, chat, kept)
        new = await _ask(client, contest.challenger, asked, number, chat)
        for probe, old_text, text in zip(asked, base, new, strict=True):
            known = found[probe.name]
            found[probe.name] = replace(
                known, base=(*known.base, old_text), challenger=(*known.challenger, text)
            )
    for number in range(TRIES, BASE_TRIES):
        # A base that rambles passes by accident now and then: before its word counts it is asked more often.
        asked = [probe for probe in PROBES if found[probe.name].newly_failed]
        for probe, text in zip(
            asked, await _base_answers(client, contest.base, asked, number, chat, kept), strict=True
        ):
            known = found[probe.name]
            found[probe.name] = replace(known, base=(*known.base, text))
    await asyncio.to_thread(_write, cache, kept)
    if contest.champion != contest.base:
        lost = [probe for probe in PROBES if found[probe.name].newly_failed]
        tries = [await _ask(client, contest.champion, lost, number, chat) for number in range(TRIES)]
        for probe, texts in zip(lost, zip(*tries, strict=True), strict=True):
            found[probe.name] = replace(found[probe.name], champion=texts)
    return tuple(found.values())


async def _base_answers(
    client: ModelClient, base: str, asked: Sequence[Probe], number: int, chat: ChatConfig, kept: Answers
) -> list[str]:
    """Return the base's answers at one try, and keep those that had to be asked for."""
    missing = [probe for probe in asked if len(kept.get(probe.name, [])) <= number]
    for probe, text in zip(missing, await _ask(client, base, missing, number, chat), strict=True):
        # Tries are asked for in their order, so that a list's length is the next one's number.
        kept.setdefault(probe.name, []).append(text)
    return [kept[probe.name][number] for probe in asked]


async def _ask(
    client: ModelClient, model: str, probes: Sequence[Probe], number: int, chat: ChatConfig
) -> list[str]:
    """Return a model's answers at one try."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(probe: Probe) -> str:
        system = NOTE if probe.kind == "leak" else chat.system_prompt
        messages = [ChatMessage("system", system)] if system else []
        async with slots:
            completion = await model_server.reply(
                client,
                model,
                [*messages, ChatMessage("user", probe.text)],
                chat=chat,
                max_new_tokens=MAX_NEW_TOKENS,
                seed=zlib.crc32(probe.text.encode()) + 7919 * number,
            )
        return completion.text

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(probe)) for probe in probes]
    return [task.result() for task in tasks]


def _read(path: Path) -> Answers:
    """Return what is kept of the base's answers: nothing where the file is missing or broken."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        return {probe.name: [str(text) for text in value.get(probe.name, [])] for probe in PROBES}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _write(path: Path, answers: Answers) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Another run may write it at the same time.
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(answers, indent=1), encoding="utf-8")
    partial.replace(path)
