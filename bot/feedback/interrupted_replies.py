"""Replies that an earlier process left open: each is delivered, marked as interrupted, or answered anew."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass

import discord
import structlog

from bot.chat.answerer import STOPPED, Answerer, ReplyControls
from bot.chat.generation import LOADING
from bot.chat.listener import MessageListener
from bot.chat.missed_questions import ANSWERED_MS
from bot.client import StropClient
from bot.delivery.targets import WrittenSurface, translate_errors
from bot.errors import ChannelRefusedError, DeliveryError, MessageGoneError
from bot.feedback.reply_actions import ReplyActions
from bot.language.texts import speaking, tr
from bot.ui.channel_language import language_in
from storage.chat import conversations, open_replies, replies, reply_versions
from storage.chat.conversations import Conversation, Message
from storage.chat.replies import Part, Reply
from storage.db.clock import now_ms
from storage.db.database import Connection
from storage.errors import DatabaseError, StorageError
from storage.feedback import side_by_side

_PAGE = 50

_log = structlog.get_logger(__name__)


class InterruptedReplies:
    """Finds them before the gateway is there, and settles each once its messages can be reached.

    A row ends only when its messages are in order: a kill in the midst of this leaves it to the next start.
    """

    def __init__(
        self,
        app: StropClient,
        controls: ReplyControls,
        actions: ReplyActions,
        listener: MessageListener,
        answerer: Answerer,
    ) -> None:
        self._app = app
        self._database = app.services.database
        self._controls = controls
        self._actions = actions
        self._listener = listener
        self._answerer = answerer
        self._found: list[Reply] = []

    async def find(self) -> None:
        """Note what no process writes any more, and what an earlier start was about to answer anew."""
        since_ms, shards = now_ms() - ANSWERED_MS, self._app.services.shards

        def work(db: Connection) -> list[Reply]:
            found = [
                *open_replies.all_open(db),
                *open_replies.list_unanswered(db, open_replies.INTERRUPTED, since_ms),
            ]
            # Another process may be writing those of other shards.
            return [reply for reply in found if shards.has_conversation(db, reply.conversation_id)]

        self._found = await self._database.aread(work)

    async def settle(self) -> None:
        """Settle what was found; what Discord doesn't take at the moment is left to the next session.

        Raises DatabaseError where the database can't be used: the next call goes on from there.
        """
        unreached: list[Reply] = []
        try:
            while self._found:
                if not await self._is_settled(self._found[0]):
                    unreached.append(self._found[0])
                del self._found[0]
        finally:
            self._found += unreached

    async def _is_settled(self, reply: Reply) -> bool:
        """Settle one reply; return whether that was possible."""
        try:
            await self._settle(reply)
        except DatabaseError:
            raise
        except (ChannelRefusedError, MessageGoneError, StorageError) as error:
            _log.info("reply.not_marked", reply_id=reply.id, error=type(error).__name__)
            await self._end(reply)
        except DeliveryError as error:
            _log.info("reply.not_reached", reply_id=reply.id, error=type(error).__name__)
            return False
        return True

    async def _settle(self, reply: Reply) -> None:
        """Deliver, answer anew, or mark one reply. Raises DeliveryError."""
        if reply.status == "failed" and await self._has_answer(reply):
            return None  # while it waited for Discord, its question was heard again
        await self._adopt_lost_part(reply)
        if await self._database.aread(lambda db: open_replies.is_whole(db, reply.id)):
            # It was written to its end: only its last edit may be missing.
            await self._actions.redraw(reply.id)
            return await self._database.awrite(lambda db: open_replies.settle(db, reply.id, "complete"))
        parts, earlier = await self._database.awrite(lambda db: _put_back(db, reply))
        if earlier is not None:
            await self._actions.redraw(earlier)
        elif not parts or await self._only_waits(reply, parts):
            return await self._answer_anew(reply, parts)
        else:
            await self._mark(reply, parts)
        return await self._end(reply)

    async def _has_answer(self, reply: Reply) -> bool:
        return await self._database.aread(lambda db: open_replies.has_answer(db, reply.prompt_message_id))

    async def _only_waits(self, reply: Reply, parts: list[Part]) -> bool:
        """Whether people see nothing of a reply but that it is to come."""
        if len(parts) > 1 or reply.text.strip():
            return False
        channel = self._app.get_partial_messageable(parts[0].channel_id)
        message = await translate_errors(channel.fetch_message(parts[0].discord_id))
        with speaking(await language_in(self._app.services, self._app, channel.id)):
            waiting = tr(LOADING)
        # A place in the queue is said in small print, below a question that had to be quoted.
        shown = message.content.split("\n\n")[-1]
        return shown == waiting or (shown.startswith("-# ") and "\n" not in shown)

    async def _end(self, reply: Reply) -> None:
        await self._database.awrite(
            lambda db: open_replies.settle(db, reply.id, "failed", open_replies.INTERRUPTED)
        )

    async def _mark(self, reply: Reply, parts: list[Part]) -> None:
        """Say below what there is of a reply that it was interrupted."""
        with speaking(await language_in(self._app.services, self._app, parts[-1].channel_id)):
            note = tr(STOPPED)
        if reply.text.strip():
            return await self._actions.redraw(reply.id, note)
        channel = self._app.get_partial_messageable(parts[-1].channel_id)
        message = await translate_errors(channel.fetch_message(parts[-1].discord_id))
        buttons = self._controls.finished_controls(reply.id, has_text=False)
        if not message.content.endswith(note):
            await translate_errors(message.edit(content=f"{message.content[:1900]}\n\n{note}", view=buttons))
        return None

    # ------------------------------------------------------------------ answer anew

    async def _answer_anew(self, reply: Reply, parts: list[Part]) -> None:
        """Hear a question again of which at most "I'll answer here" is seen; one from long ago is told."""
        asked = await self._database.aread(lambda db: _unanswered(db, reply))
        question = None if asked is None else await self._question(*asked)
        if question is None:
            if parts:
                await self._mark(reply, parts)
            return await self._end(reply)
        for part in parts:
            self._answerer.withdrawing(part.discord_id)
            with contextlib.suppress(MessageGoneError):
                place = WrittenSurface(self._app.get_partial_messageable(part.channel_id))
                await place.delete(part.discord_id)
            await self._database.awrite(functools.partial(replies.drop_part, discord_id=part.discord_id))
        await self._end(reply)
        return await self._listener.handle_message(question)

    async def _question(self, asked: Message, conversation: Conversation) -> discord.Message | None:
        """Return the message that asked, if it is there and recent; a slash command has none."""
        if not asked.visible or asked.discord_id is None or now_ms() - asked.created_ms > ANSWERED_MS:
            return None
        channel_id = asked.channel_id or conversation.channel_id
        channel = self._app.get_channel(channel_id) or await translate_errors(
            self._app.fetch_channel(channel_id)
        )
        if isinstance(channel, discord.Thread) and channel.id == asked.discord_id:
            channel = channel.parent  # a thread bears the id of the message that it was opened on
        if not isinstance(channel, discord.abc.Messageable):
            return None
        try:
            return await translate_errors(channel.fetch_message(asked.discord_id))
        except MessageGoneError:
            return None

    # ------------------------------------------------------------------ a message whose id nobody stored

    async def _adopt_lost_part(self, reply: Reply) -> None:
        """Find the message that was being sent when the process ended, if it arrived."""
        lost = await self._database.aread(lambda db: _lost_part(db, reply))
        me = self._app.user
        if lost is None or me is None:
            return
        page = await translate_errors(
            _page(self._app.get_partial_messageable(lost.channel_id), lost.after_id)
        )
        mine = [message for message in page if message.author.id == me.id and lost.may_be(message)]

        def adopt(db: Connection) -> int | None:
            for message in mine:
                if conversations.by_discord_id(db, message.id) is None:
                    replies.add_part(db, reply.id, message.id, lost.channel_id, lost.position)
                    return message.id
            return None

        if found := await self._database.awrite(adopt):
            _log.info("reply.part_found", reply_id=reply.id, message_id=found)


@dataclass(frozen=True, slots=True)
class _LostPart:
    """A message that would stand behind `after_id`, as an answer to `asked_id` or, if `plain`, to nothing."""

    position: int
    channel_id: int
    after_id: int
    asked_id: int
    plain: bool

    def may_be(self, message: discord.Message) -> bool:
        """Whether a message of the bot's has the form of the lost one."""
        if message.embeds or message.attachments:
            return False
        if message.interaction_metadata is not None:
            return message.interaction_metadata.id == self.asked_id
        return self.plain if message.reference is None else message.reference.message_id == self.asked_id


