"""The model's part of a reply: which adapter writes, how it is asked, and its words as they come."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
from collections.abc import AsyncGenerator, Sequence
from typing import Any, cast

import structlog

from bot.chat.draft import Draft, Plan, RecordedQuestion
from bot.chat.prompt import build_within
from bot.chat.question import Question
from bot.chat.reply_recorder import ReplyRecorder
from bot.language.texts import mark, tr
from bot.services import EXTERNAL, Services
from bot.serving.errors import (
    PicturesRefusedError,
    ServerBusyError,
    ServerLoadingError,
    ServerUnavailableError,
    ServingError,
    UnknownModelError,
)
from bot.serving.model.control_tokens import escape_control_tokens
from bot.serving.protocol import BaseDescription, ChatDelta, ChatMessage, QueuePlace, Sampling
from storage.config import Config
from storage.config_sections import ChatConfig
from storage.errors import StorageError
from storage.learning.trials import Route

LOADING = mark("My model is still loading. I'll answer here as soon as it is ready.")
WAITING = mark("-# {ahead} before you, about {seconds} s.")
NOT_SEEN = mark("-# My model could not look at your picture: this answer is to your words alone.")
NEXT = mark("-# You are next, in about {seconds} s.")

REPLY_DEADLINE_S = 300.0
LOADING_DEADLINE_S = 900.0
LOADING_POLL_S = 2.0
BUSY_TRIES = 3
# A full queue that is free again this soon is waited out; a longer wait is told at once.
BUSY_PATIENCE_S = 10.0
# A place in the queue is worth a message where the wait is this long, and an edit this often.
SHORTEST_WAIT_S = 2.0
WAITING_EVERY_S = 4.0
# Below this much room for a prompt, an answer would know nothing of the question.
MIN_PROMPT_TOKENS = 64

_log = structlog.get_logger(__name__)


class Generator:
    """Asks the model server for the words of a draft."""

    def __init__(self, services: Services, recorder: ReplyRecorder) -> None:
        self._services = services
        self._recorder = recorder

    async def ready(self, draft: Draft) -> tuple[BaseDescription, frozenset[str]]:
        """Return the base and the loaded adapters; while the model loads, say so in the reply and wait."""
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + LOADING_DEADLINE_S
        while True:
            try:
                return await self._services.base_and_adapters()
            except ServerLoadingError:
                if loop.time() > ends_at:
                    raise
            if draft.again is None:
                if not draft.progress.stored:
                    await self._recorder.open(draft)
                draft.renderer.show("\n\n".join(filter(None, (draft.question.quote, tr(LOADING)))))
            await asyncio.sleep(LOADING_POLL_S)

    async def settle(self, route: Route, loaded: frozenset[str], reply_id: str) -> Route:
        """Return who answers: where the other side of a trial isn't loaded, nobody waits for it.

        But for replicas, where no list says who has it: there it is asked for once.
        """
        awaited = route.adapter_id in loaded or self._services.model.finds_adapters
        if route.diverted and route.adapter_id is not None and not awaited:
            _log.warning("trial.not_loaded", adapter_id=route.adapter_id, reply_id=reply_id)
            route = Route(route.champion, route.champion)
        adapter_id = await self.choose_loaded(route.adapter_id, loaded)
        return route if adapter_id == route.adapter_id else Route(adapter_id, adapter_id)

    async def plan(
        self, question: Question, recorded: RecordedQuestion, base: BaseDescription, route: Route
    ) -> Plan:
        """Return how the reply is to be made: its prompt within the model's context, and how it is drawn."""
        chat = chat_for(self._services.config, question, base)
        room = (base.context_tokens or self._services.config.model.context_tokens) - chat.max_new_tokens
        if question.pictures:
            room -= len(question.pictures) * await self._services.model.picture_tokens()
        budget = max(MIN_PROMPT_TOKENS, min(chat.context_tokens, room))

        async def count(messages: Sequence[ChatMessage]) -> int:
            return await self._services.model.count_tokens(model=base.id, messages=list(messages))

        prompt, tokens = await build_within(
            chat.system_prompt, recorded.turns, budget, count, base.special_tokens
        )
        return Plan(base, route.adapter_id, route, prompt, tokens, sampling_of(chat))

    async def choose_loaded(self, champion: str | None, loaded: frozenset[str]) -> str | None:
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

    async def write(self, draft: Draft) -> None:
        """Stream the answer; wait out a full queue, and load an adapter again that the server forgot."""
        for attempt in range(1, BUSY_TRIES + 1):
            plan = draft.require_plan()
            try:
                await self._stream_seen(draft, plan)
                return
            except UnknownModelError:
                if plan.route.diverted:
                    await self._back_to_champion(draft, plan)
                    continue
                if attempt == BUSY_TRIES or plan.adapter_id is None:
                    raise
                await self._services.load_adapter(plan.adapter_id)
            except ServerBusyError as busy:
                if attempt == BUSY_TRIES or busy.retry_after_s > BUSY_PATIENCE_S:
                    raise
                await asyncio.sleep(busy.retry_after_s)

    async def _back_to_champion(self, draft: Draft, plan: Plan) -> None:
        """Let the champion write a reply after all: the server lost the other side of a trial."""
        _log.warning("trial.not_loaded", adapter_id=plan.adapter_id, reply_id=draft.reply_id)
        champion = plan.route.champion
        draft.plan = plan.route_to(champion, Route(champion, champion))
        await self._recorder.reroute(draft, draft.plan)

    async def _stream_seen(self, draft: Draft, plan: Plan) -> None:
        """Stream the answer; where the server refuses the question's pictures, without them, and say so."""
        try:
            await self._stream(draft, plan)
        except PicturesRefusedError as error:
            _log.warning("pictures.refused", reply_id=draft.reply_id, error=str(error))
            draft.question = dataclasses.replace(draft.question, pictures=())
            draft.progress.notes.append(tr(NOT_SEEN))
            await self._stream(draft, plan)

    async def _stream(self, draft: Draft, plan: Plan) -> None:
        loop, progress = asyncio.get_running_loop(), draft.progress
        progress.requested_at = loop.time()
        deltas = self._services.model.chat_stream(
            model=plan.model,
            messages=list(plan.prompt.messages),
            sampling=plan.sampling,
            user=self._services.pseudonym(draft.question.author.user_id),
            queue_updates=not plan.base.hash.startswith(EXTERNAL),
            pictures=draft.question.pictures,
            deadline_s=REPLY_DEADLINE_S,
        )
        # Closing the generator at once frees the server from a reply that nobody waits for any more.
        async with contextlib.aclosing(cast("AsyncGenerator[ChatDelta, None]", deltas)):
            async for delta in deltas:
                progress.finish_reason = delta.finish_reason or progress.finish_reason
                progress.usage = delta.usage or progress.usage
                if delta.queue is not None and not progress.text:
                    _show_place(draft, delta.queue, loop.time())
                if delta.text:
                    progress.first_token_at = progress.first_token_at or loop.time()
                    progress.text += delta.text
                    if progress.has_words:
                        await self._recorder.show_version(draft)
                        draft.renderer.show(draft.visible_text())


