"""The learning loop's commands: /status, /adapters, /promote and /rollback."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from discord import app_commands

from bot.commands.tree import Interaction, StropTree, operators_only, say
from bot.glance import adapter_lines, status_lines
from bot.ratings import RECOVERED_FACT
from bot.retelling import retell
from bot.services import Services
from bot.serving.errors import ServingError
from bot.texts import tr
from storage import adapters, facts, overview
from storage.processes import is_locked

if TYPE_CHECKING:
    from bot.client import StropClient

BASE_CHOICE = "base"
_LISTED = 15


def add_to(tree: StropTree) -> None:
    """Add this module's commands."""
    added: tuple[app_commands.Command[Any, ..., Any], ...] = (
        status,
        adapters_command,
        promote,
        rollback,
    )
    for command in added:
        tree.add_command(command)


@app_commands.command(description="How the learning stands: ratings, the next run, which adapter answers.")
async def status(interaction: Interaction) -> None:
    """Show the loop at a glance."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    services, scope = interaction.client.services, _scope(interaction)
    server = await _server_state(interaction.client)
    try:
        base_hash = await services.base_hash()
    except ServingError:
        base_hash = ""

    def work(db: Any) -> tuple[dict[str, Any], str | None]:
        return _glance(db, services, scope, base_hash), facts.get(db, RECOVERED_FACT)

    glance, recovered = await services.database.aread(work)
    trainer_alive = await asyncio.to_thread(is_locked, services.config.run / "trainer.lock")
    await say(
        interaction,
        status_lines(glance, server=server, trainer_alive=trainer_alive, recovered=int(recovered or 0)),
    )


@app_commands.command(name="adapters", description="The adapters trained so far, with their scores.")
async def adapters_command(interaction: Interaction) -> None:
    """List adapters, the newest first."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    services, scope = interaction.client.services, _scope(interaction)
    base_hash = await services.base_hash()

    def work(db: Any) -> tuple[list[adapters.Adapter], str | None, dict[str, Any]]:
        glance = _glance(db, services, scope, base_hash)
        return adapters.listing(db, scope), adapters.champion(db, scope, base_hash), glance

    listing, champion, glance = await services.database.aread(work)
    await say(interaction, adapter_lines(listing[:_LISTED], champion, glance["history"], total=len(listing)))


@app_commands.command(description="Let an adapter answer from now on, whatever the gate said.")
@app_commands.describe(adapter='The adapter\'s id, or "base" for the model without an adapter')
@operators_only
async def promote(interaction: Interaction, adapter: str) -> None:
    """Make an adapter champion by hand."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    services, scope = interaction.client.services, _scope(interaction)
    adapter_id = None if adapter.strip() == BASE_CHOICE else adapter.strip().strip("`")
    base_hash = await services.base_hash()
    if adapter_id is not None:
        # Loaded before it is promoted: what the server refuses must not become champion.
        await services.load_adapter(adapter_id)

    previous = await services.database.awrite(
        lambda db: adapters.promote_by_hand(
            db,
            scope=scope,
            base_hash=base_hash,
            adapter_id=adapter_id,
            actor=str(interaction.user.id),
            reason="promoted by hand",
        )
    )
    if previous == adapter_id:
        return await say(
            interaction,
            tr("The base model answers already.")
            if adapter_id is None
            else tr("Adapter `{adapter}` answers already.", adapter=adapter_id),
        )
    return await say(
        interaction,
        tr(
            "From the next reply on {who} answers, not {previous}.",
            who=_called(adapter_id),
            previous=_called(previous),
        ),
    )


@promote.autocomplete("adapter")
async def _adapter_choices(interaction: Interaction, typed: str) -> list[app_commands.Choice[str]]:
    if not interaction.client.is_operator(interaction.user.id):
        return []
    services, scope = interaction.client.services, _scope(interaction)
    listing = await services.database.aread(lambda db: adapters.listing(db, scope))
    choices = [
        app_commands.Choice(name=f"{adapter.id} ({tr(adapter.state)})", value=adapter.id)
        for adapter in listing
        if adapter.state != "tainted"
    ]
    choices.append(app_commands.Choice(name=tr("base (no adapter)"), value=BASE_CHOICE))
    return [choice for choice in choices if typed.lower() in choice.name.lower()][:25]


@app_commands.command(description="Go back to the adapter that answered before.")
@operators_only
async def rollback(interaction: Interaction) -> None:
    """Undo the last promotion."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    services, scope = interaction.client.services, _scope(interaction)
    base_hash = await services.base_hash()
    adapter_id = await services.database.awrite(
        lambda db: adapters.rollback(
            db, scope=scope, base_hash=base_hash, actor=str(interaction.user.id), reason="rolled back by hand"
        )
    )
    await say(interaction, tr("Rolled back: {who} answers again.", who=_called(adapter_id)))


def _scope(interaction: Interaction) -> str:
    return interaction.client.services.scope(interaction.guild_id)


def _glance(db: Any, services: Services, scope: str, base_hash: str) -> dict[str, Any]:
    config = services.config
    return overview.glance(
        db,
        scope,
        base_hash,
        min_liked=config.trainer.min_liked,
        min_raters=config.trainer.min_raters,
        min_votes=config.gate.min_votes,
        permission_reference=services.permission_reference,
    )


def _called(adapter_id: str | None) -> str:
    return tr("the base model") if adapter_id is None else tr("adapter `{adapter}`", adapter=adapter_id)


async def _server_state(client: StropClient) -> str:
    try:
        health = await client.services.model.health()
    except ServingError as error:
        return tr("not reachable ({reason})", reason=retell(str(error)))
    if health.status != "ok":
        return f"{health.status}: {health.detail}" if health.detail else health.status
    name = health.base.id if health.base else "?"
    return tr("ready, {name}, {traffic}", name=name, traffic=retell(health.traffic()))
