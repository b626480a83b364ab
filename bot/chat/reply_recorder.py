"""The rows that a reply leaves: its question, its start, its parts and its end."""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from bot.chat.content import stored_question
from bot.chat.draft import Draft, Plan, RecordedQuestion
from bot.chat.prompt import Turn
from bot.chat.question import Question
from bot.errors import ContextError
from bot.language.texts import mark
from bot.services import Services
from bot.serving.protocol import BaseDescription
from storage.chat import (
    context_resets,
    conversations,
    members,
    open_replies,
    replies,
    reply_versions,
)
from storage.chat.conversations import Message
from storage.chat.reply_versions import Versions
from storage.db import key_values
from storage.db.database import Connection
from storage.learning import adapters, trials
from storage.learning.trials import Route

_log = structlog.get_logger(__name__)


class ReplyRecorder:
    """Writes the rows of a reply. Once a question is recorded, every later write may come twice."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def open(self, draft: Draft) -> None:
        """Store the question and that it is to be answered, before anything is said and a base is known."""
        scope = self._services.scope(draft.question.guild_id)
        reference = self._services.permission_reference

        await self._services.database.awrite(
            lambda db: _open(db, draft, scope, key_values.get(db, key_values.SERVED_BASE) or "", reference)
        )
        draft.progress.stored = True

    async def question(self, draft: Draft, base: BaseDescription) -> RecordedQuestion | None:
        """Store the question below what it answers to, and return everything that its reply needs.

        A question that is answered again is there already; None stands for one that was deleted meanwhile.
        """
        question, again = draft.question, draft.again
        place = _Place(
            self._services.scope(question.guild_id), base.hash, self._services.config.gate.canary_not_in
        )
        if again is not None:
            return await self._services.database.awrite(
                lambda db: _asked_again(db, question, again.prompt_message_id, place)
            )
        reference = self._services.permission_reference
        recorded = await self._services.database.awrite(
            lambda db: _record_question(db, draft, place, reference)
        )
        draft.progress.stored = True
        return recorded

    async def start(self, draft: Draft, recorded: RecordedQuestion, plan: Plan) -> None:
        """Store the reply's row, stamped with all that will produce it."""
        sampling = plan.sampling.as_json()

        def work(db: Connection) -> None:
            replies.start(
                db,
                reply_id=draft.reply_id,
                prompt_message_id=recorded.message_id,
                scope=recorded.scope,
                adapter_id=plan.adapter_id,
                base_hash=plan.base.hash,
                prompt=[message.as_json() for message in plan.prompt.messages],
                seed=plan.sampling.seed or 0,
                sampling={name: value for name, value in sampling.items() if name != "seed"},
                asker_id=draft.question.author.user_id,
                context=recorded.turn_ids[plan.prompt.dropped_turns :],
                permission_reference=self._services.permission_reference,
            )
            trials.note(db, draft.reply_id, plan.route)
            _add_parts(db, draft)

        await self._services.database.awrite(work)
        draft.progress.stored = True

    async def reroute(self, draft: Draft, plan: Plan) -> None:
        """Stamp a reply that has begun with another adapter than its row says, and where it counts now."""

        def work(db: Connection) -> None:
            replies.reassign(db, draft.reply_id, plan.adapter_id)
            trials.note(db, draft.reply_id, plan.route)

        await self._services.database.awrite(work)

    async def show_version(self, draft: Draft) -> None:
        """Make the version that is being written the one that people see and rate."""
        again, progress = draft.again, draft.progress
        if again is None or not progress.stored or progress.versions is not None:
            return

        def work(db: Connection) -> Versions:
            reply_versions.add(db, draft.reply_id, beside=again.reply_id)
            return reply_versions.show(db, draft.reply_id)

        progress.versions = await self._services.database.awrite(work)

    async def sending(self, draft: Draft, position: int) -> None:
        """Store that one more Discord message is about to be sent; the first one is in the reply's row."""
        if position and draft.progress.stored:
            await self._services.database.awrite(
                lambda db: open_replies.send_part(db, draft.reply_id, position)
            )

    async def part(self, draft: Draft, message_id: int, position: int) -> None:
        """Tie one Discord message to the reply, so that a rating on it counts."""
        draft.progress.parts.append((message_id, position))
        if not draft.progress.stored:
            return
        try:
            await self._services.database.awrite(lambda db: _add_parts(db, draft))
        except Exception:  # Whatever storage says, the text goes on; the reply's end tries once more.
            _log.exception("reply.part_not_recorded", reply_id=draft.reply_id)

    async def withdrawn(self, draft: Draft, message_id: int) -> None:
        """Forget a Discord message that the reply didn't need, and that is gone."""
        draft.progress.parts = [part for part in draft.progress.parts if part[0] != message_id]
        await self._services.database.awrite(lambda db: replies.drop_part(db, message_id))

    async def end(
        self,
        draft: Draft,
        now: float,
        status: replies.Status,
        error: str | None = None,
        *,
        delivered: bool = True,
    ) -> None:
        """Store the outcome, and log the reply in one line; what failed at once gets its row here.

        What is still to be delivered stays open, with its whole text, until `settle`; a start delivers it.
        """
        progress, plan = draft.progress, draft.plan
        usage = progress.usage
        planned_tokens = plan.prompt_tokens if plan else None
        figures = {
            "prompt_tokens": usage.prompt_tokens if usage else planned_tokens,
            "completion_tokens": usage.completion_tokens if usage else None,
            "queue_ms": progress.ms_until(progress.requested_at),
            "first_token_ms": progress.ms_until(progress.first_token_at),
            "duration_ms": progress.ms_until(now),
        }

        def work(db: Connection) -> None:
            _add_parts(db, draft)
            replies.finish(
                db,
                draft.reply_id,
                content=progress.text.strip(),
                status=status if delivered else "streaming",
                finish_reason=progress.finish_reason,
                error=error,
                **figures,
            )

        try:
            if not progress.stored and draft.again is None:
                await self.open(draft)
            if progress.stored:
                await self._services.database.awrite(work)
        except Exception:  # Whatever storage says, the text must still be delivered.
            _log.exception("reply.not_recorded", reply_id=draft.reply_id)
        _log.info(
            "reply",
            reply_id=draft.reply_id,
            status=status,
            adapter_id=plan.adapter_id if plan else None,
            channel_id=draft.question.channel_id,
            error=error,
            **figures,
        )

    async def settle(self, draft: Draft, status: replies.Status, error: str | None = None) -> None:
        """Store that a reply stands in its channel as it is stored, or can't."""
        if not draft.progress.stored:
            return
        try:
            await self._services.database.awrite(
                lambda db: open_replies.settle(db, draft.reply_id, status, error)
            )
        except Exception:  # It is delivered; the next start compares it once more.
            _log.exception("reply.not_recorded", reply_id=draft.reply_id)


