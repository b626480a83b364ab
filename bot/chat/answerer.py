"""Answer questions: context, model, streaming, and one plain sentence for whatever goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import secrets
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import structlog

from bot.chat import pairing
from bot.chat.draft import Draft, Pair, Plan, Progress, RecordedQuestion, Regeneration
from bot.chat.failures import explanation
from bot.chat.generation import Generator
from bot.chat.prompt import Prompt
from bot.chat.question import Question
from bot.chat.reply_recorder import ReplyRecorder
from bot.delivery.streaming import LOCAL_PACE_S, PACE_S, Paces, ReplyRenderer, State, Surface
from bot.delivery.typing_indicator import TypingIndicator
from bot.errors import (
    ChannelGoneError,
    ChannelRefusedError,
    DeliveryError,
    TextRefusedError,
    ThreadClosedError,
)
from bot.language.texts import mark, tr
from bot.services import Services
from bot.serving.errors import ServerBusyError
from storage.chat.replies import Status
from storage.chat.reply_versions import Versions
from storage.learning.trials import BASE

STOPPED = mark("-# I was shut down in the middle of this. Ask me again in a moment.")
TRUNCATED = mark("-# Your message was longer than I can read at once: I read its beginning and its end.")
SHORTENED = mark(
    "-# What your message refers to is longer than I can read at once: I read its beginning and its end."
)
LEFT_OUT = mark(
    "-# This conversation is longer than I can read at once: from here on I leave out the oldest messages "
    "({count} so far)."
)
NOTHING_SAID = mark("-# I found no words for that. Please try another wording.")
FILTERED = mark(
    "-# Discord's filter did not let my answer through: it may hold a link or words that are not allowed "
    "here. Please ask in another way."
)
QUESTION_DELETED = mark("-# The question was deleted.")
STOPPED_BY_MEMBER = mark("-# Stopped.")

MAX_IN_FLIGHT = 64
MAX_IN_CHANNEL = 48
_REMEMBERED_WITHDRAWN = 1000

_log = structlog.get_logger(__name__)


IsDeleted = Callable[[int], Awaitable[bool]]
"""Whether the message with this id was deleted before its question was stored."""


class ReplyControls(Protocol):
    """The buttons below a reply, as the feature that answers to them makes them; None for none."""

    def writing(self, reply_id: str) -> Any:
        """Return what stands below a reply that is being written."""

    def finished_controls(
        self,
        reply_id: str,
        versions: Versions | None = None,
        *,
        has_text: bool = True,
        votes: tuple[int, int] = (0, 0),
    ) -> Any:
        """Return what stands below a reply that is done."""

    def comparing(self, first_id: str) -> Any:
        """Return what stands below two candidates, of which the first is named."""


class Answerer:
    """Answers questions, many at a time, each in a task of its own."""

    def __init__(
        self,
        services: Services,
        controls: ReplyControls,
        is_deleted: IsDeleted | None = None,
        on_refused: Callable[[Question], Awaitable[None]] | None = None,
    ) -> None:
        self._services = services
        self._is_deleted = is_deleted
        self._on_refused = on_refused
        self._recorder = ReplyRecorder(services)
        self._generator = Generator(services, self._recorder)
        self.paces = Paces(LOCAL_PACE_S if services.playground else PACE_S)
        self._controls = controls
        self._tasks: set[asyncio.Task[Draft]] = set()
        self._writing: dict[str, tuple[Draft, asyncio.Task[Draft]]] = {}
        self._writing_in: Counter[int] = Counter()
        self._withdrawn: deque[int] = deque(maxlen=_REMEMBERED_WITHDRAWN)
        self._closing = False

    @property
    def in_flight(self) -> int:
        """How many replies are being written."""
        return len(self._tasks)

    @property
    def _at_the_model(self) -> int:
        """How many replies need the model: one that waits for its channel to take the text does no more."""
        return sum(not draft.progress.ended for draft, _ in self._writing.values())

    def is_writing_in(self, channel_id: int) -> bool:
        """Whether a reply is being written in this channel."""
        return self._writing_in[channel_id] > 0

    def withdrew(self, message_id: int) -> bool:
        """Whether the bot itself deleted this message, as one that its reply turned out not to need."""
        return message_id in self._withdrawn

    def start(
        self,
        question: Question,
        surface: Surface,
        typing: AbstractAsyncContextManager[Any] | None = None,
        again: Regeneration | None = None,
    ) -> asyncio.Task[Draft] | None:
        """Begin to answer; returns the task, or None when the bot is being stopped.

        With ``again``, another version is written over the messages of an earlier reply.
        """
        if self._closing:
            return None
        if self._writing_in[question.channel_id] >= MAX_IN_CHANNEL:
            # A channel that takes texts more slowly than it asks: more of them would only wait there.
            _log.warning("channel.flooded", channel_id=question.channel_id)
            return None
        indicator = TypingIndicator(typing or contextlib.nullcontext())
        draft = self._draft(question, surface, again, indicator)
        task = asyncio.create_task(self._run(draft, indicator))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._writing[draft.reply_id] = (draft, task)
        task.add_done_callback(lambda _: self._writing.pop(draft.reply_id, None))
        return task

    def being_written(self, *reply_ids: str, message_id: int = 0) -> Draft | None:
        """Return the draft of one of these replies, or of a version beside one, or on this message."""
        for draft, _ in self._writing.values():
            beside = draft.again.reply_id if draft.again else None
            if draft.reply_id in reply_ids or beside in reply_ids:
                return draft
            if message_id in draft.renderer.message_ids:
                return draft
        return None

    def reword(self, message_id: int, text: str) -> None:
        """Take over what a question says now, as long as it waits to be recorded: while the model loads."""
        for draft, _ in self._writing.values():
            if draft.question.discord_id == message_id and draft.again is None and not draft.progress.stored:
                draft.question = dataclasses.replace(draft.question, text=text)

    def withdrawing(self, message_id: int) -> None:
        """Note that the bot itself deletes a message of its own, which says nothing about its reply."""
        self._withdrawn.append(message_id)

    def stop(self, reply_id: str) -> bool:
        """End a reply where it is and free the model at once; False if it isn't being written (any more)."""
        draft, task = self._writing.get(reply_id, (None, None))
        if draft is None or task is None or draft.progress.ended or draft.progress.stop_requested:
            return False
        draft.progress.stop_requested = True
        return task.cancel()

    def stop_writing_on(self, message_id: int) -> None:
        """End the reply that is being written on this message, if there is one."""
        if (draft := self.being_written(message_id=message_id)) is not None:
            self.stop(draft.reply_id)

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

    async def _run(self, draft: Draft, typing: TypingIndicator) -> Draft:
        channel_id = draft.question.channel_id
        self._writing_in[channel_id] += 1
        try:
            # One indicator a channel is enough: Discord limits them, and many at once would be refused.
            async with typing if self._writing_in[channel_id] == 1 else contextlib.nullcontext():
                await self._answer(draft)
        except asyncio.CancelledError:
            stopped = draft.progress.stop_requested and not self._closing
            draft.progress.notes.append(tr(STOPPED_BY_MEMBER if stopped else STOPPED))
            await self._close(draft, "stopped", "a member stopped it" if stopped else "the bot was stopped")
            task = asyncio.current_task()
            if not stopped or task is None:
                raise
            task.uncancel()
        except Exception as error:  # The task's boundary: whoever asked gets one sentence, the log the rest.
            draft.progress.notes.append(explanation(error, draft))
            await self._close(draft, "failed", type(error).__name__)
        finally:
            self._writing_in -= Counter([channel_id])
        return draft

    def _draft(
        self, question: Question, surface: Surface, again: Regeneration | None, typing: TypingIndicator
    ) -> Draft:
        renderer = ReplyRenderer(
            surface,
            self.paces.of(question.channel_id),
            _RecordedParts(self, self._recorder, typing, lambda: draft),
            lambda state: self._below(draft, state),
            [(message_id, "") for message_id in again.messages] if again else (),
        )
        progress = Progress(asyncio.get_running_loop().time())
        draft = Draft(f"r{secrets.token_hex(8)}", question, renderer, progress, again)
        return draft

    def _below(self, draft: Draft, state: State) -> Any:
        """Return the buttons below a reply: a way to stop it, then what can be done with it."""
        if state == "writing":
            return self._controls.writing(draft.reply_id)
        if draft.fell_back and draft.again is not None:
            again = draft.again
            return self._controls.finished_controls(again.reply_id, again.versions, votes=again.votes)
        if not draft.progress.stored:
            return None
        if draft.pair is not None:
            return self._controls.comparing(draft.pair.first.reply_id)
        return self._controls.finished_controls(
            draft.reply_id, draft.progress.versions, has_text=draft.progress.has_words
        )

    async def _answer(self, draft: Draft) -> None:
        """Record the question, route it, plan its prompt, generate, deliver."""
        if self._at_the_model > MAX_IN_FLIGHT:
            raise ServerBusyError("too many replies in flight", 30.0)
        base, loaded = await self._generator.ready(draft)
        recorded = draft.recorded = await self._recorder.question(draft, base)
        overtaken = self._is_deleted is not None and await self._is_deleted(draft.question.discord_id)
        if recorded is None or overtaken:
            return await self._drop(draft)
        route = await self._generator.settle(recorded.route, loaded, draft.reply_id)
        plan = draft.plan = await self._generator.plan(draft.question, recorded, base, route)
        await self._recorder.start(draft, recorded, plan)
        _note_omissions(draft, recorded, plan.prompt)
        if draft.again is None and pairing.wants_two_candidates(
            self._services.config.replies, draft.question, len(self._tasks)
        ):
            await self._compare(draft, recorded, plan, loaded)
        else:
            await self._generator.write(draft)
        if not draft.progress.has_words:
            draft.progress.notes.append(tr(NOTHING_SAID))
        return await self._close(draft, "complete")

    async def _drop(self, draft: Draft) -> None:
        """Its question was deleted before anything was said: say nothing, unless a message waits already."""
        _log.info("question.deleted", reply_id=draft.reply_id)
        if draft.renderer.has_begun:
            draft.progress.notes.append(tr(QUESTION_DELETED))
            return await self._close(draft, "stopped")
        now = asyncio.get_running_loop().time()
        return await self._recorder.end(draft, now, "stopped", "QuestionDeleted")

    async def _compare(
        self, draft: Draft, recorded: RecordedQuestion, plan: Plan, loaded: frozenset[str]
    ) -> None:
        """Write a second candidate beside the planned one; if it fails, the planned one is shown alone."""
        rival = self._rival(draft)
        opponent = await pairing.opponent(self._services, recorded.scope, plan)
        other_sampling = dataclasses.replace(plan.sampling, seed=secrets.randbits(31))
        answering = await self._generator.choose_loaded(opponent, loaded)
        rival.plan = dataclasses.replace(plan.route_to(answering, BASE), sampling=other_sampling)
        await self._recorder.start(rival, recorded, rival.plan)
        usual, other = await asyncio.gather(
            self._generator.write(draft), self._generator.write(rival), return_exceptions=True
        )
        if isinstance(usual, BaseException):
            raise usual
        if isinstance(other, BaseException) or not (draft.progress.has_words and rival.progress.has_words):
            return await self._drop_candidate(draft, "failed", "the other candidate failed")
        await self._recorder.end(rival, asyncio.get_running_loop().time(), "complete", delivered=False)
        if draft.pair is not None:
            await pairing.record(self._services, draft.pair, draft)
        return None

    def _rival(self, draft: Draft) -> Draft:
        """Return a second draft for the same question; the order of the two is random."""
        rival = dataclasses.replace(
            draft, reply_id=f"r{secrets.token_hex(8)}", progress=Progress(draft.progress.started_at)
        )
        pair = Pair(*random.sample((draft, rival), 2))
        draft.pair = rival.pair = pair
        return rival

    async def _drop_candidate(self, draft: Draft, status: Status, error: str) -> None:
        """Drop the other candidate of a pair; its reply ends as ``status``."""
        pair, draft.pair = draft.pair, None
        rival = None if pair is None else pair.other(draft)
        if rival is not None and rival.progress.stored:
            await self._recorder.end(rival, asyncio.get_running_loop().time(), status, error)

    async def _close(self, draft: Draft, status: Status, error: str | None = None) -> None:
        """Store the text, deliver it, and only then call the reply complete: what nobody read isn't rated."""
        draft.progress.ended = True
        if status != "complete":
            await self._drop_candidate(draft, status, error or "")
        now = asyncio.get_running_loop().time()
        await self._recorder.end(draft, now, status, error, delivered=False)
        try:
            await draft.renderer.finish(draft.visible_text())
            await self._settle(draft, status, error)
        except DeliveryError as failure:
            draft.progress.delivered = False
            if isinstance(failure, TextRefusedError):
                await self._say_filtered(draft)
            # Nobody has read it, so nobody's rating of it would mean anything.
            await self._settle(draft, "failed", type(failure).__name__)
            _log.warning("reply.not_delivered", reply_id=draft.reply_id, error=type(failure).__name__)
            # Nobody can put right that a channel is deleted or a thread closed.
            ended = isinstance(failure, ChannelGoneError | ThreadClosedError)
            refused = isinstance(failure, ChannelRefusedError) and not ended
            if refused and self._on_refused is not None and not self._closing:
                await self._on_refused(draft.question)

    async def _settle(self, draft: Draft, status: Status, error: str | None = None) -> None:
        """End what stands in the channel now, or can't: the reply, and the candidate beside it."""
        for each in (draft, *([draft.pair.other(draft)] if draft.pair else [])):
            await self._recorder.settle(each, status, error)

    async def _say_filtered(self, draft: Draft) -> None:
        """Replace an answer that a filter holds back by the reason; it leaves nothing half-written."""
        with contextlib.suppress(DeliveryError):
            await draft.renderer.replace(tr(FILTERED))


