"""The learning loop's commands: /status, /promote, /reject and /rollback."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from datetime import UTC, datetime

from discord import app_commands

from bot.charts import status_chart
from bot.charts.status_chart import LoopFigures
from bot.chat.listener import APART
from bot.language.names import adapter_name
from bot.language.sentences import translate
from bot.language.texts import tr
from bot.learning import adapter_text
from bot.learning.champion import ChampionChanges, Place
from bot.learning.next_run import Outlook, needs, next_run
from bot.learning.run_buttons import reject_candidate
from bot.learning.status_text import status_lines
from bot.services import Services
from bot.serving.errors import ServingError, UnknownModelError
from bot.serving.model.capabilities import ServerCapabilities
from bot.serving.protocol import Health
from bot.ui.interactions import (
    ACTS_ON_A_SCOPE,
    NO_SUCH_MODEL,
    Interaction,
    acting_scope,
    autocomplete_safe,
    operators_only,
    say,
)
from bot.ui.pictures import say_with_picture
from storage.chat import latency
from storage.chat.latency import Speed
from storage.db import key_values
from storage.db.database import Connection
from storage.learning import adapters, lineage, loop_status, run_times
from storage.learning.adapters import AnyChampion
from storage.learning.lineage import AdapterHistory
from storage.learning.loop_status import LoopStatus
from storage.process.locks import trainer_is_running

BASE_CHOICE = "base"
SPEED_HOURS = 24
# Discord shows at most so many choices, of at most so many characters.
_CHOICES = 25
_CHOICE_LIMIT = 100
_LOOKED_AT = 100


@app_commands.command(description="The state of the loop: ratings, the next run, which adapter answers.")
async def status(interaction: Interaction) -> None:
    """Show where the loop stands."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    services, scope = interaction.client.services, _scope(interaction)
    health = await _health(services)
    try:
        base_hash = await services.base_hash()
    except ServingError:
        base_hash = ""

    def work(db: Connection) -> tuple[LoopStatus, str | None, str | None, list[datetime], Speed]:
        speed = latency.measure_speed(db, scope, SPEED_HOURS)
        found = _read(db, services, scope, base_hash)
        return (
            found,
            key_values.get(db, key_values.RECOVERED_RATINGS),
            key_values.get(db, key_values.NEXT_RUN),
            run_times.list_upcoming(db, services.config.trainer, datetime.now(UTC)),
            speed,
        )

    found, recovered, due_ms, times, speed = await services.database.aread(work)
    trainer_alive = await asyncio.to_thread(trainer_is_running, services.config)
    trainer = services.config.trainer
    outlook = Outlook(found, int(due_ms) if due_ms else None, trainer.min_new_ratings, trainer_alive)
    figures = LoopFigures(needs(outlook), next_run(outlook), speed, _traffic(health), outlook.running)
    clock = ", ".join(f"<t:{int(time.timestamp())}:f>" for time in times)
    text = status_lines(
        found,
        server=_server_state(health, await _offered(services, health)),
        trainer_alive=trainer_alive,
        recovered=int(recovered or 0),
        more=[
            *([tr(APART)] if interaction.guild_id is None and trainer.scope == "guild" else []),
            f"{tr('Next run')}: {next_run(outlook, stamped=True)}",
            *([f"{tr('By the clock')}: {clock}"] if clock and trainer_alive else []),
            status_chart.speed_text(speed),
        ],
    )
    await say_with_picture(interaction, text, lambda: status_chart.draw(figures))


@app_commands.command(
    description="Let an adapter answer from now on, whatever the gate said.", extras={ACTS_ON_A_SCOPE: True}
)
@app_commands.describe(adapter='The adapter\'s id, or "base" for the model without an adapter')
@operators_only
async def promote(interaction: Interaction, adapter: str) -> None:
    """Make an adapter champion by hand."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    services, scope = interaction.client.services, acting_scope(interaction)
    adapter_id = _adapter_id(adapter)
    change = await interaction.client.feature(ChampionChanges).promote(
        Place(scope, await services.base_hash()),
        adapter_id,
        actor=str(interaction.user.id),
        reason="promoted by hand",
    )
    if change.before == adapter_id:
        return await say(interaction, _answers_already(adapter_id))
    return await say(
        interaction,
        tr(
            "From the next reply on {who} answers, not {previous}.",
            who=adapter_name(adapter_id),
            previous=adapter_name(change.before),
        ),
    )


@promote.autocomplete("adapter")
@autocomplete_safe
async def _promotable(interaction: Interaction, typed: str) -> list[app_commands.Choice[str]]:
    """Offer what may answer here and doesn't yet."""
    if not interaction.client.is_operator(interaction.user.id):
        return []
    services, scope = interaction.client.services, _scope(interaction)
    base_hash = await services.base_hash()

    def work(db: Connection) -> tuple[list[AdapterHistory], str | None]:
        histories = lineage.page(db, scope, skip=0, limit=_LOOKED_AT)
        return histories, adapters.champion(db, scope, base_hash)

    histories, champion = await services.database.aread(work)
    offered: list[AdapterHistory | None] = [
        history
        for history in histories
        if history.adapter.state != "tainted"
        and history.adapter.base_hash == base_hash
        and not history.answers
    ]
    return _choices([*offered, *([] if champion is None else [None])], typed)


