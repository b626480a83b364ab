"""What the HTTP handlers work on: the runtime once it is loaded, and the state of loading it before.

Torch is imported by the loading thread, so that the server answers ``/health`` within its first second.
"""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from bot.serving.api.base_loading import BaseLoader
from bot.serving.engine.events import Event, JobOptions, Sink
from bot.serving.errors import ServerLoadingError, UnknownModelError
from bot.serving.messages import NOTHING, Message
from bot.serving.model.thoughts import ThoughtFilter
from bot.serving.protocol import ChatMessage, QueuePlace, TokenIds
from bot.serving.settings import Settings

if TYPE_CHECKING:
    from bot.serving.engine.request import Job
    from bot.serving.engine.runtime import Runtime

log = structlog.get_logger(__name__)

UNLOAD_WAIT_S = 60.0
# How long replies that a stand-in has begun may go on once the configured base answers.
TAKE_OVER_DRAIN_S = 120.0
# The first and the longest wait before a hub that did not answer is asked again.
RETRY_S = (5.0, 1800.0)


@dataclass(frozen=True, slots=True)
class Run:
    """A job in the engine, seen from the event loop."""

    job: Job
    runtime: Runtime
    events: asyncio.Queue[Event]

    def place(self) -> QueuePlace | None:
        """Return where it waits, or None once it has a row."""
        return self.runtime.engine.place(self.job)

    def thoughts(self) -> ThoughtFilter:
        """Return what takes the base's thoughts out of a chat's reply."""
        return ThoughtFilter(inside=self.runtime.description.capabilities.opens_thought)


class Service:
    """The event loop's view of the engine. Made at once, usable after :meth:`load`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.detail = Message("Starting.")
        self._runtime: Runtime | None = None
        self._stopping = threading.Event()
        # One thread: a fast tokenizer must not be used by two at once.
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")
        self._adapter_lock = asyncio.Lock()

    def load(self, *, prepare_only: bool = False) -> bool:
        """Load the configured base, or one in its place; blocks, so it runs in a thread of its own.

        While a hub that doesn't answer is asked again and again, it goes on in that thread. Return whether
        the configured base is there. With ``prepare_only`` it isn't loaded: another engine waits for it.

        Raises:
            BaseRefusedError: no base can be served here.
        """
        return BaseLoader(
            self.settings,
            serve=self._take_over,
            say=self._progress,
            stopping=self._stopping,
            retry_s=RETRY_S,
            prepare_only=prepare_only,
        ).run()

    def _take_over(self, runtime: Runtime, stands_in_for: str) -> None:
        """Serve with a runtime from the next request on; what runs on the former one may finish there."""
        runtime.description = dataclasses.replace(runtime.description, stands_in_for=stands_in_for)
        former, self._runtime = self._runtime, runtime
        self.detail = NOTHING
        if former is not None:
            former.engine.stop(TAKE_OVER_DRAIN_S)

    def _progress(self, detail: Message) -> None:
        self.detail = detail
        if detail:
            log.info("base.loading", detail=detail)

    @property
    def ready(self) -> bool:
        """Whether requests can be served."""
        return self._runtime is not None

    @property
    def runtime(self) -> Runtime:
        """The loaded model.

        Raises:
            ServerLoadingError: it is not there yet.
        """
        if self._runtime is None:
            raise ServerLoadingError(f"The model is still loading. {self.detail}".rstrip())
        return self._runtime

    def model_names(self) -> list[str]:
        """Return the base's name and the loaded adapters'."""
        return [self.runtime.description.id, *self.runtime.engine.loaded_adapters.names()]

    def check_model(self, model: str) -> None:
        """Raise UnknownModelError unless a request may use this name."""
        if model not in self.model_names():
            raise UnknownModelError(f"The model {model!r} is not loaded.")

    async def tokenize_chat(self, messages: Sequence[ChatMessage], *, generation: bool = True) -> TokenIds:
        """Render a conversation to token ids without blocking the event loop."""
        runtime = self.runtime
        return await self._in_tokenizer(lambda: runtime.render(messages, generation=generation))

    async def tokenize_text(self, text: str) -> TokenIds:
        """Encode a raw prompt without blocking the event loop."""
        runtime = self.runtime
        return await self._in_tokenizer(lambda: runtime.encode(text))

    async def _in_tokenizer(self, work: Callable[[], TokenIds]) -> TokenIds:
        return await asyncio.get_running_loop().run_in_executor(self._tokenizing, work)

    @asynccontextmanager
    async def run(
        self, model: str, prompts: Sequence[TokenIds], options: JobOptions
    ) -> AsyncIterator[list[Run]]:
        """Submit one job per prompt; leaving the context cancels what still runs.

        Raises:
            UnknownModelError, RequestRejectedError, ServerBusyError, ServerLoadingError: as they say.
        """
        runtime = self.runtime
        runs: list[Run] = []
        try:
            for prompt in prompts:
                events: asyncio.Queue[Event] = asyncio.Queue()
                job = runtime.submit(model, prompt, options, _threadsafe_sink(events))
                runs.append(Run(job, runtime, events))
            yield runs
        finally:
            for run in runs:
                runtime.engine.cancel(run.job)

    async def load_adapter(self, name: str, path: Path) -> bool:
        """Verify and load an adapter beside the running engine; False where it is loaded already.

        Raises:
            AdapterRefusedError: with the reason.
        """
        runtime = self.runtime
        async with self._adapter_lock:
            if name in runtime.engine.loaded_adapters.names():
                return False
            await asyncio.to_thread(runtime.load_adapter, name, path)
        return True

    async def unload_adapter(self, name: str) -> None:
        """Forget an adapter; returns once no running request uses it (or after a minute).

        Raises:
            UnknownModelError: it is not loaded.
        """
        unused = self.runtime.engine.loaded_adapters.remove(name)
        await asyncio.to_thread(unused.wait, UNLOAD_WAIT_S)
        log.info("adapter.unloaded", adapter=name)

    def stop(self, drain_s: float) -> None:
        """Let replies in flight finish, then end the engine (blocks)."""
        self._stopping.set()
        if self._runtime is not None:
            self._runtime.engine.stop(drain_s)
        self._tokenizing.shutdown(wait=False, cancel_futures=True)


def _threadsafe_sink(events: asyncio.Queue[Event]) -> Sink:
    """Hand the engine's events to the event loop; once the loop is closed nobody is left to hear them."""
    loop = asyncio.get_running_loop()

    def sink(event: Event) -> None:
        try:
            loop.call_soon_threadsafe(events.put_nowait, event)
        except RuntimeError:
            log.debug("engine.event_after_close")

    return sink
