"""Answer questions: context, model, streaming, and one plain sentence for whatever goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, cast

import structlog

from bot import context
from bot.context import Prompt
from bot.drafts import Asked, Draft, ReplyRecorder
from bot.errors import ContextError, DeliveryError
from bot.questions import Question
from bot.services import EXTERNAL, Services
from bot.serving.errors import (
    ServerBusyError,
    ServerLoadingError,
    ServerUnavailableError,
    ServingError,
    UnknownModelError,
)
from bot.serving.plain_text import neutralise
from bot.serving.protocol import BaseDescription, ChatDelta, ChatMessage, QueuePlace, Sampling
from bot.streaming import LOCAL_PACE_S, PACE_S, Paces, ReplyRenderer, Surface
from bot.texts import mark, tr
from storage.config import ChatConfig
from storage.errors import DiskFullError, StorageError
from storage.replies import Status

UNREACHABLE = mark("My model server is not reachable right now; I'll be back by myself when it is.")
LOADING = mark("My model is still loading. I'll answer here as soon as it is ready.")
STOPPED = mark("-# I was switched off in the middle of this. Ask me again in a moment.")
BROKE_OFF = mark("-# My model server stopped in the middle of this. Ask me again in a moment.")
BUSY = mark("I have more questions than I can take right now. Please ask me again in {seconds} seconds.")
TRUNCATED = mark("-# Your message was longer than I can read at once: I read its beginning and its end.")
LEFT_OUT = mark(
    "-# This conversation is longer than I can read at once: from here on I leave out the oldest messages "
    "({count} so far)."
)
NOTHING_SAID = mark("-# I found no words for that. Please try another wording.")
DISK_FULL = mark("My disk is full, so I can't keep this conversation. Please tell whoever runs me.")
WAITING = mark("-# {ahead} before you, about {seconds} s.")
NEXT = mark("-# You are next, in about {seconds} s.")
UNEXPECTED = mark("Something went wrong on my side (error `{id}`). It is in my log; please try again.")

REPLY_DEADLINE_S = 300.0
LOADING_DEADLINE_S = 900.0
LOADING_POLL_S = 2.0
BUSY_TRIES = 3
# A full queue that is free again this soon is waited out; a longer wait is told at once.
BUSY_PATIENCE_S = 10.0
# A place in the queue is worth a message where the wait is this long, and an edit this often.
SHORTEST_WAIT_S = 2.0
WAITING_EVERY_S = 4.0
MAX_IN_FLIGHT = 64
# Below this much room for a prompt, an answer would know nothing of the question.
MIN_PROMPT_TOKENS = 64
_REMEMBERED_WITHDRAWN = 1000

_log = structlog.get_logger(__name__)


class Answerer:
    """Answers questions, many at a time, each in a task of its own."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._recorder = ReplyRecorder(services)
        self._paces = Paces(LOCAL_PACE_S if services.playground else PACE_S)
        self._tasks: set[asyncio.Task[None]] = set()
        self._writing_in: Counter[int] = Counter()
        self._withdrawn: deque[int] = deque(maxlen=_REMEMBERED_WITHDRAWN)
        self._closing = False

    @property
    def in_flight(self) -> int:
        """How many replies are being written."""
        return len(self._tasks)

    def is_writing_in(self, channel_id: int) -> bool:
        """Whether a reply is being written in this channel."""
        return self._writing_in[channel_id] > 0

    def withdrew(self, message_id: int) -> bool:
        """Whether the bot itself deleted this message, as one that its reply turned out not to need."""
        return message_id in self._withdrawn

    def start(
        self, question: Question, surface: Surface, typing: AbstractAsyncContextManager[Any] | None = None
    ) -> asyncio.Task[None] | None:
        """Begin to answer; returns the task, or None when the bot is being stopped."""
        if self._closing:
            return None
        task = asyncio.create_task(self._run(question, surface, typing or contextlib.nullcontext()))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def drain(self, finish_s: float = 6.0, stop_s: float = 3.0) -> None:
        """Take no more questions, let replies in flight finish, make the rest say that they were stopped."""
        self._closing = True
        if self._tasks:
            _log.info("replies.draining", in_flight=len(self._tasks))
            await asyncio.wait(set(self._tasks), timeout=finish_s)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=stop_s)

    async def _run(
        self, question: Question, surface: Surface, typing: AbstractAsyncContextManager[Any]
    ) -> None:
        draft = self._draft(question, surface)
        self._writing_in[question.channel_id] += 1
        try:
            async with _lenient(typing):
                await self._answer(draft)
        except asyncio.CancelledError:
            draft.notes.append(tr(STOPPED))
            await self._close(draft, "stopped", "the bot was stopped")
            raise
        except Exception as error:  # The task's boundary: whoever asked gets one sentence, the log the rest.
            draft.notes.append(_explanation(error, draft))
            await self._close(draft, "failed", type(error).__name__)
        finally:
            self._writing_in -= Counter([question.channel_id])

    def _draft(self, question: Question, surface: Surface) -> Draft:
        async def on_part(message_id: int, position: int) -> None:
            await self._recorder.part(draft, message_id, position)

        renderer = ReplyRenderer(
            surface, self._paces.of(question.channel_id), on_part, self._withdrawn.append
        )
        draft = Draft(f"r{secrets.token_hex(8)}", question, renderer, asyncio.get_running_loop().time())
        return draft

    async def _answer(self, draft: Draft) -> None:
        if len(self._tasks) > MAX_IN_FLIGHT:
            raise ServerBusyError("too many replies in flight", 30.0)
        base, loaded = await self._ready(draft)
        draft.chat = await chat_for(self._services, draft.question, base)
        asked = await self._recorder.question(draft.question, base)
        draft.adapter_id = await self._answering_adapter(asked.champion, loaded)
        prompt = await self._prompt(draft, asked, base)
        seed = secrets.randbits(31)
        sampling = _sampling(draft.chat, seed)
        await self._recorder.start(draft, asked, prompt, base, sampling)
        if prompt.truncated:
            draft.notes.append(tr(TRUNCATED))
        elif prompt.dropped_turns and not asked.left_out_before:
            draft.notes.append(tr(LEFT_OUT, count=prompt.dropped_turns))
        await self._generate(draft, prompt, base, sampling)
        if not draft.text.strip():
            draft.notes.append(tr(NOTHING_SAID))
        await self._close(draft, "complete")

    async def _ready(self, draft: Draft) -> tuple[BaseDescription, frozenset[str]]:
        """Return the base and the loaded adapters; while the model loads, say so in the reply and wait."""
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + LOADING_DEADLINE_S
        while True:
            try:
                return await self._services.base_and_adapters()
            except ServerLoadingError:
                if loop.time() > ends_at:
                    raise
            draft.renderer.show("\n\n".join(filter(None, (draft.question.quote, tr(LOADING)))))
            await asyncio.sleep(LOADING_POLL_S)

    async def _answering_adapter(self, champion: str | None, loaded: frozenset[str]) -> str | None:
        """Return the champion once the server has it; the base answers for one that can't be loaded."""
        if champion is None or champion in loaded:
            return champion
        try:
            await self._services.load_adapter(champion)
        except (ServerUnavailableError, ServerLoadingError):
            raise
        except (ServingError, StorageError) as error:
            _log.error("adapter.not_loadable", adapter_id=champion, error=str(error))
            return None
        return champion

    async def _prompt(self, draft: Draft, asked: Asked, base: BaseDescription) -> Prompt:
        chat = draft.chat
        room = (base.context_tokens or self._services.config.model.context_tokens) - chat.max_new_tokens
        budget = max(MIN_PROMPT_TOKENS, min(chat.context_tokens, room))

        async def count(messages: Sequence[ChatMessage]) -> int:
            return await self._services.model.count_tokens(model=base.id, messages=list(messages))

        prompt, draft.prompt_tokens = await context.build_within(
            chat.system_prompt, asked.turns, budget, count, base.special_tokens
        )
        return prompt

    async def _generate(
        self, draft: Draft, prompt: Prompt, base: BaseDescription, sampling: Sampling
    ) -> None:
        """Stream the answer; wait out a full queue, and load an adapter again that the server forgot."""
        for attempt in range(1, BUSY_TRIES + 1):
            try:
                await self._stream(draft, prompt, base, sampling)
                return
            except UnknownModelError:
                if attempt == BUSY_TRIES or draft.adapter_id is None:
                    raise
                await self._services.load_adapter(draft.adapter_id)
            except ServerBusyError as busy:
                if attempt == BUSY_TRIES or busy.retry_after_s > BUSY_PATIENCE_S:
                    raise
                await asyncio.sleep(busy.retry_after_s)

    async def _stream(self, draft: Draft, prompt: Prompt, base: BaseDescription, sampling: Sampling) -> None:
        loop = asyncio.get_running_loop()
        draft.requested_at = loop.time()
        deltas = self._services.model.chat_stream(
            model=draft.adapter_id or base.id,
            messages=list(prompt.messages),
            sampling=sampling,
            user=self._services.pseudonym(draft.question.author.user_id),
            queue_updates=not base.hash.startswith(EXTERNAL),
            deadline_s=REPLY_DEADLINE_S,
        )
        # Closing the generator at once frees the server from a reply that nobody waits for any more.
        async with contextlib.aclosing(cast("AsyncGenerator[ChatDelta, None]", deltas)):
            async for delta in deltas:
                draft.finish_reason = delta.finish_reason or draft.finish_reason
                draft.usage = delta.usage or draft.usage
                if delta.queue is not None and not draft.text:
                    _show_place(draft, delta.queue, loop.time())
                if delta.text:
                    draft.first_token_at = draft.first_token_at or loop.time()
                    draft.text += delta.text
                    if draft.text.strip():
                        draft.renderer.show(draft.shown())

    async def _close(self, draft: Draft, status: Status, error: str | None = None) -> None:
        """Store the outcome, then deliver the final text: a rating may follow as soon as it stands there."""
        await self._recorder.end(draft, asyncio.get_running_loop().time(), status, error)
        try:
            await draft.renderer.finish(draft.shown())
        except DeliveryError as failure:
            _log.warning("reply.not_delivered", reply_id=draft.reply_id, error=type(failure).__name__)


