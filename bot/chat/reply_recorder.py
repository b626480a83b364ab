"""The rows that a reply leaves: its question, its start, its parts and its end."""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from bot.chat.draft import Draft, Plan, RecordedQuestion, Regeneration
from bot.chat.prompt import Turn
from bot.chat.question import Cited, Continuation, Question
from bot.errors import ContextError
from bot.language.texts import mark
from bot.services import Person, Services
from bot.serving.protocol import BaseDescription
from storage.chat import channels, context_resets, conversations, members, replies, reply_versions
from storage.chat.reply_versions import Versions
from storage.db.clock import now_ms
from storage.db.database import Connection
from storage.learning import adapters, trials
from storage.learning.trials import Route

DM_MEMORY_MS = 30 * 60 * 1000
"""For how long the next direct message goes on with the conversation before it."""

_log = structlog.get_logger(__name__)


class ReplyRecorder:
    """Writes the rows of a reply. Once a question is recorded, every later write may come twice."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def question(
        self, question: Question, base: BaseDescription, again: Regeneration | None = None
    ) -> RecordedQuestion:
        """Store the question below what it answers to, and return everything that its reply needs.

        A question that is answered ``again`` is there already.
        """
        place = _Place(
            self._services.scope(question.guild_id), base.hash, self._services.config.gate.canary_not_in
        )
        if again is not None:
            return await self._services.database.awrite(
                lambda db: _asked_again(db, question, again.prompt_message_id, place)
            )
        reference = self._services.permission_reference
        return await self._services.database.awrite(
            lambda db: _record_question(db, question, place, reference)
        )

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
        """Forget a Discord message that the reply turned out not to need."""
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
        """Store the outcome, and log the reply in one line.

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

        if progress.stored:
            try:
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
            await self._services.database.awrite(lambda db: replies.settle(db, draft.reply_id, status, error))
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


def _record_question(
    db: Connection, question: Question, place: _Place, permission_reference: str
) -> RecordedQuestion:
    question.author.ensure(db)
    parent_id, conversation_id = _parent(db, question, place.scope, permission_reference)
    message_id = conversations.add_message(
        db,
        conversation_id=conversation_id or _new_conversation(db, question, place.scope),
        discord_id=question.discord_id,
        parent_id=parent_id,
        author_id=question.author.user_id if question.words_of is None else question.words_of,
        role="user",
        content=question.text,
        permission_reference=permission_reference,
        attached_text=question.attached_text,
        visible=question.visible,
        public=question.public,
        channel_id=question.channel_id,
    )
    channels.note(
        db,
        question.channel_id,
        guild_id=question.guild_id,
        public=question.public,
        parent_channel_id=question.parent_channel_id,
    )
    return _asked(db, question, message_id, parent_id, place)


def _asked_again(db: Connection, question: Question, message_id: int, place: _Place) -> RecordedQuestion:
    asked = conversations.get_message(db, message_id)
    if asked is None or asked.deleted_ms is not None or not asked.words.strip():
        raise ContextError(mark("The question was deleted, so I can't answer it again."))
    return _asked(db, question, message_id, asked.parent_id, place)


def _asked(
    db: Connection, question: Question, message_id: int, parent_id: int | None, place: _Place
) -> RecordedQuestion:
    """Return a recorded question with what was said above it, and who answers."""
    chain = _context(db, question, message_id)
    return RecordedQuestion(
        conversation_id=chain[-1].conversation_id,
        message_id=message_id,
        scope=place.scope,
        route=_route(db, question, chain[-1].conversation_id, place),
        turns=tuple(_turn(db, message) for message in chain),
        turn_ids=tuple(message.id for message in chain),
        left_out_before=parent_id is not None and replies.left_out_before(db, parent_id, len(chain) - 2),
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
    recent = context_resets.since(chain, context_resets.boundary(db, places))
    return [message for message in recent if message.deleted_ms is None and message.words.strip()]


def _parent(
    db: Connection, question: Question, scope: str, permission_reference: str
) -> tuple[int | None, int | None]:
    """Return the message that the question answers to or goes on from, and its conversation."""
    return _record_cited(db, question, scope, permission_reference, _below(db, question))


def _below(db: Connection, question: Question) -> tuple[int | None, int | None]:
    """Return what is known of what the question, and all that it cites, stands below."""
    if question.parent_discord_id is None:
        return _goes_on_from(db, question)
    parent = conversations.by_discord_id(db, question.parent_discord_id)
    if parent is not None:
        return parent.id, parent.conversation_id
    return (None, None) if question.cited else _goes_on_from(db, question)


def _goes_on_from(db: Connection, question: Question) -> tuple[int | None, int | None]:
    """Return the newest reply, or the thread's first message, that a question goes on from."""
    follows = question.follows
    if question.guild_id is None:
        follows = Continuation(now_ms() - DM_MEMORY_MS)
    if follows is None:
        return None, None
    last = replies.latest_in(db, question.channel_id, since_ms=follows.since_ms, asker_id=follows.asker_id)
    return _thread_starter(db, question) if last is None else (last.message_id, last.conversation_id)


def _thread_starter(db: Connection, question: Question) -> tuple[int | None, int | None]:
    """Return the message that the question's thread was opened on: a thread bears its message's id."""
    if question.parent_channel_id is None or question.channel_id == question.discord_id:
        return None, None
    starter = conversations.by_discord_id(db, question.channel_id)
    return (None, None) if starter is None else (starter.id, starter.conversation_id)


def _record_cited(
    db: Connection,
    question: Question,
    scope: str,
    permission_reference: str,
    below: tuple[int | None, int | None],
) -> tuple[int | None, int | None]:
    """Store what the question refers to, each message as its author's, below what that replies to."""
    parent_id, conversation_id = below
    for cited in question.cited:
        above = None
        if cited.parent_discord_id is not None:
            above = conversations.by_discord_id(db, cited.parent_discord_id)
        if above is not None:
            parent_id, conversation_id = above.id, above.conversation_id
        conversation_id = conversation_id or _new_conversation(db, question, scope)
        author = _author(db, cited)
        author.ensure(db)
        parent_id = conversations.add_message(
            db,
            conversation_id=conversation_id,
            discord_id=cited.discord_id,
            parent_id=parent_id,
            author_id=author.user_id,
            role="user",
            content=cited.text,
            permission_reference=permission_reference,
            visible=True,
            attached_text=cited.attached_text,
            public=question.public,
            channel_id=cited.channel_id or question.channel_id,
        )
    return parent_id, conversation_id


def _author(db: Connection, cited: Cited) -> Person:
    """Return whose words a message holds: of a forward, its author where the original is known here."""
    original = None if cited.forwarded_id is None else conversations.by_discord_id(db, cited.forwarded_id)
    if original is None or original.author_id is None:
        return cited.author
    return Person(original.author_id, "", original.source)


def _new_conversation(db: Connection, question: Question, scope: str) -> int:
    place = "dm" if question.guild_id is None else str(question.guild_id)
    return conversations.open_conversation(
        db,
        key=f"{place}:{question.channel_id}:{question.discord_id}",
        guild_id=question.guild_id,
        channel_id=question.channel_id,
        scope=scope,
        source=question.author.source,
        public=question.public,
        parent_channel_id=question.parent_channel_id,
    ).id


def _turn(db: Connection, message: conversations.Message) -> Turn:
    if message.author_id is None:
        return Turn(message.words)
    author = members.get(db, message.author_id)
    return Turn(message.words, message.author_id, author.display_name if author else "")
