"""The side of the server that needs torch: a loaded base with its engine and its adapters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog
import torch

from bot.serving.engine.engine import Engine, EngineOptions
from bot.serving.engine.events import JobOptions, Sink
from bot.serving.engine.kv_cache import CACHE_SHARE, row_bytes
from bot.serving.engine.lora import read_adapter
from bot.serving.engine.request import Job
from bot.serving.errors import BaseRefusedError
from bot.serving.first_word import FirstWordSign
from bot.serving.messages import Message
from bot.serving.model.chat_template import ChatTemplate, control_strings
from bot.serving.model.identity import NF4
from bot.serving.model.loading import LoadedBase, available_bytes, load_base
from bot.serving.model.memory import format_gb
from bot.serving.protocol import BaseDescription, ChatMessage, TokenIds
from bot.serving.settings import Settings

log = structlog.get_logger(__name__)

# Prompt tokens read per step, alone, and at most and at least while others decode: enough to fill the matrix
# units, few enough for the others' next tokens to come soon.
CHUNK_TOKENS = {"cpu": (256, 64, 8), "cuda": (512, 512, 512)}
# So many prompt tokens cost about as much as a forward pass by itself. On a GPU that is a guess,
# by which two prompts at most are read in a step.
FORWARD_TOKENS = {"cpu": 8, "cuda": 256}


class Runtime:
    """One base in memory, being served. Its methods may be called from any thread."""

    def __init__(self, base: LoadedBase, engine: Engine, adapters_dir: Path) -> None:
        self.engine = engine
        self._template = ChatTemplate(base.tokenizer)
        self.description = _describe(base, engine, self._template)
        self._base = base
        self._adapters_dir = adapters_dir

    @classmethod
    def start(
        cls, settings: Settings, folder: Path, device: str, progress: Callable[[Message], None]
    ) -> Runtime:
        """Load a prepared base and start its engine; blocks for seconds.

        Raises:
            BaseRefusedError: the base cannot be served here.
        """
        progress(Message("Loading the 4-bit weights."))
        base = load_base(folder, device, "serve", precision=settings.precision)
        kind = torch.device(device).type
        chunk, shared_chunk, least_chunk = CHUNK_TOKENS[kind]
        engine = Engine(
            base,
            EngineOptions(
                context_tokens=settings.context_tokens,
                slots=_fitting_slots(base, settings, progress),
                chunk_tokens=chunk,
                shared_chunk_tokens=shared_chunk,
                least_chunk_tokens=least_chunk,
                forward_tokens=FORWARD_TOKENS[kind],
                threads=settings.threads,
            ),
            on_waiting=FirstWordSign(settings.run_dir).show,
        )
        runtime = cls(base, engine, settings.adapters_dir)
        engine.start()
        log.info(
            "model.loaded",
            base=base.info.id,
            execution=base.execution,
            arithmetic=base.arithmetic,
            device=device,
            threads=engine.runner.threads,
            chat_template=runtime.description.capabilities.sentence(),
        )
        return runtime

    def render(self, messages: Sequence[ChatMessage], *, generation: bool = True) -> TokenIds:
        """Return the token ids of a conversation."""
        return self._template.render(messages, add_generation_prompt=generation)

    def encode(self, text: str) -> TokenIds:
        """Return the token ids of a raw prompt; its caller writes control tokens on purpose."""
        return [int(token) for token in self._base.tokenizer(text)["input_ids"]]

    def submit(self, model: str, prompt: TokenIds, options: JobOptions, sink: Sink) -> Job:
        """Queue a job on the base or on an adapter, which stays loaded until the job ends.

        Raises:
            UnknownModelError, RequestRejectedError, ServerBusyError, ServerUnavailableError: as they say.
        """
        loaded_adapters = self.engine.loaded_adapters
        adapter = None if model == self.description.id else loaded_adapters.pin(model)
        try:
            job = Job(prompt, options, sink=sink, tokenizer=self._base.tokenizer, adapter=adapter)
            self.engine.submit(job)
        except BaseException:
            if adapter is not None:
                loaded_adapters.unpin(adapter)
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
            dtype=self._base.dtype,
            device=self._base.device,
        )
        self.engine.loaded_adapters.add(adapter)
        log.info("adapter.loaded", adapter=name, rank=adapter.rank)


def _fitting_slots(base: LoadedBase, settings: Settings, progress: Callable[[Message], None]) -> int:
    """Return how many rows of keys and values may be reserved, at most the configured number.

    Raises:
        BaseRefusedError: not even one fits; the text names both figures.
    """
    context = min(settings.context_tokens, base.info.context_tokens)
    row = row_bytes(base.model.config, context, base.cache_dtype)
    available = available_bytes(base.device)
    fitting = int(CACHE_SHARE * available // row)
    if fitting < 1:
        raise BaseRefusedError(
            f"One conversation of {context} tokens needs {format_gb(row)} beside {base.info.id} and "
            f"{format_gb(available)} is available; lower [model] context_tokens or free memory."
        )
    if fitting < settings.slots:
        progress(
            Message(
                "There is memory for {fitting} replies at a time, not for {wanted}.",
                fitting=fitting,
                wanted=settings.slots,
            )
        )
    return min(fitting, settings.slots)


def _describe(base: LoadedBase, engine: Engine, template: ChatTemplate) -> BaseDescription:
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
        arithmetic=base.arithmetic,
        special_tokens=control_strings(base.tokenizer),
        identity=info.identity,
        precision=NF4,
        parameters=info.parameters,
        capabilities=dataclasses.replace(
            template.capabilities,
            stop_tokens=tuple(base.tokenizer.convert_ids_to_tokens(sorted(engine.end_tokens))),
        ),
    )
