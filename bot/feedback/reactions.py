"""Reactions on the bot's replies are ratings: stored, replaced, taken back, and recovered after an absence.

Only raw events are used, since a reaction usually lands on a message that no cache holds. Those of one
message are handled one after the other, as they came, so that a quick change of mind ends as it was meant.
"""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from weakref import WeakValueDictionary

import discord
import structlog

from bot.delivery.targets import translate_errors
from bot.errors import ChannelRefusedError, DeliveryError
from bot.services import Person, Services
from storage.admin import settings
from storage.chat import conversations, members, replies, reply_versions
from storage.config import Config
from storage.db import key_values
from storage.db.clock import now_ms
from storage.db.database import Connection
from storage.feedback import ratings, side_by_side

RECONCILE_WINDOW_MS = 3 * 24 * 60 * 60 * 1000
RECONCILE_REPLIES = 200
"""How many replies are compared before the next page of them is read: all of the window are, in pages."""
_LATE_PART_S = 1.0

_SKIN_TONES = dict.fromkeys(range(127995, 128000))
_CUSTOM = re.compile(r"<a?:\w+:(\d+)>")
_VARIATION_SELECTOR = "\ufe0f"

_log = structlog.get_logger(__name__)


class EmojiValues:
    """Which emoji rate in one place, and how: 1 for its ups, -1 for its downs.

    Skin tones don't matter, nor does the name of a custom emoji: it may be renamed.
    """

    def __init__(self, up: Iterable[str], down: Iterable[str]) -> None:
        self._values = {_identity(emoji): 1 for emoji in up} | {_identity(emoji): -1 for emoji in down}

    @classmethod
    def of(cls, db: Connection, config: Config, reply: replies.Reply) -> EmojiValues:
        """Return what rates a reply in its channel today."""
        place = conversations.get(db, reply.conversation_id)
        guild_id = place.guild_id if place else None
        channel_id = place.settings_channel_id if place else None
        found = settings.resolve(db, config, guild_id, channel_id).settings
        return cls(found.rating_up, found.rating_down)

    def value(self, emoji: str) -> int | None:
        """Return the emoji's value, or None if it doesn't rate."""
        return self._values.get(_identity(emoji))


def plain_emoji(emoji: str) -> str:
    """Return an emoji without skin tone and variation selector; a custom one stays ``<:name:id>``."""
    return emoji.translate(_SKIN_TONES).replace(_VARIATION_SELECTOR, "").strip()