class _RecordedParts:
    """Has the messages of one reply recorded, each before it is sent and when it is there."""

    def __init__(
        self,
        answerer: Answerer,
        recorder: ReplyRecorder,
        typing: TypingIndicator,
        draft: Callable[[], Draft],
    ) -> None:
        self._answerer = answerer
        self._recorder = recorder
        self._typing = typing
        self._draft = draft

    async def sending(self, position: int) -> None:
        await self._recorder.sending(self._draft(), position)

    async def record_sent(self, message_id: int, position: int) -> None:
        await self._typing.end()
        await self._recorder.part(self._draft(), message_id, position)

    async def withdrawing(self, message_id: int) -> None:
        self._answerer.withdrawing(message_id)

    async def withdrawn(self, message_id: int) -> None:
        await self._recorder.withdrawn(self._draft(), message_id)


def _note_omissions(draft: Draft, recorded: RecordedQuestion, prompt: Prompt) -> None:
    """Say below the reply what was too long to be read."""
    if prompt.truncated:
        draft.progress.notes.append(tr(TRUNCATED))
    elif prompt.shortened:
        draft.progress.notes.append(tr(SHORTENED))
    elif prompt.dropped_turns and not recorded.left_out_before:
        draft.progress.notes.append(tr(LEFT_OUT, count=prompt.dropped_turns))
