"""The Discord client: which events matter, and who handles them."""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict, deque
from collections.abc import Coroutine
from typing import Any

import discord
import structlog
import yarl

from bot.admin import moderation, records, server_check, settings
from bot.admin.alerts import OperationsWatch
from bot.charts.renderer import Studio
from bot.chat import ask, attachments, threads, triggers
from bot.chat import question as questions
from bot.chat.answerer import STOPPED, UNEXPECTED, Answerer
from bot.chat.rate_limits import MemberLimits, Refusal, limit_for, role_ids_of
from bot.delivery.targets import ChannelSurface, translated
from bot.errors import DeliveryError, IdentifyBudgetError
from bot.feedback import context_menu, my_ratings
from bot.feedback.reactions import RatingRecorder
from bot.feedback.reply_actions import ReplyActions
from bot.feedback.reply_buttons import ReplyButton
from bot.feedback.side_by_side import CompareButton
from bot.gateway.event_guard import GatewayGuard
from bot.gateway.sign_in import IdentifyBudget
from bot.language import texts
from bot.language.texts import mark, tr
from bot.learning import adapters, retrain, stats, status, tasting_commands
from bot.learning.blind_votes import VoteButton
from bot.learning.run_buttons import RunButton
from bot.learning.run_progress import ProgressReporter
from bot.learning.tasting_host import TastingHost
from bot.operators import operator_ids
from bot.privacy import commands as privacy
from bot.privacy.deletions import DeletionKeeper
from bot.services import Services
from bot.ui import form_router, outdated
from bot.ui.interactions import CommandWords, StropTree
from storage.admin import blocks
from storage.admin.settings import InForce
from storage.chat import replies
from storage.config import Config
from storage.errors import StorageError

NO_WORDS = mark("You called me without a question. Write it after my name.")
NO_TEXT = mark("I can read only text, so I did not open what you sent. Please write it to me.")
HIDDEN = mark(
    "Discord does not show me this message's text. Please mention me in it. (Whoever runs me can let me "
    "read every message: `discord.message_content = true` in strop.toml, and the switch Message Content "
    "Intent in Discord's developer portal.)"
)
CITED_HIDDEN = mark("-# Discord does not show me the message that you replied to: I answer only yours.")
BLOCKED = mark("A moderator decided that I don't answer you here.")
TOO_FAST = mark(
    "You ask faster than this server allows ({count} a minute): please ask again in {seconds} seconds."
)
NO_PERMISSION = mark(
    "I can't answer you in <#{channel}>: I lack the permission {names}. Please tell an admin."
)
NO_THREAD = mark(
    "I was to open a thread for a conversation in <#{channel}>, but I lack the permission {names}: "
    "give it to me, or switch automatic threads off with /settings. I answer in the channel meanwhile."
)
# What answers after a restart as well: all that it needs stands in its custom id.
_LASTING = (
    VoteButton,
    RunButton,
    records.AuditButton,
    adapters.AdaptersButton,
    ReplyButton,
    CompareButton,
    tasting_commands.OfferButton,
    privacy.ErasureButton,
    *my_ratings.dynamic_items(),
    *settings.dynamic_items(),
)
_ANSWERED_TYPES = (discord.MessageType.default, discord.MessageType.reply)
_RECONNECT_S = 5.0
_COMPLAINT_EVERY_S = 3600.0
_REMEMBERED_COMPLAINTS = 1000
_REMEMBERED_QUESTIONS = 1000
# For so long after a message its author may still add the mention that they forgot.
_LATE_MENTION_S = 120.0

_log = structlog.get_logger(__name__)


