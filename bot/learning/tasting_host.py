"""Hold tastings: ask the operator's prompts one by one, each when it is due.

What is on is in the database, never in memory only: `/tasting` and `strop tasting` write rows, this looks at
them every other second, and a restart goes on where the last turn ended.
"""

from __future__ import annotations

import asyncio
import secrets

import discord
import structlog
from discord.ext import tasks

from bot.chat.answerer import Answerer
from bot.chat.draft import Draft
from bot.chat.question import Question, quote_line
from bot.client import StropClient
from bot.delivery.targets import ChannelSurface, translate_errors
from bot.errors import DeliveryError
from bot.language import texts
from bot.language.texts import mark, tr
from bot.services import Person, Services
from bot.serving.errors import ServingError
from bot.ui.channels import is_public, missing_permissions, parent_of
from storage.admin.settings import InForce
from storage.chat import members, replies
from storage.db.database import Connection
from storage.feedback import tastings
from storage.feedback.prompt_bank import BankPrompt
from storage.feedback.tastings import Progress, Tasting
from storage.imports import imports
from storage.learning import adapters

POLL_S = 2.0
# While something is in the way, or nobody rates, a tasting is looked at this often.
LOOK_AGAIN_S = 15.0
# With more replies than this in flight, members go first.
QUIET = 2
# So many answers in a row that did not come, and the tasting ends.
MOST_FAILURES = 3

Place = discord.TextChannel | discord.Thread | discord.VoiceChannel | discord.StageChannel

BEGINS = mark(
    "**A tasting begins.** I answer {count} prompts of those who run me, one by one. "
    "What do you think of each answer: {up} or {down}?\n"
    "-# What you rate trains me only if you allow it with /privacy opt-in."
)
BEGINS_IN_PAIRS = mark(
    "**A tasting begins.** I answer {count} prompts of those who run me, one by one, each twice. "
    "Which answer is better? Vote below it.\n"
    "-# What you vote trains me only if you allow it with /privacy opt-in."
)
OVER = mark(
    "**The tasting is over.** I answered {answered} prompts, and {rated} are rated so far. "
    "Ratings that you give later count as well."
)
COUNTED = mark("-# Tasting, {number} of {count}")

CHANNEL_GONE = mark("The tasting's channel is gone, or I may not see it.")
NOT_ALLOWED = mark("In this channel I lack the permission {names}.")
NOT_PUBLIC = mark(
    "Not everybody on this server can read this channel, so nothing from here may train me: "
    "hold the tasting in a channel that all can see."
)
TRAINING_OFF = mark(
    "Training is switched off here (`training` in /settings), so a tasting would teach me nothing."
)
NO_PAIRS = mark("Two answers side by side are switched off here (`replies.compare_not_in` in strop.toml).")
NO_ANSWERS = mark("Several answers in a row failed: my log says why.")
ENDED = mark("The tasting in <#{channel}> has ended: {reason}")

_log = structlog.get_logger(__name__)


def objection(services: Services, channel: object, found: InForce, *, pairs: bool) -> str:
    """Say in one sentence why a tasting can't be held in a channel, or nothing."""
    if not isinstance(channel, Place):
        return tr(CHANNEL_GONE)
    if missing := missing_permissions(channel, channel.guild):
        return tr(NOT_ALLOWED, names=", ".join(f"**{tr(name)}**" for name in missing))
    if not is_public(channel):
        return tr(NOT_PUBLIC)
    if not found.settings.training:
        return tr(TRAINING_OFF)
    if pairs and {channel.guild.id, channel.id} & set(services.config.replies.compare_not_in):
        return tr(NO_PAIRS)
    return ""