def _add_parts(db: Connection, draft: Draft) -> None:
    for message_id, position in draft.progress.parts:
        replies.add_part(db, draft.reply_id, message_id, draft.question.channel_id, position)


@dataclass(frozen=True, slots=True)
class _Place:
    """Whose adapters answer on which base, and the servers and channels that take part in no trial."""

    scope: str
    base_hash: str
    left_out: tuple[int, ...]


def _open(db: Connection, draft: Draft, scope: str, base_hash: str, permission_reference: str) -> Message:
    """Store a question, and in the same breath that a reply to it is to come."""
    question = draft.question
    asked = stored_question.store(db, question, scope, permission_reference)
    replies.open_reply(
        db,
        reply_id=draft.reply_id,
        prompt_message_id=asked.id,
        scope=scope,
        base_hash=base_hash,
        asker_id=question.author.user_id,
        permission_reference=permission_reference,
    )
    return asked


def _record_question(
    db: Connection, draft: Draft, place: _Place, permission_reference: str
) -> RecordedQuestion | None:
    asked = _open(db, draft, place.scope, place.base_hash, permission_reference)
    if asked.deleted_ms is not None or not asked.words.strip():
        return None
    return _asked(db, draft.question, asked, place)


def _asked_again(db: Connection, question: Question, message_id: int, place: _Place) -> RecordedQuestion:
    asked = conversations.get_message(db, message_id)
    if asked is None or asked.deleted_ms is not None or not asked.words.strip():
        raise ContextError(mark("The question was deleted, so I can't answer it again."))
    return _asked(db, question, asked, place)


def _asked(db: Connection, question: Question, asked: Message, place: _Place) -> RecordedQuestion:
    """Return a recorded question with what was said above it, and who answers."""
    chain, parent_id = _context(db, question, asked.id), asked.parent_id
    return RecordedQuestion(
        conversation_id=chain[-1].conversation_id,
        message_id=asked.id,
        scope=place.scope,
        route=_route(db, question, chain[-1].conversation_id, place),
        turns=tuple(_turn(db, message) for message in chain),
        turn_ids=tuple(message.id for message in chain),
        left_out_before=parent_id is not None and replies.had_left_out(db, parent_id, len(chain) - 2),
    )


def _route(db: Connection, question: Question, conversation_id: int, place: _Place) -> Route:
    champion = adapters.ensure_champion_row(db, place.scope, place.base_hash)
    conversation = conversations.get(db, conversation_id)
    if conversation is None:
        return Route(champion, champion)
    return trials.route(
        db,
        scope=place.scope,
        base_hash=place.base_hash,
        champion=champion,
        conversation=conversation,
        asker_id=question.author.user_id,
        left_out=place.left_out,
    )


def _context(db: Connection, question: Question, message_id: int) -> list[conversations.Message]:
    """Return the question and what was said above it, without what was deleted or left behind."""
    chain = conversations.chain(db, message_id)
    begun_in = conversations.get(db, chain[-1].conversation_id)
    places = {question.channel_id, begun_in.channel_id if begun_in else question.channel_id}
    # Somebody may have begun afresh while the question waited: what it asks stays.
    above = context_resets.since(chain[:-1], context_resets.boundary(db, places))
    return [
        message for message in (*above, chain[-1]) if message.deleted_ms is None and message.words.strip()
    ]


def _turn(db: Connection, message: conversations.Message) -> Turn:
    if message.author_id is None:
        return Turn(message.words)
    author = members.get(db, message.author_id)
    return Turn(message.words, message.author_id, author.display_name if author else "")
