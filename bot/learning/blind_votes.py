"""Blind votes: two answers to one prompt, and three buttons that survive a restart."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from typing import Any, Self

import discord
import structlog

from bot.delivery.splitting import split
from bot.delivery.targets import translate_errors
from bot.errors import ChannelRefusedError, DeliveryError, MessageGoneError
from bot.language.texts import mark, tr
from bot.services import Services
from bot.ui.interactions import Interaction, say, with_error_reply
from storage.admin import blocks
from storage.db import key_values
from storage.db.database import Connection
from storage.feedback import duels
from storage.feedback.duels import Duel, Home

MOST_UNANSWERED = 5
# A vote makes room for the next pair, but not faster than this.
POST_EVERY_S = 15.0
BLOCKED = mark("A moderator blocked you here, so your vote doesn't count.")
CLOSED = mark("*Voting on this pair is over.*")
_PROMPT_UNITS = 300
_ANSWER_UNITS = 700
_FACT = "duels.posted"

_CHOICES = {"first": (1, "A"), "tie": (0, mark("Tie")), "second": (-1, "B")}

_log = structlog.get_logger(__name__)


class VoteButton(
    discord.ui.DynamicItem[discord.ui.Button[discord.ui.View]],
    template=r"strop:duel:(?P<duel>[A-Za-z0-9_.\-]{1,64}):(?P<choice>first|tie|second)",
):
    """One of a pair's three buttons; everything it needs is in its custom id."""

    def __init__(self, duel_id: str, choice: str) -> None:
        self.duel_id = duel_id
        self.choice = choice
        _, label = _CHOICES[choice]
        style = discord.ButtonStyle.secondary if choice == "tie" else discord.ButtonStyle.primary
        super().__init__(
            discord.ui.Button(label=tr(label), style=style, custom_id=f"strop:duel:{duel_id}:{choice}")
        )

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction[Any], item: discord.ui.Item[Any], match: re.Match[str], /
    ) -> Self:
        """Make the button again from its custom id."""
        return cls(match["duel"], match["choice"])

    @with_error_reply
    async def callback(self, interaction: Interaction) -> None:
        """Count the vote of whoever pressed; another choice replaces it, the same one takes it back."""
        await interaction.response.defer(ephemeral=True, thinking=True)
        services = interaction.client.services
        person = services.person(interaction.user)
        value, label = _CHOICES[self.choice]

        def work(db: Connection) -> tuple[bool, bool, bool, bool]:
            # Another server's id opens nothing here.
            duel = duels.find_in_server(db, self.duel_id, interaction.guild_id)
            if blocks.is_blocked(db, interaction.guild_id, person.user_id):
                return False, False, True, True
            is_open = duel is not None and duel.closed_ms is None
            again = is_open and duels.choice_of(db, self.duel_id, person.user_id) == value
            if again:
                duels.retract(db, duel_id=self.duel_id, user_id=person.user_id)
            elif is_open:
                person.ensure(db)
                duels.vote(
                    db,
                    duel_id=self.duel_id,
                    user_id=person.user_id,
                    choice=value,
                    source=person.source,
                    guild_id=interaction.guild_id,
                )
                _note_answered(db, self.duel_id)
            return is_open, again, duel is not None, False

        is_open, again, known, blocked = await services.database.awrite(work)
        if blocked:
            await say(interaction, tr(BLOCKED))
        elif again:
            await say(interaction, tr("Your vote is taken back."))
        elif is_open:
            await say(
                interaction,
                tr(
                    "Counted: {choice}. You can change your mind until the voting ends; the same button "
                    "again takes your vote back.",
                    choice=tr(label),
                ),
            )
        else:
            await say(
                interaction,
                tr("Voting on this pair is over.") if known else tr("I don't know this pair any more."),
            )


def vote_view(duel_id: str) -> discord.ui.View:
    """Return the three buttons of a pair."""
    view = discord.ui.View(timeout=None)
    for choice in ("first", "tie", "second"):
        view.add_item(VoteButton(duel_id, choice))
    return view


def duel_text(duel: Duel) -> str:
    """Return a pair as people see it; nothing in it tells which answer is whose."""
    asked = next((turn["content"] for turn in reversed(duel.prompt) if turn.get("role") == "user"), "")
    quoted = "\n".join(f"> {line}" for line in _cut(asked, _PROMPT_UNITS).splitlines() or [""])
    return (
        f"{tr('**Which answer do you like better?**')}\n{quoted}\n\n"
        f"**A**\n{_cut(duel.first_text, _ANSWER_UNITS)}\n\n"
        f"**B**\n{_cut(duel.second_text, _ANSWER_UNITS)}"
    )