def intents_for(config: Config) -> discord.Intents:
    """Return the smallest set of intents: message content only to answer where nobody mentions the bot."""
    return discord.Intents(
        guilds=True,
        guild_messages=True,
        dm_messages=True,
        guild_reactions=True,
        dm_reactions=True,
        message_content=config.discord.message_content or bool(config.discord.channels),
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
        self.answerer = Answerer(services, is_deleted=self.deletions.overtook, on_refused=self._refused)
        self.rating_recorder = RatingRecorder(services, self, self.answerer.is_writing_in)
        self.progress = ProgressReporter(services, self)
        self.operations = OperationsWatch(services, self)
        self.tastings = TastingHost(services, self)
        self.attachments = attachments.AttachmentReader(
            attachments.from_discord(lambda: discord.http.Route.BASE if services.playground else None)
        )
        self.tree = StropTree(self)
        self.reply_actions = ReplyActions(services, self)
        for module in (
            ask,
            status,
            adapters,
            privacy,
            settings,
            moderation,
            context_menu,
            records,
            retrain,
            server_check,
            stats,
            tasting_commands,
        ):
            module.add_to(self.tree)
        self.studio = Studio()
        self.limits = MemberLimits()
        self._budget = IdentifyBudget(services.database, shards=services.config.discord.shards)
        self._jobs: set[asyncio.Task[Any]] = set()
        self._half_written: list[replies.Reply] = []
        self._complained: OrderedDict[int, float] = OrderedDict()
        # Messages that are answered or about to be: an edit of one is no new question.
        self._taken: deque[int] = deque(maxlen=_REMEMBERED_QUESTIONS)

    def is_operator(self, user_id: int) -> bool:
        """Whether this member may do what concerns everybody."""
        return user_id in operator_ids(self.services.config.discord.operators, self.application)

    async def setup_hook(self) -> None:
        """Prepare what doesn't need the gateway."""
        self.add_dynamic_items(*_LASTING)
        self._half_written = await self.services.database.awrite(replies.abandon_streaming)
        await self.tree.set_translator(CommandWords())
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
                if self.is_closed() or getattr(self, "ws", None) is not None:
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
        await self.operations.stop()
        await self.tastings.stop()
        await self.answerer.drain()
        for job in list(self._jobs):
            job.cancel()
        self.studio.close()
        await self.close()

    async def on_ready(self) -> None:
        """A new session: nothing that happened before it will be sent again."""
        _log.info("gateway.ready", guilds=len(self.guilds), user_id=self.user.id if self.user else None)
        self.progress.start()
        self.operations.start()
        self.tastings.start()
        self._own(self._catch_up())

    async def _catch_up(self) -> None:
        half_written, self._half_written = self._half_written, []
        for reply in half_written:
            await self._say_interrupted(reply)
        await privacy.scrub_pending(self.services)
        await self.deletions.reconcile()
        await self.rating_recorder.reconcile()

    async def on_interaction(self, interaction: discord.Interaction[Any]) -> None:
        """A form that was sent in, or what no handler knows any more; the rest has handlers of its own."""
        await form_router.handle(interaction)
        await outdated.handle(interaction, _LASTING)

    async def on_message(self, message: discord.Message) -> None:
        """Answer what is meant for the bot."""
        await self._hear(message)

    async def _hear(self, message: discord.Message, *, edited: bool = False) -> None:
        """Answer a message if it is meant for the bot; an edited one only where it mentions the bot now."""
        me = self.user
        if me is None or message.author.bot or message.webhook_id or message.type not in _ANSWERED_TYPES:
            return None
        arrival = triggers.arrival_of(message, me, sees_content=self.intents.message_content)
        verdict = await triggers.judge(self.services, arrival)
        if verdict.trigger is None or (edited and verdict.trigger != "mention"):
            return None
        locale = message.guild.preferred_locale if message.guild else "en"
        texts.speak(texts.choose(verdict.found.settings.language, locale))
        if missing := questions.missing_permissions(message.channel, message.guild):
            return await self._complain(message.channel.id, message.author.id, missing)
        if refusal := self.refuse_hurry(arrival.guild_id, message.author, verdict.found):
            return None if refusal.told_before else await self._answer_plainly(message, refusal.sentence)
        self._taken.append(message.id)
        return await self._take(message, me, verdict)

    def refuse_hurry(self, guild_id: int | None, user: discord.abc.User, found: InForce) -> Refusal | None:
        """Count a question; return None where the member may ask it."""
        per_minute, now_s = limit_for(found.settings, role_ids_of(user)), asyncio.get_running_loop().time()
        answer = self.limits.may_ask(guild_id, user.id, per_minute, now_s)
        if answer == "yes":
            return None
        seconds = self.limits.wait_s(guild_id, user.id, now_s)
        return Refusal(tr(TOO_FAST, count=per_minute, seconds=seconds), answer == "silence")

    async def refuse_asking(self, interaction: discord.Interaction) -> str:
        """Say why a member may not have an answer through a command or a button, or nothing."""
        user, guild_id = interaction.user, interaction.guild_id
        if await self.services.database.aread(lambda db: blocks.is_blocked(db, guild_id, user.id)):
            return tr(BLOCKED)
        home_channel_id = questions.parent_of(interaction.channel) or interaction.channel_id
        refusal = self.refuse_hurry(guild_id, user, await self.services.settings(guild_id, home_channel_id))
        return refusal.sentence if refusal else ""

    async def _take(
        self, message: discord.Message, me: discord.ClientUser, verdict: triggers.Verdict
    ) -> None:
        """Read an addressed message with its files, and begin to answer it where it is to be answered."""
        attached = await self.attachments.read(message.attachments)
        cited = questions.cited_message(message)
        cited_files = await self.attachments.read(cited.attachments if cited is not None else ())
        notes = [*attached.notes, *cited_files.notes]
        hidden = cited is not None and not cited.content and not self.intents.message_content
        question = questions.from_message(
            self.services,
            message,
            me,
            note="\n".join([f"-# {note}" for note in notes] + [tr(CITED_HIDDEN)] * hidden),
            attached_text=attached.text,
            follows=verdict.follows,
            cited_text=cited_files.text,
        )
        if not question.text and not question.attached_text:
            reason = self._empty_reason(message, me, attached.notes)
            if reason != HIDDEN or self._may_complain(message.channel.id):
                await self._answer_plainly(message, tr(reason))
            return
        thread = await self._thread_for(message, verdict, question.text)
        if thread is not None:
            question = questions.moved_to(question, thread)
        place = message.channel if thread is None else thread
        surface = ChannelSurface(place, message if thread is None else None)
        self.answerer.start(question, surface, place.typing())

    async def _thread_for(
        self, message: discord.Message, verdict: triggers.Verdict, text: str
    ) -> discord.Thread | None:
        """Open a thread where one is wanted; what stands in the way is told to whoever can put it right."""
        if not threads.wants_thread(message, verdict):
            return None
        missing = threads.missing_for_thread(message.channel)
        if not missing:
            return await threads.open_thread(message, text)
        _log.warning("channel.permission_missing", channel_id=message.channel.id, missing=missing)
        person = threads.who_can_act(message, verdict)
        if person is not None and self._may_complain(message.channel.id):
            names = ", ".join(f"**{tr(name)}**" for name in missing)
            await self.tell(person, tr(NO_THREAD, channel=message.channel.id, names=names))
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
        """A member changed the text of a message: what is stored follows, and a late mention is answered."""
        author, content = event.data.get("author") or {}, event.data.get("content")
        # An empty text is one that was taken out, or one that Discord doesn't show to the bot.
        shown = content or self.intents.message_content or event.guild_id is None
        if self.user is None or author.get("bot") or content is None or not shown:
            return
        message, text = event.message, questions.readable(event.message, self.user)
        self.answerer.reword(message.id, text)
        known = await self.rating_recorder.edited(message.id, text, without_files=not message.attachments)
        if not known and message.id not in self._taken and _is_late(message):
            await self._hear(message, edited=True)

    async def on_error(self, event_method: str, /, *args: Any, **_: Any) -> None:
        """Log what a handler didn't expect, and tell whoever spoke to the bot; the next event is as usual."""
        error_id = secrets.token_hex(4)
        _log.exception("event.failed", handler=event_method, error_id=error_id)
        if event_method == "on_message" and self._addressed_by(args[0]):
            await self._answer_plainly(args[0], tr(UNEXPECTED, id=error_id))

    def _addressed_by(self, message: discord.Message) -> bool:
        """Whether somebody plainly speaks to the bot, whatever is set for the channel."""
        if self.user is None or message.author.bot:
            return False
        return message.guild is None or self.user in message.mentions

    def _empty_reason(self, message: discord.Message, me: discord.ClientUser, notes: tuple[str, ...]) -> str:
        if notes:
            return " ".join(notes)
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

    async def _refused(self, question: questions.Question) -> None:
        """A channel stopped taking a reply that was being written, though nothing was missing before."""
        if question.guild_id is None:
            return
        channel, guild = self.get_channel(question.channel_id), self.get_guild(question.guild_id)
        missing = questions.missing_permissions(channel, guild) or [
            mark("View Channel"),
            mark("Send Messages"),
        ]
        await self._complain(question.channel_id, question.author.user_id, missing)

    async def _complain(self, channel_id: int, user_id: int, missing: list[str]) -> None:
        """Tell the member in private what the channel doesn't let the bot do."""
        _log.warning("channel.permission_missing", channel_id=channel_id, missing=missing)
        if not self._may_complain(channel_id):
            return
        names = ", ".join(f"**{tr(name)}**" for name in missing)
        await self.tell(user_id, tr(NO_PERMISSION, channel=channel_id, names=names))

    async def tell(self, user_id: int, text: str) -> None:
        """Write to one person in private, if they let us."""
        try:
            direct = await translated(self.create_dm(discord.Object(user_id)))
            await translated(direct.send(text))
        except DeliveryError as error:
            _log.info("message.not_sent", user_id=user_id, error=type(error).__name__)

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


def _is_late(message: discord.Message) -> bool:
    """Whether a message was edited soon after it was sent, both by Discord's clock."""
    edited_at = message.edited_at
    return edited_at is not None and (edited_at - message.created_at).total_seconds() <= _LATE_MENTION_S


class ShardedStropClient(StropClient, discord.AutoShardedClient):
    """The same over several gateway connections."""

    async def launch_shard(self, gateway: yarl.URL, shard_id: int, *, initial: bool = False) -> None:
        """Open one connection within the budget of sign-ins; discord.py tries again every 5 s, for ever."""
        if not self.services.playground:
            await self._budget.wait()
        await super().launch_shard(gateway, shard_id, initial=initial)

    async def before_identify_hook(self, shard_id: int | None, *, initial: bool = False) -> None:
        """Count every sign-in; what has to wait is to discord.py a connection that timed out."""
        try:
            await super().before_identify_hook(shard_id, initial=initial)
        except IdentifyBudgetError as error:
            _log.warning("gateway.identify_refused", shard_id=shard_id, reason=str(error))
            raise TimeoutError(str(error)) from error

    async def on_shard_ready(self, shard_id: int) -> None:
        """A shard's new session, which no ``on_ready`` announces unless all shards have one."""
        if self.is_ready():
            _log.info("gateway.shard_ready", shard_id=shard_id)
            self._own(self._catch_up())


def make_client(services: Services) -> StropClient:
    """Return a client with as many shards as the configuration says."""
    shards = services.config.discord.shards
    return ShardedStropClient(services, shard_count=shards) if shards > 1 else StropClient(services)
