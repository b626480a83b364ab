"""/retrain: queue a run, with settings of its own if need be, or say what a run would use."""

from __future__ import annotations

import asyncio
from typing import Any

from discord import app_commands

from bot.diagnostics.run_estimate import run_estimate
from bot.language.sentences import translate
from bot.language.texts import tr
from bot.learning.run_progress import ProgressReporter
from bot.services import Services
from bot.serving.errors import ServingError
from bot.ui.interactions import ACTS_ON_A_SCOPE, Interaction, acting_scope, operators_only, say
from storage.db.database import Connection
from storage.learning import dry_run, runs
from storage.process.locks import trainer_is_running

MAX_EPOCHS = 20


@app_commands.command(
    description="Train a challenger on the ratings so far; it must beat the present adapter.",
    extras={ACTS_ON_A_SCOPE: True},
)
@app_commands.describe(
    dry_run="Only say what a run would use, and whether it would start; nothing changes",
    objective="Objective of this run, instead of trainer.objective",
    epochs="Epochs of this run, instead of trainer.epochs",
)
@app_commands.choices(objective=[app_commands.Choice(name=name, value=name) for name in dry_run.OBJECTIVES])
@operators_only
async def retrain(
    interaction: Interaction,
    dry_run: bool = False,
    objective: str | None = None,
    epochs: app_commands.Range[int, 1, MAX_EPOCHS] | None = None,
) -> None:
    """Queue a run; its progress appears as an ordinary message in this channel."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    services = interaction.client.services
    scope = acting_scope(interaction)
    if dry_run:
        return await say(interaction, await _rehearsed(services, scope))
    chosen = {"objective": objective, "epochs": epochs}
    own = {key: value for key, value in chosen.items() if value is not None}
    return await say(interaction, await _queue(interaction, scope, own))


async def _queue(interaction: Interaction, scope: str, own: dict[str, Any]) -> str:
    client, channel_id = interaction.client, interaction.channel_id

    def work(db: Connection) -> tuple[runs.Run, bool]:
        waiting = runs.active(db, scope) or (None if own else dry_run.find_unchanged_vote(db, scope))
        run = waiting or runs.enqueue(
            db,
            scope=scope,
            trigger="manual",
            requested_by=str(interaction.user.id),
            settings={"trainer": own} if own else None,
            report_channel_id=channel_id,
        )
        return run, waiting is None

    run, new = await client.services.database.awrite(work)
    if channel_id is not None:
        await client.feature(ProgressReporter).report_in(scope, channel_id)
    if run.outcome == "votes":
        return tr(
            "No rating has changed since run `{run}`, and its adapter `{adapter}` is still being judged: "
            "another run would make the same one. Wait for the votes and ratings, or choose other options.",
            run=run.id,
            adapter=run.adapter_id or "",
        )
    if new:
        named = ", ".join(f"{key} {value}" for key, value in own.items())
        settings = tr(" with {settings}", settings=named) if named else ""
        return tr(
            "Run `{run}` is queued{settings}. I show its progress in this channel.",
            run=run.id,
            settings=settings,
        )
    where = tr(" in {place}", place=_message_link(interaction, run)) if run.report_channel_id else ""
    unused = tr(" Your options were not used.") if own else ""
    told = tr(
        "Run `{run}` is already {state}; its progress is shown{where}.",
        run=run.id,
        state=tr(run.state),
        where=where,
    )
    return told + unused


def _message_link(interaction: Interaction, run: runs.Run) -> str:
    """Return where the run's progress is shown: its message, or the channel until there is one."""
    if run.report_message_id is None:
        return f"<#{run.report_channel_id}>"
    guild = interaction.guild_id or "@me"
    return f"https://discord.com/channels/{guild}/{run.report_channel_id}/{run.report_message_id}"


async def _rehearsed(services: Services, scope: str) -> str:
    alive = await asyncio.to_thread(trainer_is_running, services.config)
    try:
        served = (await services.base_and_adapters())[0].id
    except ServingError:
        served = ""
    estimate = await asyncio.to_thread(run_estimate, services.config, served, services.config.model.base)
    reference = services.permission_reference
    prospect = await services.database.aread(
        lambda db: dry_run.look(
            db, scope, permission_reference=reference, trainer_alive=alive, estimate=estimate
        )
    )
    lines = map(translate, dry_run.lines(prospect, services.config.trainer))
    return "\n".join(lines)[:1900]
