"""Answer one question: context, model, streaming, and a row that says what produced every word."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, cast

import structlog

from bot import context
from bot.context import Prompt, Turn
from bot.errors import BotError, ChannelRefusedError, ContextError, DeliveryError
from bot.questions import Question
from bot.services import Services
from bot.serving.errors import (
    RequestRejectedError,
    ServerBusyError,
    ServerLoadingError,
    ServerUnavailableError,
    ServingError,
    UnknownModelError,
)
from bot.serving.protocol import BaseDescription, ChatDelta, ChatMessage, Health, Usage
from bot.streaming import LOCAL_PACE_S, PACE_S, Paces, ReplyRenderer, Surface
from storage import adapters, conversations, members, replies
from storage.clock import now_ms
from storage.errors import DiskFullError, StorageError

UNREACHABLE = "My model server is not reachable right now; I'll be back by myself when it is."
LOADING = "My model is still loading. I'll answer here as soon as it is ready."
STOPPED = "-# I was switched off in the middle of this. Ask me again in a moment."
BROKE_OFF = "-# My model server stopped in the middle of this. Ask me again in a moment."
BUSY = "I have more questions than I can take right now. Please ask me again in {seconds} seconds."
TRUNCATED = "-# Your message was longer than I can read at once: I read its beginning and its end."
NOTHING_SAID = "-# I found no words for that. Please try another wording."

REPLY_DEADLINE_S = 300.0
LOADING_DEADLINE_S = 900.0
LOADING_POLL_S = 2.0
BUSY_TRIES = 3
MAX_IN_FLIGHT = 64
# Below this much room for a prompt, an answer would know nothing of the question.
MIN_PROMPT_TOKENS = 64
DM_MEMORY_MS = 30 * 60 * 1000
_REMEMBERED_DMS = 1000

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What storage knows once the question is recorded."""

    conversation_id: int
    message_id: int
    turns: tuple[Turn, ...]
    scope: str
    champion: str | None
    turn_ids: tuple[int, ...]


@dataclass
class _Draft:
    """A reply while it is being written."""

    reply_id: str
    question: Question
    renderer: ReplyRenderer
    started_at: float
    parts: list[tuple[int, int]] = field(default_factory=list)
    recorded: bool = False
    text: str = ""
    notes: list[str] = field(default_factory=list)
    adapter_id: str | None = None
    finish_reason: str | None = None
    usage: Usage | None = None
    prompt_tokens: int | None = None
    requested_at: float | None = None
    first_token_at: float | None = None
    assistant_message_id: int | None = None
    conversation_id: int | None = None

    def shown(self) -> str:
        """The whole visible text: the question where it must be quoted, the answer, the notes below it."""
        body = self.text.strip()
        if self.finish_reason == "length" and body:
            body += " …"
        return "\n\n".join(piece for piece in (self.question.quote, body, self.question.note, *self.notes) if piece)


