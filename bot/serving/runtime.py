"""The side of the server that needs torch: a loaded base with its engine and its adapters."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog
import torch

from bot.serving.base import LoadedBase, load_base, resolve_device
from bot.serving.engine import Engine, EngineOptions, choose_threads
from bot.serving.events import JobOptions, Sink
from bot.serving.jobs import Job
from bot.serving.lora import read_adapter
from bot.serving.prompts import control_strings, render_chat
from bot.serving.protocol import BaseDescription, ChatMessage, TokenIds
from bot.serving.quantize import prepare_base
from bot.serving.settings import Settings

log = structlog.get_logger(__name__)

# Prompt tokens read per step: enough to fill the matrix units, few enough for others' tokens to come soon.
CHUNK_TOKENS = {"cpu": 128, "cuda": 512}


class Runtime:
    """One base in memory, being served. Its methods may be called from any thread."""

    def __init__(self, base: LoadedBase, engine: Engine, adapters_dir: Path) -> None:
        self.engine = engine
        self.description = _describe(base, engine)
        self._base = base
        self._adapters_dir = adapters_dir

    @classmethod
    def start(cls, settings: Settings, progress: Callable[[str], None]) -> Runtime:
        """Prepare and load the configured base and start its engine; blocks for seconds to minutes.

        Raises:
            BaseRefusedError: the base cannot be served here.
        """
        device = resolve_device(settings.device)
        folder = prepare_base(
            settings.base,
            settings.revision,
            device=device,
            models_dir=settings.models_dir,
            progress=progress,
        )
        progress("Loading the 4-bit weights.")
        base = load_base(folder, device, "serve")
        engine = Engine(
            base,
            EngineOptions(
                context_tokens=settings.context_tokens,
                slots=settings.slots,
                chunk_tokens=CHUNK_TOKENS[torch.device(device).type],
                threads=choose_threads(settings.threads, base, _cores()),
            ),
        )
        engine.start()
        log.info("model loaded", base=base.info.id, execution=base.execution, device=device)
        return cls(base, engine, settings.adapters_dir)

    def render(self, messages: Sequence[ChatMessage], *, generation: bool = True) -> TokenIds:
        """Return the token ids of a conversation."""
        return render_chat(self._base.tokenizer, messages, add_generation_prompt=generation)

    def encode(self, text: str) -> TokenIds:
        """Return the token ids of a raw prompt; its caller writes control tokens on purpose."""
        return [int(token) for token in self._base.tokenizer(text)["input_ids"]]

    def submit(self, model: str, prompt: TokenIds, options: JobOptions, sink: Sink) -> Job:
        """Queue a job on the base or on an adapter, which stays loaded until the job ends.

        Raises:
            UnknownModelError, RequestRejectedError, ServerBusyError, ServerUnavailableError: as they say.
        """
        shelf = self.engine.shelf
        adapter = None if model == self.description.id else shelf.pin(model)
        try:
            job = Job(prompt, options, sink=sink, tokenizer=self._base.tokenizer, adapter=adapter)
            self.engine.submit(job)
        except BaseException:
            if adapter is not None:
                shelf.unpin(adapter)
            raise
        return job

    def load_adapter(self, name: str, path: Path) -> None:
        """Verify an adapter folder, read it and make it available.

        Raises:
            AdapterRefusedError: with the reason.
        """
        adapter = read_adapter(
            name,
            path,
            adapters_dir=self._adapters_dir,
            base_hash=self._base.info.hash,
            chat_template_hash=self._base.info.chat_template_hash,
            widths=self.engine.widths,
            dtype=self.engine.adapter_dtype,
            device=self._base.device,
        )
        self.engine.shelf.add(adapter)
        log.info("adapter loaded", adapter=name, rank=adapter.rank)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _describe(base: LoadedBase, engine: Engine) -> BaseDescription:
    info = base.info
    return BaseDescription(
        id=info.id,
        source=info.source,
        hash=info.hash,
        chat_template_hash=info.chat_template_hash,
        folder=str(base.folder.resolve()),
        context_tokens=engine.context_tokens,
        device=base.device,
        execution=base.execution,
        special_tokens=control_strings(base.tokenizer),
    )