def _show_place(draft: Draft, place: QueuePlace, now: float) -> None:
    """Say how long it will take, where that is worth saying and no reply needs the channel's next turn."""
    seconds = max(1, round(place.wait_s))
    draft.waiting = tr(WAITING if place.ahead else NEXT, ahead=place.ahead, seconds=seconds)
    shown_at = draft.waiting_shown_at
    due = place.wait_s >= SHORTEST_WAIT_S if shown_at is None else now - shown_at >= WAITING_EVERY_S
    if due and draft.renderer.show_if_free(draft.shown_while_waiting()):
        draft.waiting_shown_at = now


def _sampling(chat: ChatConfig, seed: int) -> Sampling:
    return Sampling(
        max_tokens=chat.max_new_tokens,
        temperature=chat.temperature,
        top_p=chat.top_p,
        top_k=chat.top_k,
        seed=seed,
    )


async def chat_for(services: Services, question: Question, base: BaseDescription) -> ChatConfig:
    """Return how a reply is asked for in the question's place, with room left for the question itself."""
    found = await services.settings(question.guild_id, question.home_channel_id)
    context_tokens = base.context_tokens or services.config.model.context_tokens
    persona = found.settings.system_prompt
    changed: dict[str, Any] = {
        # A server's admins are members too: their words can't end a turn either.
        "system_prompt": persona if found.origins["system_prompt"] == "file" else neutralise(persona),
        "temperature": found.settings.temperature,
    }
    length = found.settings.max_new_tokens
    if found.origins["max_new_tokens"] != "file":
        # An admin can't know the model's context: at least half of it is left for what was said.
        length = max(1, min(length, context_tokens // 2))
    changed["max_new_tokens"] = length
    return services.config.chat.model_copy(update=changed)


def _explanation(error: Exception, draft: Draft) -> str:
    """Return the one sentence for whoever asked; what nobody expected also goes to the log, with its id."""
    if isinstance(error, ServerBusyError):
        return tr(BUSY, seconds=max(1, round(error.retry_after_s)))
    if isinstance(error, ServerUnavailableError | ServerLoadingError):
        _log.warning("reply.server_away", reply_id=draft.reply_id, error=str(error))
        return tr(BROKE_OFF if draft.text.strip() else UNREACHABLE)
    if isinstance(error, ContextError):
        return tr(str(error))
    if isinstance(error, DiskFullError):
        _log.error("reply.disk_full", reply_id=draft.reply_id)
        return tr(DISK_FULL)
    _log.error("reply.failed", reply_id=draft.reply_id, exc_info=error)
    return tr(UNEXPECTED, id=draft.reply_id)


@contextlib.asynccontextmanager
async def _lenient(typing: AbstractAsyncContextManager[Any]) -> AsyncIterator[None]:
    """Show the typing indicator where Discord lets us; its failure must not cost the reply."""
    async with contextlib.AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(typing)
        except Exception as error:  # The boundary to discord.py's typing task.
            _log.debug("typing.failed", error=type(error).__name__)
        yield