class Answerer:
    """Answers questions, many at a time, each in a task of its own."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._paces = Paces(LOCAL_PACE_S if services.playground else PACE_S)
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self._writing_in: dict[int, int] = {}
        self._last_in_dm: OrderedDict[int, tuple[int, int, int]] = OrderedDict()

    @property
    def in_flight(self) -> int:
        """How many replies are being written."""
        return len(self._tasks)

    def is_writing_in(self, channel_id: int) -> bool:
        """Whether a reply is being written in this channel."""
        return self._writing_in.get(channel_id, 0) > 0

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
        """Take no more questions; let replies in flight finish, then make the rest say that they were stopped."""
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
        channel_id = question.channel_id
        self._writing_in[channel_id] = self._writing_in.get(channel_id, 0) + 1
        draft = self._draft(question, surface)
        try:
            async with _lenient(typing):
                await self._answer(draft)
        except asyncio.CancelledError:
            draft.notes.append(STOPPED)
            await self._close(draft, "stopped", "the bot was stopped")
            raise
        except ChannelRefusedError:
            _log.warning("reply.channel_refused", reply_id=draft.reply_id, channel_id=channel_id)
            await self._record_end(draft, "failed", "the channel refused the message")
        except Exception as error:  # The task's boundary: whoever asked gets one sentence, the log the rest.
            draft.notes.append(_explanation(error, draft))
            await self._close(draft, "failed", type(error).__name__)
        finally:
            self._writing_in[channel_id] -= 1
            if not self._writing_in[channel_id]:
                del self._writing_in[channel_id]

    def _draft(self, question: Question, surface: Surface) -> _Draft:
        async def on_part(message_id: int, position: int) -> None:
            draft.parts.append((message_id, position))
            if not draft.recorded:
                return
            try:
                await self._services.database.awrite(
                    lambda db: replies.add_part(db, draft.reply_id, message_id, question.channel_id, position)
                )
            except StorageError as failure:
                # Tried once more when the reply ends; the text goes on.
                _log.error("reply.part_not_recorded", reply_id=draft.reply_id, error=str(failure))

        renderer = ReplyRenderer(surface, self._paces.of(question.channel_id), on_part)
        started_at = asyncio.get_running_loop().time()
        draft = _Draft(f"r{secrets.token_hex(8)}", question, renderer, started_at)
        return draft

    async def _answer(self, draft: _Draft) -> None:
        if len(self._tasks) > MAX_IN_FLIGHT:
            raise ServerBusyError("too many replies in flight", 30.0)
        health = await self._ready(draft)
        asked = await self._record_question(draft.question, health.base)
        draft.adapter_id = await self._loaded(asked.champion, health)
        prompt = await self._prompt(draft, asked, health.base)
        seed = secrets.randbits(31)
        await self._record_start(draft, asked, prompt, health.base, seed)
        if prompt.truncated:
            draft.notes.append(TRUNCATED)
        await self._generate(draft, prompt, draft.adapter_id or health.base.id, seed)
        if not draft.text.strip():
            draft.notes.append(NOTHING_SAID)
        await self._close(draft, "complete")
        self._remember(draft)

    async def _ready(self, draft: _Draft) -> _ReadyHealth:
        """Return the server's health; while its model loads, say so in the reply and wait."""
        ends_at = asyncio.get_running_loop().time() + LOADING_DEADLINE_S
        while True:
            try:
                health = await self._services.health()
            except ServerLoadingError:
                if asyncio.get_running_loop().time() > ends_at:
                    raise
                draft.renderer.show("\n\n".join(filter(None, (draft.question.quote, LOADING))))
                await asyncio.sleep(LOADING_POLL_S)
            else:
                return _ReadyHealth.of(health)

    async def _record_question(self, question: Question, base: BaseDescription) -> _Asked:
        scope = self._services.scope(question.guild_id)
        recent = self._last_in_dm.get(question.channel_id)
        if recent is not None and now_ms() - recent[2] > DM_MEMORY_MS:
            recent = None
        return await self._services.database.awrite(
            lambda db: _record_question(
                db, question, scope, base.hash, self._services.permission_reference, recent
            )
        )

    async def _loaded(self, champion: str | None, health: _ReadyHealth) -> str | None:
        """Return the champion once the server has it; the base answers for one that can't be loaded."""
        if champion is None or champion in health.adapters:
            return champion
        try:
            await self._services.load_adapter(champion)
        except (ServerUnavailableError, ServerLoadingError):
            raise
        except (ServingError, StorageError) as error:
            _log.error("adapter.not_loadable", adapter_id=champion, error=str(error))
            return None
        return champion

    async def _prompt(self, draft: _Draft, asked: _Asked, base: BaseDescription) -> Prompt:
        chat = self._services.config.chat
        room = (base.context_tokens or self._services.config.model.context_tokens) - chat.max_new_tokens
        budget = max(MIN_PROMPT_TOKENS, min(chat.context_tokens, room))

        async def count(messages: Sequence[ChatMessage]) -> int:
            return await self._services.model.count_tokens(model=base.id, messages=list(messages))

        prompt, draft.prompt_tokens = await context.build_within(
            chat.system_prompt, asked.turns, budget, count, base.special_tokens
        )
        return prompt

    async def _record_start(
        self, draft: _Draft, asked: _Asked, prompt: Prompt, base: BaseDescription, seed: int
    ) -> None:
        def work(db: Any) -> replies.Reply:
            reply = replies.start(
                db,
                reply_id=draft.reply_id,
                prompt_message_id=asked.message_id,
                scope=asked.scope,
                adapter_id=draft.adapter_id,
                base_hash=base.hash,
                prompt=[message.as_json() for message in prompt.messages],
                seed=seed,
                sampling=self._sampling(),
                asker_id=draft.question.author.user_id,
                context=asked.turn_ids[prompt.dropped_turns :],
                permission_reference=self._services.permission_reference,
            )
            for message_id, position in draft.parts:
                replies.add_part(db, draft.reply_id, message_id, draft.question.channel_id, position)
            return reply

        reply = await self._services.database.awrite(work)
        # From here on a new part writes its own row; one sent while this committed is caught by _record_end.
        draft.recorded = True
        draft.assistant_message_id, draft.conversation_id = reply.message_id, reply.conversation_id

    def _sampling(self) -> dict[str, Any]:
        chat = self._services.config.chat
        return {
            "temperature": chat.temperature,
            "top_p": chat.top_p,
            "top_k": chat.top_k,
            "max_tokens": chat.max_new_tokens,
        }

    async def _generate(self, draft: _Draft, prompt: Prompt, model: str, seed: int) -> None:
        """Stream the answer into the draft; an adapter that the server forgot is loaded and asked again, once."""
        reloaded = False
        for attempt in range(1, BUSY_TRIES + 1):
            try:
                return await self._stream(draft, prompt, model, seed)
            except UnknownModelError:
                if reloaded or draft.adapter_id is None:
                    raise
                reloaded = True
                await self._services.load_adapter(draft.adapter_id)
            except ServerBusyError as busy:
                if attempt == BUSY_TRIES:
                    raise
                await asyncio.sleep(min(busy.retry_after_s, 10.0))
        raise ServerBusyError("no turn at the model server", 10.0)

    async def _stream(self, draft: _Draft, prompt: Prompt, model: str, seed: int) -> None:
        loop = asyncio.get_running_loop()
        draft.requested_at = loop.time()
        deltas = self._services.model.chat_stream(
            model=model,
            messages=list(prompt.messages),
            seed=seed,
            deadline_s=REPLY_DEADLINE_S,
            **self._sampling(),
        )
        # Closing the generator at once frees the server from a reply that nobody waits for any more.
        async with contextlib.aclosing(cast("AsyncGenerator[ChatDelta, None]", deltas)):
            async for delta in deltas:
                if delta.text:
                    draft.first_token_at = draft.first_token_at or loop.time()
                    draft.text += delta.text
                    if draft.text.strip():
                        draft.renderer.show(draft.shown())
                draft.finish_reason = delta.finish_reason or draft.finish_reason
                draft.usage = delta.usage or draft.usage

    async def _close(self, draft: _Draft, status: replies.Status, error: str | None = None) -> None:
        """Store the outcome first, then deliver the final text: a rating may follow as soon as it stands there."""
        await self._record_end(draft, status, error)
        try:
            await draft.renderer.finish(draft.shown())
        except DeliveryError as failure:
            _log.warning("reply.not_delivered", reply_id=draft.reply_id, error=type(failure).__name__)

    async def _record_end(self, draft: _Draft, status: replies.Status, error: str | None) -> None:
        loop = asyncio.get_running_loop()
        duration_ms = round((loop.time() - draft.started_at) * 1000)
        first_token_ms = _between_ms(draft.started_at, draft.first_token_at)
        usage = draft.usage

        def work(db: Any) -> None:
            if replies.get(db, draft.reply_id) is None:
                return
            for message_id, position in draft.parts:
                replies.add_part(db, draft.reply_id, message_id, draft.question.channel_id, position)
            replies.finish(
                db,
                draft.reply_id,
                content=draft.text.strip(),
                status=status,
                finish_reason=draft.finish_reason,
                prompt_tokens=usage.prompt_tokens if usage else draft.prompt_tokens,
                completion_tokens=usage.completion_tokens if usage else None,
                queue_ms=_between_ms(draft.started_at, draft.requested_at),
                first_token_ms=first_token_ms,
                duration_ms=duration_ms,
                error=error,
            )

        try:
            await self._services.database.awrite(work)
        except StorageError as failure:
            _log.error("reply.not_recorded", reply_id=draft.reply_id, error=str(failure))
        _log.info(
            "reply",
            reply_id=draft.reply_id,
            status=status,
            adapter_id=draft.adapter_id,
            channel_id=draft.question.channel_id,
            duration_ms=duration_ms,
            first_token_ms=first_token_ms,
            prompt_tokens=usage.prompt_tokens if usage else draft.prompt_tokens,
            completion_tokens=usage.completion_tokens if usage else None,
            error=error,
        )

    def _remember(self, draft: _Draft) -> None:
        """Let the next message of a direct conversation go on where this one ended."""
        if draft.question.guild_id is not None or draft.assistant_message_id is None:
            return
        assert draft.conversation_id is not None
        self._last_in_dm[draft.question.channel_id] = (
            draft.assistant_message_id,
            draft.conversation_id,
            now_ms(),
        )
        self._last_in_dm.move_to_end(draft.question.channel_id)
        if len(self._last_in_dm) > _REMEMBERED_DMS:
            self._last_in_dm.popitem(last=False)


