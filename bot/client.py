"""The Discord client: which events matter, and who handles them."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Coroutine
from typing import Any

import discord
import structlog

from bot import questions
from bot.answering import STOPPED, Answerer
from bot.commands import ask, loop, privacy
from bot.commands.tree import StropTree
from bot.commands.votes import VoteButton
from bot.connection import IdentifyBudget
from bot.deletions import DeletionKeeper
from bot.errors import DeliveryError, IdentifyBudgetError
from bot.gateway_guard import GatewayGuard
from bot.permissions import operator_ids
from bot.progress import ProgressReporter
from bot.ratings import RatingRecorder
from bot.replies_ui import forms, menus
from bot.replies_ui.actions import ReplyActions
from bot.replies_ui.buttons import ReplyButton
from bot.replies_ui.comparing import CompareButton
from bot.services import Services
from bot.surfaces import ChannelSurface, translated
from storage import replies
from storage.config import Config
from storage.errors import StorageError

NO_WORDS = "You called me without a question. Write it after my name."
NO_TEXT = "I can read only text in this version, so I did not open what you sent. Please write it to me."
HIDDEN = (
    "Discord does not show me this message's text. Please mention me in it. (Whoever runs me can let me "
    "read every message: list the channel in `discord.channels` and switch on the Message Content Intent in "
    "Discord's developer portal.)"
)
ATTACHMENT_NOTE = "-# I can't open attachments in this version; I read only your text."
_ANSWERED_TYPES = (discord.MessageType.default, discord.MessageType.reply)
_RECONNECT_S = 5.0
_COMPLAINT_EVERY_S = 3600.0
_REMEMBERED_COMPLAINTS = 1000

_log = structlog.get_logger(__name__)


def intents_for(config: Config) -> discord.Intents:
    """Return the smallest set of intents: message content only to answer in channels without a mention."""
    return discord.Intents(
        guilds=True,
        guild_messages=True,
        dm_messages=True,
        guild_reactions=True,
        dm_reactions=True,
        message_content=bool(config.discord.channels),
    )


class StropClient(discord.Client):
    """One connection to Discord, or to the playground."""

    def __init__(self, services: Services, **options: Any) -> None:
        super().__init__(
            intents=intents_for(services.config),
            allowed_mentions=discord.AllowedMentions.none(),
            max_messages=None,
            **options,
        )
        self.services = services
        self.guard = GatewayGuard()
        self.guard.install(self)
        self.deletions = DeletionKeeper(services, self)
        self.answerer = Answerer(services, is_deleted=self.deletions.overtook)
        self.rating_recorder = RatingRecorder(services, self, self.answerer.is_writing_in)
        self.progress = ProgressReporter(services, self)
        self.tree = StropTree(self)
        self.reply_actions = ReplyActions(services, self)
        for module in (ask, loop, privacy, menus):
            module.add_to(self.tree)
        self._budget = IdentifyBudget(services.database)
        self._jobs: set[asyncio.Task[Any]] = set()
        self._half_written: list[replies.Reply] = []
        self._complained: OrderedDict[int, float] = OrderedDict()

    def is_operator(self, user_id: int) -> bool:
        """Whether this member may do what concerns everybody."""
        return user_id in operator_ids(self.services.config.discord.operators, self.application)

    async def setup_hook(self) -> None:
        """Prepare what doesn't need the gateway."""
        self.add_dynamic_items(VoteButton, ReplyButton, CompareButton)
        self._half_written = await self.services.database.awrite(replies.abandon_streaming)
        await self.tree.sync_if_changed(always=self.services.playground)

    async def connect(self, *, reconnect: bool = True) -> None:
        """Stay connected, within the hourly budget of sign-ins."""
        while not self.is_closed():
            if not self.services.playground:
                await self._budget.wait()
            try:
                await super().connect(reconnect=reconnect)
                return
            except IdentifyBudgetError as error:
                _log.warning("gateway.identify_refused", reason=str(error))
            except AttributeError:
                # discord.py 2.7.1 reads `self.ws.sequence` also when the very first connection failed.
                if getattr(self, "ws", None) is not None:
                    raise
                _log.warning("gateway.first_connection_failed", retry_s=_RECONNECT_S)
                await asyncio.sleep(_RECONNECT_S)

    async def before_identify_hook(self, shard_id: int | None, *, initial: bool = False) -> None:
        """Count every sign-in before it is sent."""
        await super().before_identify_hook(shard_id, initial=initial)
        if not self.services.playground:
            await self._budget.spend()

    async def shutdown(self) -> None:
        """Let replies in flight finish or say that they were stopped, then disconnect."""
        await self.progress.stop()
        await self.answerer.drain()
        for job in list(self._jobs):
            job.cancel()
        await self.close()

    async def on_ready(self) -> None:
        """A new session: nothing that happened before it will be sent again."""
        _log.info("gateway.ready", guilds=len(self.guilds), user_id=self.user.id if self.user else None)
        self.progress.start()
        self._own(self._catch_up())

    async def _catch_up(self) -> None:
        half_written, self._half_written = self._half_written, []
        for reply in half_written:
            await self._say_interrupted(reply)
        await privacy.scrub_pending(self.services)
        await self.deletions.reconcile()
        await self.rating_recorder.reconcile()

    async def on_interaction(self, interaction: discord.Interaction[Any]) -> None:
        """A form that was sent in, perhaps opened before a restart; the rest has handlers of its own."""
        await forms.handle(interaction)

    async def on_message(self, message: discord.Message) -> None:
        """Answer what is meant for the bot."""
        me = self.user
        if me is None or message.author.bot or message.webhook_id or message.type not in _ANSWERED_TYPES:
            return None
        if not self._is_addressed(message, me):
            return None
        if missing := questions.missing_permissions(message.channel, message.guild):
            return await self._complain(message, missing)
        question = questions.from_message(self.services, message, me, note=_note(message))
        if not question.text:
            reason = self._empty_reason(message, me)
            if reason != HIDDEN or self._may_complain(message.channel.id):
                await self._answer_plainly(message, reason)
            return None
        surface = ChannelSurface(message.channel, message)
        self.answerer.start(question, surface, message.channel.typing())
        return None

    async def on_raw_reaction_add(self, event: discord.RawReactionActionEvent) -> None:
        """A rating."""
        await self.rating_recorder.added(event)

    async def on_raw_reaction_remove(self, event: discord.RawReactionActionEvent) -> None:
        """A rating taken back."""
        await self.rating_recorder.removed(event)

    async def on_raw_reaction_clear(self, event: discord.RawReactionClearEvent) -> None:
        """All ratings of a message taken back by a moderator."""
        await self.rating_recorder.cleared(event)

    async def on_raw_reaction_clear_emoji(self, event: discord.RawReactionClearEmojiEvent) -> None:
        """All ratings with one emoji taken back by a moderator."""
        await self.rating_recorder.emoji_cleared(event)

    async def on_raw_message_delete(self, event: discord.RawMessageDeleteEvent) -> None:
        """A message is gone, and so is what was stored of it."""
        # A part that its own reply withdrew says nothing about the reply.
        if not self.answerer.withdrew(event.message_id):
            if (draft := self.answerer.being_written(message_id=event.message_id)) is not None:
                self.answerer.stop(draft.reply_id)
            await self.deletions.deleted([event.message_id])

    async def on_raw_bulk_message_delete(self, event: discord.RawBulkMessageDeleteEvent) -> None:
        """Many messages are gone."""
        await self.deletions.deleted(event.message_ids)

    async def on_guild_channel_delete(self, channel: discord.abc.GuildChannel) -> None:
        """A channel is gone with everything that was said in it."""
        await self.deletions.channel_deleted(channel.id)

    async def on_raw_thread_delete(self, event: discord.RawThreadDeleteEvent) -> None:
        """A thread is gone with everything that was said in it."""
        await self.deletions.channel_deleted(event.thread_id)

    async def on_raw_message_edit(self, event: discord.RawMessageUpdateEvent) -> None:
        """A member changed the text of a message."""
        author = event.data.get("author") or {}
        if self.user is None or author.get("bot") or not event.data.get("content"):
            return
        await self.rating_recorder.edited(event.message_id, questions.readable(event.message, self.user))

    async def on_error(self, event_method: str, /, *_: Any, **__: Any) -> None:
        """Log what a handler didn't expect; the next event is handled as usual."""
        _log.exception("event.failed", handler=event_method)

    def _is_addressed(self, message: discord.Message, me: discord.ClientUser) -> bool:
        if message.guild is None or me in message.mentions:
            return True
        wanted = self.services.config.discord.channels
        if message.channel.id in wanted or getattr(message.channel, "parent_id", None) in wanted:
            return True
        answered = message.reference.resolved if message.reference is not None else None
        return isinstance(answered, discord.Message) and answered.author.id == me.id

    def _empty_reason(self, message: discord.Message, me: discord.ClientUser) -> str:
        if message.attachments or message.stickers or message.embeds or message.poll:
            return NO_TEXT
        readable = self.intents.message_content or message.guild is None or me in message.mentions
        return NO_WORDS if readable or message.content else HIDDEN

    async def _answer_plainly(self, message: discord.Message, text: str) -> None:
        reference = message.to_reference(fail_if_not_exists=False)
        try:
            await translated(message.channel.send(text, reference=reference, mention_author=False))
        except DeliveryError as error:
            _log.info("message.not_sent", channel_id=message.channel.id, error=type(error).__name__)

    async def _complain(self, message: discord.Message, missing: list[str]) -> None:
        """Tell the member in private what the channel doesn't let the bot do."""
        channel_id = message.channel.id
        _log.warning("channel.permission_missing", channel_id=channel_id, missing=missing)
        if not self._may_complain(channel_id):
            return
        names = ", ".join(f"**{name}**" for name in missing)
        text = f"I can't answer you in <#{channel_id}>: I lack the permission {names}. Please tell an admin."
        try:
            await translated(message.author.send(text))
        except DeliveryError as error:
            _log.info("message.not_sent", channel_id=channel_id, error=type(error).__name__)

    def _may_complain(self, channel_id: int) -> bool:
        """Whether an hour has passed since the last complaint about this channel."""
        now = asyncio.get_running_loop().time()
        if now - self._complained.get(channel_id, -_COMPLAINT_EVERY_S) < _COMPLAINT_EVERY_S:
            return False
        self._complained[channel_id] = now
        if len(self._complained) > _REMEMBERED_COMPLAINTS:
            self._complained.popitem(last=False)
        return True

    async def _say_interrupted(self, reply: replies.Reply) -> None:
        """An earlier process died in the middle of this reply: its message must not stay half written."""
        try:
            await self.reply_actions.settle_interrupted(reply, STOPPED)
        except (DeliveryError, StorageError) as error:
            _log.info("reply.not_marked", reply_id=reply.id, error=type(error).__name__)

    def _own(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a background job whose failure is logged and whose end `shutdown` brings about."""

        async def logged() -> None:
            try:
                await work
            except Exception:  # A job's boundary: it must not end unseen.
                _log.exception("job.failed")

        job = asyncio.create_task(logged())
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)


class ShardedStropClient(StropClient, discord.AutoShardedClient):
    """The same over several gateway connections."""


def make_client(services: Services) -> StropClient:
    """Return a client with as many shards as the configuration says."""
    shards = services.config.discord.shards
    return ShardedStropClient(services, shard_count=shards) if shards > 1 else StropClient(services)


def _note(message: discord.Message) -> str:
    return ATTACHMENT_NOTE if message.attachments and message.content else ""
