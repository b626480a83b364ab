"""The buttons of a run: cancel while it is on; promote, reject, roll back and compare afterwards."""

from __future__ import annotations

import asyncio
import re
from typing import Any, Literal, Self, get_args

import discord
import structlog

from bot.delivery.targets import translate_errors
from bot.errors import DeliveryError
from bot.language.names import adapter_name
from bot.language.sentences import translate
from bot.language.texts import mark, speaking, tr
from bot.learning import run_card
from bot.learning.champion import ChampionChanges, Place
from bot.learning.run_card import Card
from bot.operators import NOT_OPERATOR
from bot.services import Services
from bot.ui.channel_language import language_in
from bot.ui.interactions import Interaction, say, sentence_for, with_error_reply
from storage.db.database import Connection
from storage.errors import RuleError, UnknownRowError
from storage.feedback import duels
from storage.learning import adapters, run_summary, runs
from storage.learning.adapters import Adapter
from storage.learning.run_summary import Sample

Action = Literal["cancel", "promote", "reject", "rollback", "compare"]

COMPARED = 4
STALE = mark(
    "The champion changed since this adapter was judged, so its score no longer counts: judge again with "
    "/retrain, or insist with /promote."
)

END_VOTE = mark("Reject, and end the vote")

_LABELS: dict[Action, tuple[str, discord.ButtonStyle]] = {
    "cancel": (mark("Cancel"), discord.ButtonStyle.secondary),
    "promote": (mark("Promote"), discord.ButtonStyle.primary),
    "reject": (mark("Reject"), discord.ButtonStyle.secondary),
    "rollback": (mark("Roll back"), discord.ButtonStyle.danger),
    "compare": (mark("Compare replies"), discord.ButtonStyle.secondary),
}

_log = structlog.get_logger(__name__)


class RunButton(
    discord.ui.DynamicItem[discord.ui.Button[discord.ui.View]],
    template=rf"strop:run:(?P<run>[A-Za-z0-9_\-]{{1,64}}):(?P<action>{'|'.join(get_args(Action))})",
):
    """One button of a run's message; everything it needs is in its custom id."""

    def __init__(
        self, run_id: str, action: Action, *, disabled: bool = False, label: str | None = None
    ) -> None:
        self.run_id = run_id
        self.action = action
        usual, style = _LABELS[action]
        custom_id = f"strop:run:{run_id}:{action}"
        super().__init__(
            discord.ui.Button(label=tr(label or usual), style=style, custom_id=custom_id, disabled=disabled)
        )

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction[Any], item: discord.ui.Item[Any], match: re.Match[str], /
    ) -> Self:
        """Make the button again from its custom id."""
        return cls(match["run"], match["action"])  # type: ignore[arg-type]  # the template lists the actions

    @with_error_reply
    async def callback(self, interaction: Interaction) -> None:
        """Act, if whoever pressed is an operator now and the run's state still allows it."""
        await interaction.response.defer(ephemeral=True, thinking=True)
        if not interaction.client.is_operator(interaction.user.id):
            return await say(interaction, tr(NOT_OPERATOR))
        services, actor = interaction.client.services, str(interaction.user.id)
        await services.database.aread(lambda db: _require_of(db, self.run_id, interaction.guild_id))
        if self.action == "compare":
            return await say(interaction, await _compared(services, self.run_id))
        if self.action == "cancel":
            return await say(interaction, await _cancelled(services, self.run_id, actor))
        changes = interaction.client.feature(ChampionChanges)
        if self.action == "reject" and (judged := await _still_judged(services, self.run_id)):
            return await say(interaction, await reject_candidate(services, changes, judged, actor))
        card = await _card(services, self.run_id)
        try:
            sentence = await _decided(services, changes, card, self.action, actor)
        except RuleError as error:
            # What stands in the way is shown on the card as well: it is drawn anew all the same.
            sentence = sentence_for(error, type(self).__name__)
        await say(interaction, sentence)
        return await _redraw(services, interaction, self.run_id)


def _require_of(db: Connection, run_id: str, guild_id: int | None) -> None:
    """Raise UnknownRowError for another server's run: its id opens nothing here."""
    if duels.guild_of(runs.expect(db, run_id).scope) not in (None, guild_id):
        raise UnknownRowError(mark("There is no run {run}."), run=run_id)


def cancel_view(run_id: str) -> discord.ui.View:
    """Return the button of a run that is queued or on."""
    return _view(RunButton(run_id, "cancel"))


def vote_ending_view(run_id: str) -> discord.ui.View:
    """Return the button that ends a vote, and the canary beside it, without a promotion."""
    return _view(RunButton(run_id, "reject", label=END_VOTE))


def card_view(card: Card) -> discord.ui.View:
    """Return a card's buttons; what the state doesn't allow is disabled."""
    undecided = card.undecided
    return _view(
        RunButton(card.run.id, "promote", disabled=not undecided or card.stale),
        RunButton(card.run.id, "reject", disabled=not undecided),
        RunButton(card.run.id, "rollback", disabled=not card.answers),
        RunButton(card.run.id, "compare", disabled=not card.run.repeatable),
    )