@dataclass(frozen=True, slots=True)
class _ReadyHealth:
    base: BaseDescription
    adapters: frozenset[str]

    @classmethod
    def of(cls, health: Health) -> _ReadyHealth:
        if health.base is None:
            raise ServerLoadingError("The model is still loading.")
        return cls(health.base, frozenset(health.adapters))


def _record_question(
    db: Any,
    question: Question,
    scope: str,
    base_hash: str,
    permission_reference: str,
    recent: tuple[int, int, int] | None,
) -> _Asked:
    """Store the question below what it answers to, and read back everything that its reply needs."""
    question.author.ensure(db)
    parent_id, conversation_id = None, None
    parent = (
        conversations.by_discord_id(db, question.parent_discord_id) if question.parent_discord_id else None
    )
    if parent is not None:
        parent_id, conversation_id = parent.id, parent.conversation_id
    elif question.guild_id is None and recent is not None:
        parent_id, conversation_id = recent[0], recent[1]
    if conversation_id is None:
        place = "dm" if question.guild_id is None else str(question.guild_id)
        conversation_id = conversations.open_conversation(
            db,
            key=f"{place}:{question.channel_id}:{question.discord_id}",
            guild_id=question.guild_id,
            channel_id=question.channel_id,
            scope=scope,
            source=question.author.source,
            public=question.public,
        ).id
    message_id = conversations.add_message(
        db,
        conversation_id=conversation_id,
        discord_id=question.discord_id,
        parent_id=parent_id,
        author_id=question.author.user_id,
        role="user",
        content=question.text,
        permission_reference=permission_reference,
    )
    adapters.ensure_champion_row(db, scope, base_hash)
    champion = adapters.champion(db, scope, base_hash)
    chain = [
        message
        for message in conversations.chain(db, message_id)
        if message.deleted_ms is None and message.content.strip()
    ]
    return _Asked(
        conversation_id,
        message_id,
        tuple(_turn(db, message) for message in chain),
        scope,
        champion,
        tuple(message.id for message in chain),
    )


