"""The buttons to vote with below two candidates that stand side by side in the chat.

The order is drawn by lot, and who voted is told which is which; everybody else goes on without knowing.
"""

from __future__ import annotations

import re
from typing import Any, Self

import discord

from bot.feedback import reply_view
from bot.language.names import adapter_name
from bot.language.texts import mark, tr
from bot.services import Services
from bot.ui.interactions import Interaction, say, with_error_reply
from storage.db.database import Connection
from storage.feedback import side_by_side
from storage.feedback.side_by_side import Choice, Comparison, Tally
from storage.learning import adapters

GONE = mark("This pair is gone.")
CLOSED = mark(
    "Voting on this pair is over: somebody whose words are in it decided that nothing may be learned from "
    "them."
)
TAKEN_BACK = mark("Your vote is taken back.")
TOLD_BEFORE = mark(
    "You already know which is which, so another vote of yours would not be blind. The "
    "button that you chose takes your vote back."
)
_CHOICES: dict[str, tuple[Choice, str]] = {"first": (1, "A"), "tie": (0, mark("Tie")), "second": (-1, "B")}


class CompareButton(
    discord.ui.DynamicItem[discord.ui.Button[discord.ui.View]],
    template=r"strop:compare:(?P<first>[A-Za-z0-9_.\-]{1,64}):(?P<choice>first|tie|second)",
):
    """One of the three buttons below two candidates; everything it needs is in its custom id."""

    def __init__(self, first_id: str, choice: str) -> None:
        self.first_id = first_id
        self.choice = choice
        super().__init__(
            discord.ui.Button(
                label=tr(_CHOICES[choice][1]),
                style=discord.ButtonStyle.secondary,
                custom_id=f"strop:compare:{first_id}:{choice}",
            )
        )

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction[Any], item: discord.ui.Item[Any], match: re.Match[str], /
    ) -> Self:
        """Make the button again from its custom id."""
        return cls(match["first"], match["choice"])

    @with_error_reply
    async def callback(self, interaction: Interaction) -> None:
        """Count the vote, then tell which is which; the same choice again takes it back.

        Who has been told votes no more: a choice between names is not blind.
        """
        await interaction.response.defer(ephemeral=True, thinking=True)
        services: Services = interaction.client.services
        person = services.person(interaction.user)
        choice: Choice = _CHOICES[self.choice][0]

        def work(db: Connection) -> str:
            pair = side_by_side.of(db, self.first_id)
            first = reply_view.find_in_server(db, self.first_id, interaction.guild_id)
            if pair is None or first is None or first.gone:
                return tr(GONE)
            person.ensure(db)
            if side_by_side.choice_of(db, pair.first_id, person.user_id) == choice:
                side_by_side.retract(db, first_id=pair.first_id, user_id=person.user_id)
                return tr(TAKEN_BACK)
            if side_by_side.was_told(db, pair.first_id, person.user_id):
                return tr(TOLD_BEFORE)
            if side_by_side.is_closed(db, pair.first_id):
                return tr(CLOSED)
            side_by_side.vote(
                db,
                first_id=pair.first_id,
                user_id=person.user_id,
                choice=choice,
                permission_reference=services.permission_reference,
            )
            return _revealed(db, pair, choice)

        await say(interaction, await services.database.awrite(work))


def compare_view(first_id: str) -> discord.ui.View:
    """Return the three buttons below two candidates."""
    view = discord.ui.View(timeout=None)
    for choice in ("first", "tie", "second"):
        view.add_item(CompareButton(first_id, choice))
    return view


def _revealed(db: Connection, pair: Comparison, choice: int) -> str:
    """Say which candidate is whose, and how the votes stand."""
    label = next(label for value, label in _CHOICES.values() if value == choice)
    names = [_name(db, reply_id) for reply_id in (pair.first_id, pair.second_id)]
    if names[0] == names[1]:
        usual = "A" if pair.usual_id == pair.first_id else "B"
        which = tr(
            "Both are {name}; {usual} is the one that would have answered alone.", name=names[0], usual=usual
        )
    else:
        which = tr("A is {first}, B is {second}.", first=names[0], second=names[1])
    counted = tr("Counted: {choice}.", choice=tr(label))
    return f"{counted} {which}\n{_standing(side_by_side.tally(db, pair.first_id))}"


def _name(db: Connection, reply_id: str) -> str:
    known = reply_view.find(db, reply_id)
    adapter_id = known.reply.adapter_id if known else None
    adapter = adapters.get(db, adapter_id) if adapter_id is not None else None
    if adapter is None:
        return adapter_name(adapter_id)
    when = f"<t:{adapter.created_ms // 1000}:R>"
    return tr("adapter `{adapter}`, trained {when}", adapter=adapter_id, when=when)


def _standing(tally: Tally) -> str:
    return tr(
        "-# So far: {first} for A, {second} for B, {ties} ties. "
        "Press the same button again to take your vote back.",
        first=tally.first,
        second=tally.second,
        ties=tally.ties,
    )