async def list_public_samples(services: Services, card: Card) -> list[Sample]:
    """Return what a card may show to everybody who reads the channel: replies to general prompts only."""
    if not card.run.repeatable:
        return []
    return await asyncio.to_thread(
        run_summary.samples, services.config.runs, card.run.id, run_card.SAMPLES, general_only=True
    )


def _view(*buttons: RunButton) -> discord.ui.View:
    view = discord.ui.View(timeout=None)
    for button in buttons:
        view.add_item(button)
    return view


async def _still_judged(services: Services, run_id: str) -> Adapter | None:
    """Return the adapter of a run that members still judge; None for every other run."""

    def work(db: Connection) -> Adapter | None:
        run = runs.expect(db, run_id)
        return adapters.get(db, run.adapter_id or "") if run.outcome == "votes" else None

    return await services.database.aread(work)


async def reject_candidate(services: Services, changes: ChampionChanges, adapter: Adapter, actor: str) -> str:
    """Keep a candidate out of service; return the sentence on what happened.

    The trainer ends its vote and its canary when it next looks at them.
    """
    await changes.reject(adapter.id, actor=actor, reason="rejected by hand")
    champion = await services.database.aread(
        lambda db: adapters.champion(db, adapter.scope, adapter.base_hash)
    )
    return tr(
        "Adapter `{adapter}` is rejected; {who} goes on answering.",
        adapter=adapter.id,
        who=adapter_name(champion),
    )


async def _cancelled(services: Services, run_id: str, actor: str) -> str:
    done = await services.database.awrite(lambda db: runs.cancel(db, run_id, actor))
    return (
        tr("Run `{run}` is cancelled.", run=run_id)
        if done
        else tr("Run `{run}` is over already.", run=run_id)
    )


async def _compared(services: Services, run_id: str) -> str:
    """Both models' replies to the same prompts, members' own among them: for operators' eyes."""
    card = await _card(services, run_id)
    samples = await asyncio.to_thread(run_summary.samples, services.config.runs, card.run.id, COMPARED)
    if not samples:
        return tr("The replies of this run are not kept any more.")
    return "\n\n".join(run_card.sample_text(sample, card) for sample in samples)[:1990]


async def _decided(
    services: Services, changes: ChampionChanges, card: Card, action: Action, actor: str
) -> str:
    """Promote, reject or roll back; return the sentence on what happened."""
    adapter, place = card.adapter, Place(card.adapter.scope, card.adapter.base_hash)
    if action == "reject":
        return await reject_candidate(services, changes, adapter, actor)
    if action == "rollback":
        change = await changes.roll_back(
            place,
            actor=actor,
            reason="rolled back by hand from its card",
            check=lambda db: _require_answering(db, card.run.id),
        )
        return tr("Rolled back: {who} answers again.", who=adapter_name(change.after))
    _require_promotable(card)
    change = await changes.promote(
        place,
        adapter.id,
        actor=actor,
        reason="promoted by hand from its card",
        run_id=card.run.id,
        expected_champion=card.judged_against,
        check=lambda db: _require_promotable(_expected(db, card.run.id)),
    )
    return tr(
        "From the next reply on {who} answers, not {previous}.",
        who=adapter_name(adapter.id),
        previous=adapter_name(change.before),
    )


def _require_promotable(card: Card) -> None:
    """Raise RuleError where the adapter of a card can't be promoted from it."""
    if objection := _objection(card):
        raise RuleError(objection)


def _require_answering(db: Connection, run_id: str) -> None:
    """Raise RuleError where the adapter of a card doesn't answer: its roll-back would be another's."""
    card = _expected(db, run_id)
    if not card.answers:
        raise RuleError(
            tr(
                "Adapter `{adapter}` does not answer now: there is nothing to roll back here.",
                adapter=card.adapter.id,
            )
        )


def _objection(card: Card) -> str | None:
    """Return why the adapter of a card can't be promoted from it, or None."""
    adapter = card.adapter
    if card.answers:
        return tr("Adapter `{adapter}` answers already.", adapter=adapter.id)
    if adapter.state == "tainted":
        return translate(adapters.tainted(adapter.id))
    if card.stale:
        return tr(STALE)
    if adapter.state != "candidate":
        return tr(
            "Adapter `{adapter}` is {state}; /promote puts it in service all the same.",
            adapter=adapter.id,
            state=tr(adapter.state),
        )
    return None


async def _card(services: Services, run_id: str) -> Card:
    return await services.database.aread(lambda db: _expected(db, run_id))


def _expected(db: Connection, run_id: str) -> Card:
    card = run_card.find(db, runs.expect(db, run_id))
    if card is None:
        raise RuleError(tr("Run `{run}` has no adapter to decide on.", run=run_id))
    return card


async def _redraw(services: Services, interaction: discord.Interaction[Any], run_id: str) -> None:
    """Show the new state at once; where that fails, the next look at the runs does it."""
    message = interaction.message
    if message is None:
        return
    card = await _card(services, run_id)
    samples = await list_public_samples(services, card)
    # Whoever pressed may read another language than the channel does.
    with speaking(await language_in(services, interaction.client, message.channel.id)):
        drawn, view = run_card.embed(card, samples), card_view(card)
    try:
        await translate_errors(message.edit(embed=drawn, view=view))
    except DeliveryError as error:
        _log.info("card.not_redrawn", run_id=run_id, error=str(error))