def _cut(text: str, units: int) -> str:
    parts = split(text.strip(), units)
    if not parts:
        return tr("*(no words)*")
    return parts[0].content if len(parts) == 1 else f"{parts[0].content} …"


class DuelBoard:
    """Keeps the open pairs of a scope posted, a few at a time, and takes the buttons off when voting ends."""

    def __init__(self, services: Services, client: discord.Client) -> None:
        self._services = services
        self._client = client
        self._next_post_at: dict[tuple[str, int], float] = {}
        self._seen: set[str] = set()

    async def update(self, scope: str, channel_id: int) -> None:
        """Post the next open pair if few are unanswered, and close those that are over.

        A pair with words of another server's members is posted there, in the channel of its prompt.
        """
        posted, waiting = await self._services.database.aread(
            lambda db: (
                _posted(db),
                [(duel, duels.home_of(db, duel)) for duel in duels.open_for(db, scope, 200)],
            )
        )
        open_ids = {duel.id for duel, _ in waiting}
        for duel_id, entry in posted.items():
            if entry["scope"] == scope and duel_id not in open_ids:
                await self._close(duel_id, entry)
        for duel_id in open_ids & posted.keys():
            if await self._is_gone(duel_id, posted[duel_id]):
                del posted[duel_id]
        unanswered = Counter(
            int(entry["channel"])
            for duel_id, entry in posted.items()
            if duel_id in open_ids and not entry["answered"]
        )
        for duel, home in waiting:
            if duel.id not in posted:
                await self._post_if_due(duel, self._place(channel_id, home), unanswered)

    async def _is_gone(self, duel_id: str, entry: dict[str, Any]) -> bool:
        """Whether a posted pair's message is gone since the last start; asked once for each."""
        if duel_id in self._seen:
            return False
        channel = self._client.get_partial_messageable(int(entry["channel"]))
        try:
            await translate_errors(channel.fetch_message(int(entry["message"])))
        except MessageGoneError:
            await self._services.database.awrite(lambda db: _remember(db, duel_id, None))
            return True
        except ChannelRefusedError:
            pass
        except DeliveryError:
            return False
        self._seen.add(duel_id)
        return False

    def _place(self, channel_id: int, home: Home | None) -> int:
        """Return the run's channel, or the channel of a prompt that was asked in another server."""
        guild = getattr(self._client.get_channel(channel_id), "guild", None)
        elsewhere = home is not None and guild is not None and home.guild_id != guild.id
        return home.channel_id if home is not None and elsewhere else channel_id

    async def _post_if_due(self, duel: Duel, channel_id: int, unanswered: Counter[int]) -> None:
        now, turn = asyncio.get_running_loop().time(), (duel.scope, channel_id)
        waiting = unanswered[channel_id]
        if waiting >= MOST_UNANSWERED or (waiting and now < self._next_post_at.get(turn, 0.0)):
            return
        await self._post(duel, channel_id)
        unanswered[channel_id] += 1
        if unanswered[channel_id] >= MOST_UNANSWERED:
            self._next_post_at[turn] = now + POST_EVERY_S

    async def _post(self, duel: Duel, channel_id: int) -> None:
        channel = self._client.get_partial_messageable(channel_id)
        try:
            message = await translate_errors(
                channel.send(duel_text(duel), view=vote_view(duel.id), silent=True)
            )
        except DeliveryError as error:
            _log.info("duel.not_posted", duel_id=duel.id, error=str(error))
            return
        entry = {"scope": duel.scope, "channel": channel_id, "message": message.id, "answered": False}
        self._seen.add(duel.id)
        await self._services.database.awrite(lambda db: _remember(db, duel.id, entry))

    async def _close(self, duel_id: str, entry: dict[str, Any]) -> None:
        channel = self._client.get_partial_messageable(int(entry["channel"]))
        message = channel.get_partial_message(int(entry["message"]))
        try:
            await translate_errors(message.edit(content=tr(CLOSED), view=None))
        except (ChannelRefusedError, MessageGoneError):
            _log.debug("duel.message_gone", duel_id=duel_id)
        except DeliveryError:
            return
        await self._services.database.awrite(lambda db: _remember(db, duel_id, None))


def _posted(db: Connection) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(key_values.get(db, _FACT, "{}") or "{}")
    return found


def _remember(db: Connection, duel_id: str, entry: dict[str, Any] | None) -> None:
    posted = _posted(db)
    posted.pop(duel_id, None)
    if entry is not None:
        posted[duel_id] = entry
    key_values.put(db, _FACT, json.dumps(posted))


def _note_answered(db: Connection, duel_id: str) -> None:
    entry = _posted(db).get(duel_id)
    if entry is not None and not entry["answered"]:
        _remember(db, duel_id, {**entry, "answered": True})
