"""/retrain: queue a run, with settings of its own if need be, or say what a run would use."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Any, get_args

from discord import app_commands

from bot.commands.tree import Interaction, StropTree, operators_only, say
from bot.services import Services
from storage import dataset, runs
from storage.config import TrainerConfig
from storage.processes import is_locked

MAX_EPOCHS = 20
_OBJECTIVES = get_args(TrainerConfig.model_fields["objective"].annotation)
_LIMIT = 1900


def add_to(tree: StropTree) -> None:
    """Add this module's commands."""
    tree.add_command(retrain)


@app_commands.command(
    description="Train a challenger on the ratings so far; it must beat the present adapter."
)
@app_commands.describe(
    dry_run="Only say what a run would use, and whether it would start; nothing changes",
    objective="What this run trains for, instead of trainer.objective",
    epochs="How often this run goes over the rows, instead of trainer.epochs",
)
@app_commands.choices(objective=[app_commands.Choice(name=name, value=name) for name in _OBJECTIVES])
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
    scope = services.scope(interaction.guild_id)
    if dry_run:
        return await say(interaction, await _rehearsed(services, scope))
    chosen = {"objective": objective, "epochs": epochs}
    own = {key: value for key, value in chosen.items() if value is not None}
    return await say(interaction, await _queue(interaction, scope, own))


async def _queue(interaction: Interaction, scope: str, own: dict[str, Any]) -> str:
    client, channel_id = interaction.client, interaction.channel_id

    def work(db: Any) -> tuple[runs.Run, bool]:
        waiting = runs.active(db, scope)
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
        await client.progress.report_in(scope, channel_id)
    if new:
        named = ", ".join(f"{key} {value}" for key, value in own.items())
        settings = f" with {named}" if named else ""
        return f"Run `{run.id}` is queued{settings}. I show its progress in this channel."
    where = f" in <#{run.report_channel_id}>" if run.report_channel_id else ""
    unused = " Your options were not used." if own else ""
    return f"Run `{run.id}` is already {run.state}; its progress is shown{where}.{unused}"


# --------------------------------------------------------------------------------------------------- dry run
@dataclass(frozen=True, slots=True)
class Prospect:
    """What a run would find if it started now."""

    eligible: dataset.Eligibility
    active: runs.Run | None
    trainer_alive: bool


async def _rehearsed(services: Services, scope: str) -> str:
    reference = services.permission_reference

    def look(db: Any) -> tuple[dataset.Eligibility, runs.Run | None]:
        found = dataset.eligible_rows(db, scope, permission_reference=reference)
        return found, runs.active(db, scope)

    eligible, active = await services.database.aread(look)
    alive = await asyncio.to_thread(is_locked, services.config.run / "trainer.lock")
    return prospect_text(Prospect(eligible, active, alive), services.config.trainer)


def prospect_text(prospect: Prospect, settings: TrainerConfig) -> str:
    """Say what a run would use and leave out, and whether it would start."""
    eligible = prospect.eligible
    splits = Counter(row.split for row in eligible.rows)
    lines = [
        "**Dry run**: nothing was changed.",
        _verdict(prospect, settings),
        f"Used: {len(eligible.rows)} rated replies, {splits['train']} to train on and "
        f"{splits['development'] + splits['gate']} held out to judge on",
        f"Liked or corrected: {eligible.liked} (needs {settings.min_liked}); "
        f"raters: {eligible.raters} (needs {settings.min_raters})",
    ]
    lines += [
        f"Left out: {n} because {dataset.REASONS.get(why, why)}" for why, n in eligible.excluded.items()
    ]
    if not eligible.excluded:
        lines.append("Left out: nothing")
    return "\n".join(lines)[:_LIMIT]


def _verdict(prospect: Prospect, settings: TrainerConfig) -> str:
    eligible, active = prospect.eligible, prospect.active
    if active is not None:
        return f"A run would not start: `{active.id}` is {active.state} already."
    if eligible.liked < settings.min_liked or eligible.raters < settings.min_raters:
        return 'A run would end at once with "not yet": there are too few ratings that may train.'
    trained_on = dataset.Eligibility([row for row in eligible.rows if row.split == "train"], {})
    if not trained_on.liked:
        return 'A run would end at once with "not yet": all liked replies lie in held-out conversations.'
    if not prospect.trainer_alive:
        return "A run would wait: the trainer is not running right now."
    return "A run would start now."