class TastingHost:
    """Asks what is due, one prompt at a time in each channel."""

    def __init__(self, services: Services, client: StropClient, answerer: Answerer) -> None:
        self._services = services
        self._client = client
        self._answerer = answerer
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._failures: dict[str, int] = {}
        self._tidied = False
        self._loop = tasks.loop(seconds=POLL_S)(self._round)

    def start(self) -> None:
        """Begin to look."""
        if not self._loop.is_running():
            self._loop.start()

    async def stop(self) -> None:
        """Ask no more; an answer that is being written is the answerer's to finish."""
        self._loop.cancel()
        for task in self._asking.values():
            task.cancel()
        await asyncio.gather(*self._asking.values(), return_exceptions=True)

    async def _round(self) -> None:
        shards = self._services.shards
        try:
            if not self._tidied:
                await self._services.database.awrite(
                    lambda db: tastings.withdraw_unanswered(db, shards.count, shards.ids)
                )
                self._tidied = True
            for tasting in await self._services.database.aread(tastings.due):
                if (
                    shards.has(tasting.guild_id)
                    and tasting.id not in self._asking
                    and self._answerer.in_flight <= QUIET
                ):
                    self._asking[tasting.id] = asyncio.create_task(self._attempt(tasting))
        except Exception:  # The loop's boundary: one bad round must not end every tasting.
            _log.exception("tasting.round_failed")

    async def _attempt(self, tasting: Tasting) -> None:
        try:
            await self._turn(tasting)
        except Exception:  # A turn's boundary: the next one is tried as usual.
            _log.exception("tasting.turn_failed", tasting_id=tasting.id)
            await self._failed(tasting)
        finally:
            self._asking.pop(tasting.id, None)

    async def _turn(self, tasting: Tasting) -> None:
        """Ask the next prompt, if nothing is in the way; what only waits is looked at again later."""
        guild = self._client.get_guild(tasting.guild_id)
        if guild is None or guild.unavailable:
            if guild is None and self._client.is_ready():
                return await self._end(tasting, tr(CHANNEL_GONE))
            return await self._wait(tasting)
        channel = guild.get_channel_or_thread(tasting.channel_id)
        if not isinstance(channel, Place):
            return await self._end(tasting, tr(CHANNEL_GONE))
        home = parent_of(channel) or channel.id
        found = await self._services.settings(guild.id, home)
        texts.speak(texts.choose(found.settings.language, guild.preferred_locale))
        if reason := objection(self._services, channel, found, pairs=tasting.pairs):
            return await self._end(tasting, reason)
        if await self._services.database.aread(lambda db: tastings.waits_for_ratings(db, tasting.id)):
            return await self._wait(tasting)
        try:
            base, _ = await self._services.base_and_adapters()
        except ServingError:
            return await self._wait(tasting)
        return await self._ask(tasting, channel, found, base.hash)

    async def _ask(self, tasting: Tasting, channel: Place, found: InForce, base_hash: str) -> None:
        discord_id = discord.utils.time_snowflake(discord.utils.utcnow()) | secrets.randbits(22)

        def work(db: Connection) -> tuple[BankPrompt | None, Progress]:
            champion = adapters.champion(db, tasting.scope, base_hash)
            chosen = tastings.take_turn(db, tasting.id, discord_id, base_hash, champion)
            return chosen, tastings.progress(db, tasting.id)

        prompt, progress = await self._services.database.awrite(work)
        if prompt is None:
            return await self._over(tasting, channel, progress)
        if progress.asked == 1:
            await self._say(channel, _beginning(tasting, found))
        question = self._question(tasting, channel, found, prompt, discord_id, progress.asked)
        task = self._answerer.start(question, ChannelSurface(channel), channel.typing())
        answered = task is not None and await self._answered(await asyncio.shield(task))
        _log.info("tasting.asked", tasting_id=tasting.id, number=progress.asked, answered=answered)
        if not answered:
            await self._services.database.awrite(lambda db: tastings.withdraw_turn(db, discord_id))
            return await self._failed(tasting)
        self._failures.pop(tasting.id, None)
        return None

    def _question(
        self,
        tasting: Tasting,
        channel: Place,
        found: InForce,
        prompt: BankPrompt,
        discord_id: int,
        number: int,
    ) -> Question:
        # In the playground nothing is anybody's in earnest, and its rows must go on saying so.
        source = "playground" if self._services.playground else members.OPERATOR_SOURCE
        return Question(
            discord_id=discord_id,
            channel_id=channel.id,
            guild_id=channel.guild.id,
            public=is_public(channel),
            author=_asker(prompt, source),
            text=prompt.text,
            in_force=found,
            quote=quote_line(prompt.text),
            note=tr(COUNTED, number=number, count=tasting.wanted),
            visible=False,
            parent_channel_id=parent_of(channel),
            compared=tasting.pairs,
            words_of=prompt.author_id,
        )

    async def _answered(self, draft: Draft) -> bool:
        reply = await self._services.database.aread(lambda db: replies.get(db, draft.reply_id))
        return reply is not None and reply.status in ("complete", "stopped") and draft.progress.delivered

    async def _over(self, tasting: Tasting, channel: Place, progress: Progress) -> None:
        if await self._services.database.awrite(lambda db: tastings.end(db, tasting.id, "done")):
            await self._say(channel, tr(OVER, answered=progress.answered, rated=progress.rated))

    async def _failed(self, tasting: Tasting) -> None:
        failures = self._failures[tasting.id] = self._failures.get(tasting.id, 0) + 1
        if failures >= MOST_FAILURES:
            del self._failures[tasting.id]
            await self._end(tasting, tr(NO_ANSWERS))
        else:
            await self._wait(tasting)

    async def _end(self, tasting: Tasting, reason: str) -> None:
        """End a tasting for something that a person has to put right, and tell whoever began it."""
        _log.warning("tasting.ended", tasting_id=tasting.id, channel_id=tasting.channel_id, reason=reason)
        ended = await self._services.database.awrite(
            lambda db: tastings.end(db, tasting.id, "stopped", reason)
        )
        if ended and tasting.requested_by.isdecimal():
            told = tr(ENDED, channel=tasting.channel_id, reason=reason)
            await self._client.tell(int(tasting.requested_by), told)

    async def _wait(self, tasting: Tasting) -> None:
        await self._services.database.awrite(lambda db: tastings.put_off(db, tasting.id, LOOK_AGAIN_S))

    async def _say(self, channel: Place, text: str) -> None:
        try:
            await translate_errors(channel.send(text, silent=True))
        except DeliveryError as error:
            _log.info("tasting.not_said", channel_id=channel.id, error=type(error).__name__)


def _asker(prompt: BankPrompt, source: str) -> Person:
    """In whose name a prompt is asked: its import's, so that it can be taken back, or the operator's."""
    if prompt.import_id is None:
        return Person(members.OPERATOR_ID, members.OPERATOR_NAME, source)
    return Person(imports.member_of(prompt.import_id), "", source)


def _beginning(tasting: Tasting, found: InForce) -> str:
    if tasting.pairs:
        return tr(BEGINS_IN_PAIRS, count=tasting.wanted)
    up, down = found.settings.rating_up[0], found.settings.rating_down[0]
    return tr(BEGINS, count=tasting.wanted, up=up, down=down)
