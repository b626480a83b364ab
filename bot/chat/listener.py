"""From a message to a question: whether it is meant for the bot, who may ask, and where the answer goes."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import discord
import structlog

from bot.chat import question as questions
from bot.chat import threads, triggers
from bot.chat.answerer import Answerer
from bot.chat.complaints import NO_PERMISSION, Complaints
from bot.chat.content.attachments import AttachmentReader
from bot.chat.content.message_text import is_forward
from bot.chat.content.references import ReferenceReader
from bot.chat.content.wake_words import spoken
from bot.chat.failures import UNEXPECTED
from bot.chat.rate_limits import MemberLimits, Refusal, limit_for, role_ids_of
from bot.client import StropClient
from bot.delivery.targets import ChannelSurface, translate_errors
from bot.errors import DeliveryError
from bot.language import texts
from bot.language.durations import duration
from bot.language.texts import mark, tr
from bot.ui.channel_language import language_of
from bot.ui.channels import missing_permissions, parent_of
from storage.admin import blocks
from storage.admin.settings import InForce
from storage.chat import conversations
from storage.db.database import Connection
from storage.learning import lineage

NO_WORDS = mark("You called me without a question. Write it after my name.")
NO_TEXT = mark("I can read only text, so I did not open what you sent. Please write it to me.")
HIDDEN = mark("Discord does not show me this message's text. Please mention me in it.")
READ_EVERYTHING = mark(
    "-# You run me: `discord.message_content = true` in strop.toml, and the switch Message Content Intent in "
    "Discord's developer portal, let me read every message."
)
FORWARDED = mark("I have read what you forwarded. What would you like to know about it?")
PROXIED = mark(
    "I don't answer messages that come through a webhook, such as those of PluralKit: Discord doesn't tell "
    "me whose words they are. Please write to me without it."
)
BLOCKED = mark("A moderator decided that I don't answer you here.")
TOO_FAST = mark("You ask faster than this server allows ({count} a minute): please ask again in {time}.")
NO_THREAD = mark(
    "I am set to open threads in <#{channel}>, but I lack the permission {names}: give it to "
    "me, or switch automatic threads off with /settings. Until then I answer in the channel."
)
APART = mark("Direct messages belong to no server: the adapters that servers train answer there, not here.")
_ANSWERED_TYPES = (discord.MessageType.default, discord.MessageType.reply)
_REMEMBERED_QUESTIONS = 1000
# For so long after a message its author may still add the mention that they forgot.
_LATE_MENTION_S = 120.0

_log = structlog.get_logger(__name__)


class MessageListener:
    """Hears every message that Discord shows the bot, and has those answered that are meant for it."""

    def __init__(self, app: StropClient, answerer: Answerer, complaints: Complaints) -> None:
        self._app = app
        self._services = app.services
        self._answerer = answerer
        self._complaints = complaints
        self._limits = MemberLimits()
        # Messages that are answered or about to be: an edit of one is no new question.
        self._taken: deque[int] = deque(maxlen=_REMEMBERED_QUESTIONS)
        # Messages that are looked at just now.
        self._heard: set[int] = set()

    async def handle_message(self, message: discord.Message, *, edited: bool = False) -> None:
        """Answer a message if it is meant for the bot; an edited one only where it mentions the bot now.

        Once: what Discord sends while a session begins is found by the look for missed questions too.
        """
        if self.took(message.id):
            return
        self._heard.add(message.id)
        try:
            await self._hear(message, edited)
        finally:
            self._heard.discard(message.id)

    async def _hear(self, message: discord.Message, edited: bool) -> None:
        me = self._app.user
        if me is not None and message.webhook_id:
            return await self._decline_proxied(message, me)
        if me is None or message.author.bot or message.type not in _ANSWERED_TYPES:
            return None
        if is_forward(message):
            return await self._keep_forward(message)
        arrival = triggers.arrival_of(message, me, sees_content=self._app.intents.message_content)
        verdict = await triggers.judge(self._services, arrival)
        if verdict.trigger is None or (edited and verdict.trigger != "mention"):
            return None
        texts.speak(language_of(verdict.found, message.guild))
        if missing := missing_permissions(message.channel, message.guild):
            return await self._complaints.missing(
                message.channel.id, message.author.id, missing, NO_PERMISSION
            )
        if refusal := self.refuse_hurry(arrival.guild_id, message.author, verdict.found):
            return None if refusal.told_before else await self._answer_plainly(message, refusal.sentence)
        self._taken.append(message.id)
        return await self._take(message, me, verdict)

    def took(self, message_id: int) -> bool:
        """Whether a message is answered, or about to be."""
        return message_id in self._taken or message_id in self._heard

    async def handle_edit(self, event: discord.RawMessageUpdateEvent) -> None:
        """A member changed the text of a message: what is stored follows, and a late mention is answered."""
        me, sees_content = self._app.user, self._app.intents.message_content
        author, content = event.data.get("author") or {}, event.data.get("content")
        # An empty text is one that was taken out, or one that Discord doesn't show to the bot.
        shown = content or sees_content or event.guild_id is None
        if me is None or author.get("bot") or content is None or not shown:
            return
        message, text = event.message, questions.readable(event.message, me)
        self._answerer.reword(message.id, text)
        known = await self._keep_edit(message.id, text, without_files=not message.attachments)
        if not known and _is_late(message):
            await self.handle_message(message, edited=True)

    async def apologise(self, error_id: str, message: discord.Message) -> None:
        """Tell whoever plainly spoke to the bot that their message met an error nobody expected."""
        me = self._app.user
        if me is None or message.author.bot or (message.guild is not None and me not in message.mentions):
            return
        await self._answer_plainly(message, tr(UNEXPECTED, id=error_id))

    def refuse_hurry(self, guild_id: int | None, user: discord.abc.User, found: InForce) -> Refusal | None:
        """Count a question; return None where the member may ask it."""
        per_minute, now_s = limit_for(found.settings, role_ids_of(user)), asyncio.get_running_loop().time()
        answer = self._limits.may_ask(guild_id, user.id, per_minute, now_s)
        if answer == "yes":
            return None
        seconds = self._limits.wait_s(guild_id, user.id, now_s)
        return Refusal(tr(TOO_FAST, count=per_minute, time=duration(seconds)), answer == "silence")

    async def read_settings_at(self, interaction: discord.Interaction[Any]) -> InForce:
        """Return the settings of the channel in which a command or a button was used."""
        home_channel_id = parent_of(interaction.channel) or interaction.channel_id
        return await self._services.settings(interaction.guild_id, home_channel_id)

    async def refuse_asking(self, interaction: discord.Interaction[Any], found: InForce) -> str:
        """Say why a member may not have an answer through a command or a button, or nothing."""
        user, guild_id = interaction.user, interaction.guild_id
        if await self._services.database.aread(lambda db: blocks.is_blocked(db, guild_id, user.id)):
            return tr(BLOCKED)
        refusal = self.refuse_hurry(guild_id, user, found)
        return refusal.sentence if refusal else ""

    async def _take(
        self, message: discord.Message, me: discord.ClientUser, verdict: triggers.Verdict
    ) -> None:
        """Read an addressed message with its files, and begin to answer it where it is to be answered."""
        attached = await self._app.feature(AttachmentReader).read(message.attachments, looks=True)
        refers_to = await self._app.feature(ReferenceReader).read(message, me)
        question = questions.from_message(
            self._services,
            message,
            me,
            verdict.found,
            note="\n".join(
                [*(f"-# {note}" for note in (*attached.notes, *await self._apart(message))), *refers_to.notes]
            ),
            attached_text=attached.text,
            pictures=attached.pictures,
            follows=verdict.follows,
            cited=refers_to.cited,
            goes_on_from=refers_to.goes_on_from,
        )
        if not question.text and not question.attached_text:
            return await self._answer_empty(message, me, attached.notes)
        thread = await self._thread_for(message, verdict, question.text)
        if thread is not None:
            question = questions.move_to_thread(question, thread)
        place = message.channel if thread is None else thread
        surface = ChannelSurface(place, message if thread is None else None)
        self._answerer.start(question, surface, place.typing())
        return None

    async def _apart(self, message: discord.Message) -> tuple[str, ...]:
        """Say once in direct messages why a server's new champion doesn't answer there."""
        if message.guild is not None or self._services.config.trainer.scope != "guild":
            return ()
        news = await self._services.database.aread(lambda db: lineage.unheard_of_in(db, message.channel.id))
        return (tr(APART),) if news else ()

    async def _keep_forward(self, message: discord.Message) -> None:
        """A forward asks nothing by itself: what it carries is read with the next question."""
        self._app.feature(ReferenceReader).remember(message)
        if message.guild is None and not await self._is_blocked(message):
            texts.speak(texts.choose("auto", "en"))
            await self._answer_plainly(message, tr(FORWARDED))

    async def _is_blocked(self, message: discord.Message) -> bool:
        guild_id = message.guild.id if message.guild else None
        return await self._services.database.aread(
            lambda db: blocks.is_blocked(db, guild_id, message.author.id)
        )

    async def _decline_proxied(self, message: discord.Message, me: discord.ClientUser) -> None:
        """Say, once an hour a channel, why a webhook's message that calls the bot is not answered."""
        # What a slash command answered, of this bot or another, comes by a webhook as well.
        ordinary = message.type is discord.MessageType.default and message.interaction_metadata is None
        called = ordinary and message.author.id != me.id and f"<@{me.id}>" in spoken(message.content)
        if called and self._complaints.may_tell(message.channel.id):
            await self._answer_plainly(message, tr(PROXIED))

    async def _thread_for(
        self, message: discord.Message, verdict: triggers.Verdict, text: str
    ) -> discord.Thread | None:
        """Open a thread where one is wanted; what stands in the way is told to whoever can put it right."""
        if not threads.wants_thread(message, verdict):
            return None
        missing = threads.missing_for_thread(message.channel)
        if not missing:
            return await threads.open_thread(message, text)
        person = threads.who_can_act(message, verdict)
        await self._complaints.missing(message.channel.id, person, missing, NO_THREAD)
        return None

    async def _answer_empty(
        self, message: discord.Message, me: discord.ClientUser, notes: tuple[str, ...]
    ) -> None:
        """Say why there is nothing to answer; of what Discord hides, only now and then."""
        reason = self._empty_reason(message, me, notes)
        if reason == HIDDEN and not self._complaints.may_tell(message.channel.id):
            return
        runs_me = reason == HIDDEN and self._app.is_operator(message.author.id)
        await self._answer_plainly(
            message, "\n".join([tr(reason), *([tr(READ_EVERYTHING)] if runs_me else [])])
        )

    def _empty_reason(self, message: discord.Message, me: discord.ClientUser, notes: tuple[str, ...]) -> str:
        if notes:
            return " ".join(notes)
        if message.attachments or message.stickers or message.embeds or message.poll:
            return NO_TEXT
        readable = self._app.intents.message_content or message.guild is None or me in message.mentions
        return NO_WORDS if readable or message.content else HIDDEN

    async def _answer_plainly(self, message: discord.Message, text: str) -> None:
        reference = message.to_reference(fail_if_not_exists=False)
        try:
            await translate_errors(message.channel.send(text, reference=reference, mention_author=False))
        except DeliveryError as error:
            _log.info("message.not_sent", channel_id=message.channel.id, error=type(error).__name__)

    async def _keep_edit(self, message_id: int, content: str, *, without_files: bool) -> bool:
        """Keep the stored text of a question equal to what people see; files can be taken out of it too.

        Returns whether the message is known.
        """

        def work(db: Connection) -> bool:
            conversations.edit_message(db, message_id, content, without_files=without_files)
            return conversations.by_discord_id(db, message_id) is not None

        # Not read first: the write comes after the one that may be recording the question at this moment.
        return await self._services.database.awrite(work)


def _is_late(message: discord.Message) -> bool:
    """Whether a message was edited soon after it was sent, both by Discord's clock."""
    edited_at = message.edited_at
    return edited_at is not None and (edited_at - message.created_at).total_seconds() <= _LATE_MENTION_S