def _identity(emoji: str) -> str:
    custom = _CUSTOM.fullmatch(emoji.strip())
    return custom[1] if custom else plain_emoji(emoji)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What Discord shows on one reply: who reacted with which rating emoji, in the order of parts."""

    people: Mapping[int, Person]
    emoji: Mapping[int, tuple[str, ...]]


class RatingRecorder:
    """Turns reaction events into rows."""

    def __init__(
        self, services: Services, client: discord.Client, is_writing_in: Callable[[int], bool]
    ) -> None:
        self._services = services
        self._client = client
        self._is_writing_in = is_writing_in
        self._reconciling = asyncio.Lock()
        self._wanted_again = False
        # By message; a lock lets in who came first. It goes when nobody holds or awaits it any more.
        self._turns: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()

    async def handle_added(self, event: discord.RawReactionActionEvent) -> None:
        """Store a rating in place of the member's earlier one."""
        if not self._is_bot(event):
            async with self._turn(event.message_id):
                await self._add(event)

    def _turn(self, message_id: int) -> asyncio.Lock:
        """Return the lock of a message; nothing may be awaited between its event and this."""
        return self._turns.setdefault(message_id, asyncio.Lock())

    async def _add(self, event: discord.RawReactionActionEvent) -> None:
        emoji = plain_emoji(str(event.emoji))
        value = await self._value(event.message_id, emoji)
        if value is None and self._is_writing_in(event.channel_id):
            # The reaction may have overtaken the row of a message that was sent this moment.
            await asyncio.sleep(_LATE_PART_S)
            value = await self._value(event.message_id, emoji)
        if value is None:
            return
        person, rated = self._person(event), value

        def work(db: Connection) -> bool | None:
            reply = replies.by_discord_id(db, event.message_id)
            if reply is None or side_by_side.of(db, reply.id) is not None:
                # A message with two answers is voted on: a thumb doesn't say which of them it means.
                return None if reply is None else False
            return self._rate(db, reply.id, person, emoji, rated)

        self._noted("rating.added", event.message_id, await self._services.database.awrite(work))

    async def _value(self, message_id: int, emoji: str) -> int | None:
        """Return what an emoji says about the reply that a message belongs to, if it is one and it rates."""

        def work(db: Connection) -> int | None:
            reply = replies.by_discord_id(db, message_id)
            return None if reply is None else EmojiValues.of(db, self._services.config, reply).value(emoji)

        return await self._services.database.aread(work)

    async def handle_removed(self, event: discord.RawReactionActionEvent) -> None:
        """Take the member's rating back, if it is the one that stands; another one left there counts."""
        async with self._turn(event.message_id):
            await self._remove(event)

    async def _remove(self, event: discord.RawReactionActionEvent) -> None:
        emoji = plain_emoji(str(event.emoji))
        database = self._services.database
        # Also an emoji that no longer rates: what it said once is taken back.
        if self._is_me(event.user_id) or not await database.aread(
            lambda db: replies.by_discord_id(db, event.message_id) is not None
        ):
            return

        def work(db: Connection) -> bool | None:
            reply = replies.by_discord_id(db, event.message_id)
            if reply is None:
                return None
            return any(
                ratings.retract(db, reply_id=each, user_id=event.user_id, kind="thumb", emoji=emoji)
                for each in _versions(db, reply.id)
            )

        outcome = await self._services.database.awrite(work)
        self._noted("rating.retracted", event.message_id, outcome)
        if outcome:
            reply = await self._services.database.aread(
                lambda db: replies.by_discord_id(db, event.message_id)
            )
            if reply is not None:
                await self._reconcile_reply(reply, set(), only=event.user_id)

    async def handle_cleared(self, event: discord.RawReactionClearEvent) -> None:
        """A moderator removed every reaction of a message."""
        async with self._turn(event.message_id):
            await self._clear(event.message_id, None)

    async def emoji_cleared(self, event: discord.RawReactionClearEmojiEvent) -> None:
        """A moderator removed every reaction with one emoji."""
        emoji = plain_emoji(str(event.emoji))
        async with self._turn(event.message_id):
            if await self._value(event.message_id, emoji) is not None:
                await self._clear(event.message_id, emoji)

    async def reconcile(self, page_size: int = RECONCILE_REPLIES) -> int:
        """Compare recent replies with what Discord shows, store what was missed, return how many changed.

        Runs after every new session: what happened during an absence is never sent again.
        """
        if self._wanted_again:
            return 0
        # A session that begins meanwhile (another shard's) may have missed what was compared before.
        self._wanted_again = self._reconciling.locked()
        async with self._reconciling:
            self._wanted_again = False
            since_ms = now_ms() - RECONCILE_WINDOW_MS
            changed = compared = 0
            refusing: set[int] = set()
            before: tuple[int, str] | None = None
            while True:
                page = await self._services.database.aread(
                    functools.partial(_page, since_ms, page_size, before)
                )
                if not page:
                    break
                before = (page[-1].created_ms, page[-1].id)
                mine = await self._services.database.aread(functools.partial(self._of_shards, page))
                compared += len(mine)
                for reply in mine:
                    if reply.status != "streaming":
                        changed += await self._reconcile_reply(reply, refusing)
            _log.info("ratings.reconciled", replies=compared, recovered=changed, refused=len(refusing))
            return changed

    def _of_shards(self, page: list[replies.Reply], db: Connection) -> list[replies.Reply]:
        shards = self._services.shards
        return [reply for reply in page if shards.has_conversation(db, reply.conversation_id)]

    async def compare(self, message_id: int) -> int:
        """Compare the reply on one message with what Discord shows; return how many ratings changed."""
        reply = await self._services.database.aread(lambda db: replies.by_discord_id(db, message_id))
        return 0 if reply is None else await self._reconcile_reply(reply, set())

    async def _reconcile_reply(
        self, reply: replies.Reply, refusing: set[int], only: int | None = None
    ) -> int:
        """Compare one reply; channels in ``refusing`` are left alone: many refusals ban the address."""
        parts, stored, values = await self._services.database.aread(
            lambda db: (
                replies.parts(db, reply.id),
                _on_all_versions(db, reply.id),
                EmojiValues.of(db, self._services.config, reply),
            )
        )
        if not parts or parts[0].channel_id in refusing:
            return 0
        try:
            shown = await self._shown(parts, values)
            # Counts that are as they were prove nothing: two members may have changed their minds.
            if only is None and not shown and not any(_is_reaction(rating) for rating in stored):
                return 0
            seen = await self._people_of(shown)
        except DeliveryError as error:
            # A channel or message that is gone keeps the ratings that it had.
            _log.debug("ratings.not_comparable", reply_id=reply.id, error=type(error).__name__)
            if isinstance(error, ChannelRefusedError):
                refusing.add(parts[0].channel_id)
            return 0

        def work(db: Connection) -> int:
            changed = self._settle(db, reply.id, seen, values, only)
            if changed and only is None:
                # In the same transaction: whoever sees the ratings sees that they were recovered.
                _add_recovered(db, changed)
            return changed

        return await self._services.database.awrite(work)

    async def _shown(self, parts: Iterable[replies.Part], values: EmojiValues) -> list[discord.Reaction]:
        """Return the rating reactions on all messages of a reply."""
        shown: list[discord.Reaction] = []
        for part in parts:
            channel = self._client.get_partial_messageable(part.channel_id)
            message = await translate_errors(channel.fetch_message(part.discord_id))
            shown += [each for each in message.reactions if values.value(str(each.emoji)) is not None]
        return shown

    async def _people_of(self, shown: Iterable[discord.Reaction]) -> _Seen:
        people: dict[int, Person] = {}
        emoji: dict[int, tuple[str, ...]] = {}
        for reaction in shown:
            for user in await translate_errors(_all_users(reaction)):
                if user.bot or self._is_me(user.id):
                    continue
                people[user.id] = self._services.person(user)
                emoji[user.id] = (*emoji.get(user.id, ()), plain_emoji(str(reaction.emoji)))
        return _Seen(people, emoji)

    def _settle(
        self, db: Connection, reply_id: str, seen: _Seen, values: EmojiValues, only: int | None
    ) -> int:
        """Bring the rows of one reply in line with what was seen; a choice that still stands is kept."""
        if side_by_side.of(db, reply_id) is not None:
            return 0
        stored = [rating for rating in _on_all_versions(db, reply_id) if not rating.retracted]
        changed = 0
        for user_id in {rating.user_id for rating in stored if _is_reaction(rating)} | seen.emoji.keys():
            if only is None or user_id == only:
                mine = [rating for rating in stored if rating.user_id == user_id and rating.kind == "thumb"]
                changed += self._settle_member(db, reply_id, user_id, mine, seen, values)
        return changed

    def _settle_member(
        self,
        db: Connection,
        reply_id: str,
        user_id: int,
        mine: list[ratings.Rating],
        seen: _Seen,
        values: EmojiValues,
    ) -> int:
        """Bring one member's thumbs in line; a reaction may belong to a version that was shown before."""
        # What a member erased still stands at Discord: only what they do from then on rates such a reply.
        reacted = (
            () if _is_before_erasure(db, reply_id, user_id) and not mine else seen.emoji.get(user_id, ())
        )
        stale = [rating for rating in mine if _is_reaction(rating) and rating.emoji not in reacted]
        pressed = any(rating.reply_id == reply_id and not _is_reaction(rating) for rating in mine)
        if reacted and not pressed and not any(rating.emoji in reacted for rating in mine):
            value = values.value(reacted[-1]) or 0
            changed = int(self._rate(db, reply_id, seen.people[user_id], reacted[-1], value))
            stale = [rating for rating in stale if rating.reply_id != reply_id]
        else:
            changed = 0
        for rating in stale:
            changed += ratings.retract(db, reply_id=rating.reply_id, user_id=user_id, kind="thumb")
        return changed

    def _rate(self, db: Connection, reply_id: str, person: Person, emoji: str, value: int) -> bool:
        person.ensure(db)
        return ratings.rate(
            db,
            reply_id=reply_id,
            user_id=person.user_id,
            kind="thumb",
            means="reaction",
            value=value,
            emoji=emoji,
            permission_reference=self._services.permission_reference,
        )

    async def _clear(self, message_id: int, emoji: str | None) -> None:
        def work(db: Connection) -> int | None:
            reply = replies.by_discord_id(db, message_id)
            if reply is None:
                return None
            return sum(ratings.retract_all(db, each, emoji) for each in _versions(db, reply.id))

        self._noted("ratings.cleared", message_id, await self._services.database.awrite(work))

    def _noted(self, event: str, message_id: int, outcome: bool | int | None) -> None:
        if outcome is None:
            _log.debug("rating.unknown_message", message_id=message_id)
        elif outcome:
            _log.info(event, message_id=message_id, count=int(outcome))

    def _is_me(self, user_id: int) -> bool:
        return self._client.user is not None and user_id == self._client.user.id

    def _is_bot(self, event: discord.RawReactionActionEvent) -> bool:
        if self._is_me(event.user_id):
            return True
        user = event.member or self._client.get_user(event.user_id)
        return user is not None and user.bot

    def _person(self, event: discord.RawReactionActionEvent) -> Person:
        user = event.member or self._client.get_user(event.user_id)
        if user is not None:
            return self._services.person(user)
        return Person(event.user_id, "", "playground" if self._services.playground else "discord")


