"""The model server as a run uses it: at background priority, and retried while it is away.

A run has minutes of work to lose, so a server that is busy, loading or restarting is waited for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import structlog

from bot.serving.client import ModelClient
from bot.serving.errors import (
    ServerBusyError,
    ServerLoadingError,
    ServerUnavailableError,
    ServingError,
)
from bot.serving.model.identity import find_mismatch
from bot.serving.protocol import PRIORITY_BACKGROUND, BaseDescription, ChatMessage, Completion, Sampling
from storage.config import Config
from storage.config_sections import ChatConfig
from storage.sentences import Sentence
from trainer.errors import EvaluationError, RunCancelledError

T = TypeVar("T")
Ask = Callable[[], Awaitable[T]]

log = structlog.get_logger()

# Requests that a run has in flight at the same time.
AT_ONCE = 8
DEADLINE_S = 600.0
RETRY_S = 2.0
PATIENCE_S = 180.0


def client_for(config: Config, run_dir: Path | None = None) -> ModelClient:
    """Return a client of the configured model server, or of the one that `run_dir` is of; close it."""
    server = config.server
    return ModelClient.connect(
        server.base_url, run_dir or config.run, server.key, config.server_proxy, server.model
    )


def run_with_client(
    config: Config, work: Callable[[ModelClient], Awaitable[T]], run_dir: Path | None = None
) -> T:
    """Run one piece of work with a client of its own; a cancelled run leaves task groups as itself."""

    async def run() -> T:
        async with client_for(config, run_dir) as client:
            return await work(client)

    try:
        return asyncio.run(run())
    except BaseExceptionGroup as group:
        raise _first(group) from group


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first failure of a task group, a cancelled run before anything else."""
    leaves = [_first(error) if isinstance(error, BaseExceptionGroup) else error for error in group.exceptions]
    return next((error for error in leaves if isinstance(error, RunCancelledError)), leaves[0])


async def ensure_listed(client: ModelClient, config: Config, adapter_id: str) -> None:
    """Load an adapter in the server and make sure that it is among its models.

    Raises:
        EvaluationError: it is not listed after loading; ServingError: the server refuses or is away.
    """
    await client.load_adapter(adapter_id, (config.adapters / adapter_id).absolute())
    if not await client.has_adapter(adapter_id):
        raise EvaluationError("The model server accepted {adapter} but does not list it.", adapter=adapter_id)


async def unload(client: ModelClient, adapter_id: str) -> None:
    """Take an adapter out of the server; one that isn't there, and a server that is away, are fine."""
    try:
        await client.unload_adapter(adapter_id)
    except ServingError as error:
        log.info("adapter.unload_failed", adapter_id=adapter_id, error=str(error))


async def reply(
    client: ModelClient,
    model: str,
    messages: Sequence[ChatMessage],
    *,
    chat: ChatConfig,
    max_new_tokens: int,
    seed: int,
) -> Completion:
    """Let a model answer as it would in the chat.

    Raises:
        EvaluationError: the server stayed away for minutes.
    """
    sampling = Sampling(max_new_tokens, seed=seed, **chat.sampling)
    return await retry_while_unavailable(
        lambda: client.chat(
            model=model,
            messages=messages,
            sampling=sampling,
            priority=PRIORITY_BACKGROUND,
            deadline_s=DEADLINE_S,
        )
    )


async def ask_in_rounds(
    rounds: Iterable[Sequence[Ask[T]]], goes_on: Callable[[int, int], bool]
) -> list[list[T]]:
    """Send rounds of requests, AT_ONCE at a time, and return their results.

    A round begins while the last requests of the one before are still answered, so that the server is never
    short of work. `goes_on` says before each but the first whether there is time for it: it is told how many
    requests have been answered, and how many are on their way.
    """
    slots = asyncio.Semaphore(AT_ONCE)
    tasks: list[list[asyncio.Task[T]]] = []

    async def send(ask: Ask[T]) -> T:
        try:
            return await ask()
        finally:
            slots.release()

    async with asyncio.TaskGroup() as group:
        for requests in rounds:
            sent = [task for each in tasks for task in each]
            answered = sum(task.done() for task in sent)
            if sent and not goes_on(answered, len(sent) - answered):
                break
            tasks.append([])
            for ask in requests:
                await slots.acquire()
                tasks[-1].append(group.create_task(send(ask)))
    return [[task.result() for task in each] for each in tasks]


async def retry_while_unavailable(ask: Callable[[], Awaitable[T]], patience_s: float = PATIENCE_S) -> T:
    """Ask again while the server is busy, loading or restarting.

    Raises:
        EvaluationError: it stayed away for `patience_s` seconds.
    """
    ends_at = time.monotonic() + patience_s
    while True:
        try:
            return await ask()
        except (ServerBusyError, ServerLoadingError, ServerUnavailableError) as error:
            wait_s = max(RETRY_S, getattr(error, "retry_after_s", 0.0))
            if time.monotonic() + wait_s > ends_at:
                raise EvaluationError(
                    "The model server did not answer for minutes: {reason}", reason=Sentence.of(error)
                ) from error
            await asyncio.sleep(wait_s)


async def require_served_base(client: ModelClient, config: Config) -> BaseDescription:
    """Return the served base.

    Raises as `Health.require_ready` while it is loading, EvaluationError where it isn't the configured one.
    """
    health = await client.health()
    health.require_ready()
    identity = health.base.identity if health.base else None
    if config.server.base_url and identity is not None:
        other = find_mismatch(identity, config.model.base, config.model.revision)
        if other is not None:
            served, wanted = other
            raise EvaluationError(
                "The model server has another base than model.base: it has {served}, not {wanted}.",
                served=served,
                wanted=wanted,
            )
    if health.base is None or not health.base.hash or not health.base.folder:
        raise EvaluationError(
            "The model server does not say which base it serves: train with Strop's own server (strop serve)."
        )
    return health.base