def _lost_part(db: Connection, reply: Reply) -> _LostPart | None:
    position = open_replies.find_lost_part(db, reply.id)
    asked = conversations.get_message(db, reply.prompt_message_id)
    conversation = conversations.get(db, reply.conversation_id)
    if position is None or asked is None or asked.discord_id is None or conversation is None:
        return None
    parts = replies.parts(db, reply.id)
    if not parts and replies.find_shown_reply(db, reply.prompt_message_id) is not None:
        return None  # another version of a reply whose messages are known
    channel_id = parts[-1].channel_id if parts else asked.channel_id or conversation.channel_id
    # Only the first message says what it answers, and in a thread or a tasting not even that.
    in_thread = conversation.parent_channel_id is not None
    return _LostPart(
        position=position,
        channel_id=channel_id,
        after_id=parts[-1].discord_id if parts else asked.discord_id,
        asked_id=asked.discord_id,
        plain=bool(parts) or in_thread or not asked.visible,
    )


async def _page(channel: discord.PartialMessageable, after_id: int) -> list[discord.Message]:
    after = discord.Object(after_id)
    return [message async for message in channel.history(limit=_PAGE, after=after, oldest_first=True)]


def _unanswered(db: Connection, reply: Reply) -> tuple[Message, Conversation] | None:
    """Return a question that nothing else has answered meanwhile, and where it was asked."""
    asked = conversations.get_message(db, reply.prompt_message_id)
    conversation = conversations.get(db, reply.conversation_id)
    if asked is None or asked.deleted_ms is not None or conversation is None:
        return None
    return None if open_replies.has_answer(db, asked.id, besides=reply.id) else (asked, conversation)


def _put_back(db: Connection, reply: Reply) -> tuple[list[Part], str | None]:
    """Take an unfinished version out; return the reply's messages and the version to show instead."""
    side_by_side.drop(db, reply.id)
    left = reply_versions.drop(db, reply.id)
    if left is not None:
        return [], left.shown_id
    parts = replies.parts(db, reply.id)
    # A version without a word has no message of its own yet, but those of the earlier one may say it waits.
    shown_id = None if parts else replies.find_shown_reply(db, reply.prompt_message_id)
    shown = replies.get(db, shown_id) if shown_id is not None else None
    return parts, shown.id if shown is not None and shown.text.strip() else None