def _show_place(draft: Draft, place: QueuePlace, now: float) -> None:
    """Say how long it will take, where that is worth saying and no reply needs the channel's next turn."""
    if draft.pair is not None:
        return  # the other of the two may have begun already
    progress = draft.progress
    seconds = max(1, round(place.wait_s))
    progress.waiting = tr(WAITING if place.ahead else NEXT, ahead=place.ahead, seconds=seconds)
    shown_at = progress.waiting_shown_at
    due = place.wait_s >= SHORTEST_WAIT_S if shown_at is None else now - shown_at >= WAITING_EVERY_S
    if due and draft.renderer.show_if_free(draft.waiting_text()):
        progress.waiting_shown_at = now


def chat_for(config: Config, question: Question, base: BaseDescription) -> ChatConfig:
    """Return how a reply is asked for in the question's place, with room left for the question itself."""
    found = question.in_force
    context_tokens = base.context_tokens or config.model.context_tokens
    persona = found.settings.system_prompt
    changed: dict[str, Any] = {
        # A server's admins are members too: their words can't end a turn either.
        "system_prompt": persona
        if found.origins["system_prompt"] == "file"
        else escape_control_tokens(persona),
        "temperature": found.settings.temperature,
    }
    length = found.settings.max_new_tokens
    if found.origins["max_new_tokens"] != "file":
        # An admin can't know the model's context: at least half of it is left for what was said.
        length = max(1, min(length, context_tokens // 2))
    changed["max_new_tokens"] = length
    return config.chat.for_base(base.parameters).model_copy(update=changed)


def sampling_of(chat: ChatConfig) -> Sampling:
    """Return how one reply is drawn, with a seed of its own."""
    return Sampling(max_tokens=chat.max_new_tokens, seed=secrets.randbits(31), **chat.sampling)