def _turn(db: Any, message: conversations.Message) -> Turn:
    if message.author_id is None:
        return Turn(message.content)
    author = members.get(db, message.author_id)
    return Turn(message.content, message.author_id, author.display_name if author else "")


def _between_ms(start: float | None, end: float | None) -> int | None:
    return None if start is None or end is None else round((end - start) * 1000)


def _explanation(error: Exception, draft: _Draft) -> str:
    """Return the one sentence for whoever asked; what nobody expected also goes to the log, with its id."""
    if isinstance(error, ServerBusyError):
        return BUSY.format(seconds=max(1, round(error.retry_after_s)))
    if isinstance(error, ServerUnavailableError | ServerLoadingError):
        _log.warning("reply.server_away", reply_id=draft.reply_id, error=str(error))
        return BROKE_OFF if draft.text.strip() else UNREACHABLE
    if isinstance(error, ContextError):
        return str(error)
    if isinstance(error, DiskFullError):
        _log.error("reply.disk_full", reply_id=draft.reply_id)
        return "My disk is full, so I can't keep this conversation. Please tell whoever runs me."
    known = isinstance(error, BotError | ServingError | StorageError) and not isinstance(
        error, RequestRejectedError
    )
    _log.error("reply.failed", reply_id=draft.reply_id, error=str(error) if known else None, exc_info=not known)
    return f"Something went wrong on my side (error `{draft.reply_id}`). It is in my log; please try again."


@contextlib.asynccontextmanager
async def _lenient(typing: AbstractAsyncContextManager[Any]) -> AsyncIterator[None]:
    """Show the typing indicator where Discord lets us; its failure is nobody's business."""
    async with contextlib.AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(typing)
        except Exception as error:  # Foreign code whose failure must not cost the reply.
            _log.debug("typing.failed", error=type(error).__name__)
        yield