def _is_before_erasure(db: Connection, reply_id: str, user_id: int) -> bool:
    """Whether a reply is older than the moment at which a member had everything of theirs deleted."""
    reply, member = replies.get(db, reply_id), members.get(db, user_id)
    erased_ms = member.erased_ms if member is not None else None
    return reply is not None and erased_ms is not None and reply.created_ms <= erased_ms


def _page(since_ms: int, size: int, before: tuple[int, str] | None, db: Connection) -> list[replies.Reply]:
    return replies.recent(db, since_ms, size, before=before)


def _versions(db: Connection, reply_id: str) -> list[str]:
    """Return the ids of all versions of a reply, the one that is given first."""
    return sorted(reply_versions.of(db, reply_id).reply_ids, key=lambda each: each != reply_id)


def _on_all_versions(db: Connection, reply_id: str) -> list[ratings.Rating]:
    return [rating for each in _versions(db, reply_id) for rating in ratings.list_for_reply(db, each)]


def _is_reaction(rating: ratings.Rating) -> bool:
    return rating.kind == "thumb" and rating.means == "reaction" and not rating.retracted


async def _all_users(reaction: discord.Reaction) -> list[discord.Member | discord.User]:
    """Return who reacted; those who gave a super reaction Discord lists apart."""
    kinds = [discord.ReactionType.normal, discord.ReactionType.burst]
    if not reaction.burst_count:
        kinds.pop()
    return [user for kind in kinds async for user in reaction.users(type=kind)]


def _add_recovered(db: Connection, count: int) -> None:
    before = int(key_values.get(db, key_values.RECOVERED_RATINGS, "0") or 0)
    key_values.put(db, key_values.RECOVERED_RATINGS, str(before + count))
