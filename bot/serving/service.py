"""What the HTTP handlers work on: the base, its engine and its adapters, or the state of loading them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import torch

from bot.serving.base import LoadedBase, load_base, resolve_device
from bot.serving.engine import Engine, EngineOptions, choose_threads
from bot.serving.errors import ServerLoadingError, UnknownModelError
from bot.serving.jobs import Event, Job
from bot.serving.lora import Adapter, read_adapter
from bot.serving.prompts import control_strings, render_chat
from bot.serving.protocol import BaseDescription, ChatMessage, TokenIds
from bot.serving.quantize import prepare_base
from bot.serving.sampling import SamplingOptions
from bot.serving.settings import Settings

log = structlog.get_logger(__name__)

# Prompt tokens read per step: enough to fill the matrix units, few enough for others' tokens to come soon.
CHUNK_TOKENS = {"cpu": 128, "cuda": 512}
UNLOAD_WAIT_S = 60.0


@dataclass(frozen=True, slots=True)
class JobOptions:
    """What a request asks of its generation."""

    max_tokens: int | None
    sampling: SamplingOptions
    stop: Sequence[str]
    priority: int
    score: bool = False


class Service:
    """One base, its adapters and its engine. Made at once, usable after :meth:`load`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.detail = "Starting."
        self._base: LoadedBase | None = None
        self._engine: Engine | None = None
        self._description: BaseDescription | None = None
        # One thread: a fast tokenizer must not be used by two at once.
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")
        self._adapter_lock = asyncio.Lock()

    def load(self) -> None:
        """Prepare and load the base and start the engine; called in a thread, blocks for seconds to minutes.

        Raises:
            BaseRefusedError: the base cannot be served here.
        """
        settings = self.settings
        device = resolve_device(settings.device)
        folder = prepare_base(
            settings.base,
            settings.revision,
            device=device,
            models_dir=settings.models_dir,
            progress=self._progress,
        )
        self._progress("Loading the 4-bit weights.")
        base = load_base(folder, device, "serve")
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        engine = Engine(
            base,
            EngineOptions(
                context_tokens=settings.context_tokens,
                slots=settings.slots,
                chunk_tokens=CHUNK_TOKENS[torch.device(device).type],
                threads=choose_threads(settings.threads, base, cores),
            ),
        )
        engine.start()
        self._base = base
        self._description = _describe(base, engine)
        self._engine = engine
        self.detail = ""
        log.info("model loaded", base=base.info.id, execution=base.execution, device=device)

    def _progress(self, detail: str) -> None:
        self.detail = detail
        log.info("loading", detail=detail)

    @property
    def ready(self) -> bool:
        """Whether requests can be served."""
        return self._engine is not None

    @property
    def engine(self) -> Engine:
        """The engine.

        Raises:
            ServerLoadingError: it is not there yet.
        """
        if self._engine is None:
            raise ServerLoadingError(f"The model is still loading: {self.detail}")
        return self._engine

    @property
    def description(self) -> BaseDescription | None:
        """The base, once it is loaded."""
        return self._description

    def model_names(self) -> list[str]:
        """Return the base's name and the loaded adapters'."""
        if self._description is None:
            return []
        return [self._description.id, *self.engine.shelf.names()]

    async def tokenize_chat(self, messages: Sequence[ChatMessage], *, generation: bool = True) -> TokenIds:
        """Render a conversation to token ids without blocking the event loop."""
        tokenizer = self._loaded().tokenizer
        return await self._in_tokenizer(
            lambda: render_chat(tokenizer, messages, add_generation_prompt=generation)
        )

    async def tokenize_text(self, text: str) -> TokenIds:
        """Encode a raw prompt; its caller writes control tokens on purpose."""
        tokenizer = self._loaded().tokenizer
        return await self._in_tokenizer(
            lambda: [int(token) for token in tokenizer(text, add_special_tokens=True)["input_ids"]]
        )

    async def _in_tokenizer(self, work: Callable[[], TokenIds]) -> TokenIds:
        return await asyncio.get_running_loop().run_in_executor(self._tokenizing, work)

    @asynccontextmanager
    async def run(
        self, model: str, prompts: Sequence[TokenIds], options: JobOptions
    ) -> AsyncIterator[list[tuple[Job, asyncio.Queue[Event]]]]:
        """Submit one job per prompt, all on the same adapter; leaving the context cancels what still runs.

        Raises:
            UnknownModelError, RequestRejectedError, ServerBusyError, ServerLoadingError: as they say.
        """
        jobs: list[tuple[Job, asyncio.Queue[Event]]] = []
        try:
            for prompt in prompts:  # one by one, so that a refusal half-way leaves none behind
                jobs.append(self._submit(model, prompt, options))  # noqa: PERF401
            yield jobs
        finally:
            for job, _ in jobs:
                self.engine.cancel(job)

    def _submit(self, model: str, prompt: TokenIds, options: JobOptions) -> tuple[Job, asyncio.Queue[Event]]:
        engine, base = self.engine, self._loaded()
        events: asyncio.Queue[Event] = asyncio.Queue()
        adapter = self._pin(model)
        room = engine.context_tokens - len(prompt)
        job = Job(
            prompt,
            sink=_threadsafe_sink(events),
            tokenizer=base.tokenizer,
            max_tokens=max(1, min(options.max_tokens or room, room)),
            sampling=options.sampling,
            stop=options.stop,
            adapter=adapter,
            priority=options.priority,
            score=options.score,
        )
        try:
            engine.submit(job)
        except Exception:
            if adapter is not None:
                engine.shelf.unpin(adapter)
            raise
        return job, events

    def _pin(self, model: str) -> Adapter | None:
        """Return the adapter of this name, or None for the base."""
        if self._description is not None and model == self._description.id:
            return None
        return self.engine.shelf.pin(model)

    async def load_adapter(self, name: str, path: Path) -> bool:
        """Verify and load an adapter off the engine's thread; False where it is loaded already.

        Raises:
            AdapterRefusedError: with the reason.
        """
        engine, base, settings = self.engine, self._loaded(), self.settings
        async with self._adapter_lock:
            if name in engine.shelf.names():
                return False
            adapter = await asyncio.to_thread(
                read_adapter,
                name,
                path,
                adapters_dir=settings.adapters_dir,
                base_hash=base.info.hash,
                chat_template_hash=base.info.chat_template_hash,
                widths=engine.widths,
                dtype=engine.adapter_dtype,
                device=base.device,
            )
            engine.shelf.add(adapter)
        log.info("adapter loaded", adapter=name, rank=adapter.rank)
        return True

    async def unload_adapter(self, name: str) -> None:
        """Forget an adapter; returns once no running request uses it (or after a minute).

        Raises:
            UnknownModelError: it is not loaded.
        """
        unused = self.engine.shelf.remove(name)
        await asyncio.to_thread(unused.wait, UNLOAD_WAIT_S)
        log.info("adapter unloaded", adapter=name)

    def stop(self, drain_s: float) -> None:
        """Drain and end the engine (blocks)."""
        if self._engine is not None:
            self._engine.stop(drain_s)
        self._tokenizing.shutdown(wait=False, cancel_futures=True)

    def _loaded(self) -> LoadedBase:
        if self._base is None:
            raise ServerLoadingError(f"The model is still loading: {self.detail}")
        return self._base

    def check_model(self, model: str) -> None:
        """Raise UnknownModelError unless a request may use this name."""
        if self.ready and model not in self.model_names():
            raise UnknownModelError(f"The model {model!r} is not loaded.")


def _threadsafe_sink(events: asyncio.Queue[Event]) -> Callable[[Event], None]:
    """Hand the engine's events to the event loop; once the loop is closed nobody is left to hear them."""
    loop = asyncio.get_running_loop()

    def sink(event: Event) -> None:
        try:
            loop.call_soon_threadsafe(events.put_nowait, event)
        except RuntimeError:
            log.debug("event after the loop has closed")

    return sink


def _describe(base: LoadedBase, engine: Engine) -> BaseDescription:
    info: Any = base.info
    return BaseDescription(
        id=info.id,
        source=info.source,
        hash=info.hash,
        chat_template_hash=info.chat_template_hash,
        folder=str(base.folder),
        context_tokens=engine.context_tokens,
        device=base.device,
        execution=base.execution,
        special_tokens=control_strings(base.tokenizer),
    )