@app_commands.command(
    description="Reject an undecided adapter; its vote and canary end.",
    extras={ACTS_ON_A_SCOPE: True},
)
@app_commands.describe(adapter="The adapter's id")
@operators_only
async def reject(interaction: Interaction, adapter: str) -> None:
    """Decide by hand that a candidate stays out of service."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    services, scope = interaction.client.services, acting_scope(interaction)
    changes = interaction.client.feature(ChampionChanges)
    found = await services.database.aread(
        lambda db: adapters.expect(db, _adapter_id(adapter) or BASE_CHOICE, scope)
    )
    await say(interaction, await reject_candidate(services, changes, found, str(interaction.user.id)))


@reject.autocomplete("adapter")
@autocomplete_safe
async def _undecided(interaction: Interaction, typed: str) -> list[app_commands.Choice[str]]:
    """Offer the candidates."""
    if not interaction.client.is_operator(interaction.user.id):
        return []
    services, scope = interaction.client.services, _scope(interaction)
    lives = await services.database.aread(lambda db: lineage.page(db, scope, skip=0, limit=_LOOKED_AT))
    return _choices([life for life in lives if life.adapter.state == "candidate"], typed)


@app_commands.command(
    description="Go back to the adapter that answered before, or to an earlier one.",
    extras={ACTS_ON_A_SCOPE: True},
)
@app_commands.describe(adapter="Which one to go back to; without it, the one before the present one")
@operators_only
async def rollback(interaction: Interaction, adapter: str | None = None) -> None:
    """Undo the last promotion, or several."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    services, scope = interaction.client.services, acting_scope(interaction)
    change = await interaction.client.feature(ChampionChanges).roll_back(
        Place(scope, await services.base_hash()),
        actor=str(interaction.user.id),
        reason="rolled back by hand",
        to=AnyChampion.ANY if adapter is None else _adapter_id(adapter),
    )
    await say(interaction, tr("Rolled back: {who} answers again.", who=adapter_name(change.after)))


@rollback.autocomplete("adapter")
@autocomplete_safe
async def _earlier(interaction: Interaction, typed: str) -> list[app_commands.Choice[str]]:
    """Offer those that led to the present one, the latest first."""
    if not interaction.client.is_operator(interaction.user.id):
        return []
    services, scope = interaction.client.services, _scope(interaction)
    base_hash = await services.base_hash()

    def work(db: Connection) -> list[AdapterHistory | None]:
        earlier = reversed(adapters.earlier_champions(db, scope, base_hash))
        return [lineage.of(db, each) if each else None for each in dict.fromkeys(earlier)]

    return _choices(await services.database.aread(work), typed)


def _choices(offered: Iterable[AdapterHistory | None], typed: str) -> list[app_commands.Choice[str]]:
    """Return choices whose names contain what was typed; None is the base model."""
    named = [
        (adapter_text.choice_name(history), history.adapter.id)
        if history
        else (tr("base (no adapter)"), BASE_CHOICE)
        for history in offered
    ]
    return [
        app_commands.Choice(name=name[:_CHOICE_LIMIT], value=value)
        for name, value in named
        if typed.lower() in name.lower()
    ][:_CHOICES]


def _adapter_id(chosen: str) -> str | None:
    """Read what was chosen or written; None is the base model."""
    bare = chosen.strip().strip("`")
    return None if bare == BASE_CHOICE else bare


def _scope(interaction: Interaction) -> str:
    return interaction.client.services.scope(interaction.guild_id)


def _read(db: Connection, services: Services, scope: str, base_hash: str) -> LoopStatus:
    config = services.config
    return loop_status.read(
        db,
        scope,
        base_hash,
        min_liked=config.trainer.min_liked,
        min_raters=config.trainer.min_raters,
        min_votes=config.gate.min_votes,
        permission_reference=services.permission_reference,
    )


def _answers_already(adapter_id: str | None) -> str:
    if adapter_id is None:
        return tr("The base model answers already.")
    return tr("Adapter `{adapter}` answers already.", adapter=adapter_id)


async def _health(services: Services) -> Health | ServingError:
    try:
        health = await services.model.health()
        if health.is_ready and health.base is None:
            # Somebody else's server is well also where it lacks the model that it is asked for.
            await services.model.models()
        return health
    except ServingError as error:
        return error


async def _offered(services: Services, health: Health | ServingError) -> ServerCapabilities | None:
    """Return what somebody else's server offers; ours has everything."""
    if isinstance(health, ServingError) or not health.is_ready or health.base is not None:
        return None
    with contextlib.suppress(ServingError):
        return await services.model.capabilities()
    return None


def _server_state(health: Health | ServingError, offered: ServerCapabilities | None = None) -> str:
    if isinstance(health, UnknownModelError):
        return tr(NO_SUCH_MODEL)
    if isinstance(health, ServingError):
        return tr("not reachable ({reason})", reason=translate(health))
    if not health.is_ready:
        state = tr(health.status)
        return (
            tr("{state}: {detail}", state=state, detail=translate(health.detail)) if health.detail else state
        )
    name = health.base.id if health.base else "?"
    ready = tr("ready, {name}, {traffic}", name=name, traffic=translate(health.traffic()))
    remarks = [translate(health.detail)] if health.detail else []
    if offered is not None and offered.missing():
        remarks += map(translate, offered.remarks())
    return "\n".join([ready, *remarks])


def _traffic(health: Health | ServingError) -> str:
    """Say who is served and who waits, for the picture."""
    if isinstance(health, ServingError):
        return tr("Now: the model server is not reachable")
    if not health.is_ready:
        return tr("Now: the model is not ready")
    words = tr(
        "Now: {running} being written, {waiting} waiting", running=health.running, waiting=health.waiting
    )
    wait_s = round(health.queue.wait_s)
    return (
        f"{words}; {tr('a question asked now waits about {seconds} s', seconds=wait_s)}" if wait_s else words
    )
