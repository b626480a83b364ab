"""/runs: every run with how it came out, on what, and what it took; a page at a time."""

from __future__ import annotations

from collections.abc import Sequence

import discord
from discord import app_commands

from bot.language.durations import duration
from bot.language.sentences import translate
from bot.language.texts import mark, number, tr
from bot.ui.interactions import Interaction
from bot.ui.paging import PageButton, clamp_page, page_template, page_view
from storage.db.database import Connection
from storage.learning import run_summary
from storage.learning.run_summary import Summary

PAGE = 5
_LIMIT = 1990
OUTCOMES = {
    "promoted": mark("promoted"),
    "refused": mark("not promoted"),
    "not_yet": mark("not enough ratings yet"),
    "votes": mark("waiting for votes"),
    "failed": mark("failed"),
    "cancelled": mark("cancelled"),
}


@app_commands.command(name="runs", description="Every training run: how it came out, on what, what it took.")
async def runs_command(interaction: Interaction) -> None:
    """Show the newest runs."""
    await RunsButton.show_newest(interaction)


class RunsButton(PageButton, template=page_template("runs")):
    """Turns to another page of the runs."""

    kind = "runs"

    @classmethod
    async def page_of(cls, interaction: Interaction, page: int) -> tuple[str, discord.ui.View]:
        """Return five runs, each in a few lines."""
        services = interaction.client.services
        scope = services.scope(interaction.guild_id)

        def work(db: Connection) -> tuple[list[Summary], int, int]:
            shown, pages = clamp_page(page, run_summary.count(db, scope), PAGE)
            return run_summary.page(db, scope, skip=shown * PAGE, limit=PAGE), shown, pages

        found, shown, pages = await services.database.aread(work)
        return page_text(found, number=shown + 1, pages=pages), page_view(cls, shown, pages)


def page_text(found: Sequence[Summary], *, number: int, pages: int) -> str:
    """Return one page of runs, the newest first."""
    if not found:
        return tr("There are no runs yet: `/retrain` starts the first one.")
    head = [tr("Page {number} of {pages}.", number=number, pages=pages)] if pages > 1 else []
    return "\n\n".join([*head, *("\n".join(lines(each)) for each in found)])[:_LIMIT]


def lines(run: Summary) -> list[str]:
    """Return a run in a few lines: its outcome, its gain, its data, what it took."""
    began = f" · <t:{(run.started_ms or run.created_ms) // 1000}:f>"
    found = [f"**`{run.id}`** · {tr(OUTCOMES.get(run.outcome or '', run.state))}{began}"]
    found += [", ".join(part) for part in (describe_result(run), took(run)) if part]
    if run.gain is None and run.outcome in ("failed", "not_yet"):
        found.append(translate(run.message)[:150])
    return found


def describe_result(run: Summary) -> list[str]:
    """Say what the run gained with its interval, and what it was trained on."""
    return [part for part in (gain(run), data(run)) if part]


def gain(run: Summary) -> str:
    """Return the gain in predicted P(liked) with its interval, or an empty string."""
    if run.gain is None:
        return ""
    value = number(run.gain.value, "+.2f")
    if run.gain.low is None or run.gain.high is None:
        return tr("gain {value} in predicted likes", value=value)
    low, high = number(run.gain.low, "+.2f"), number(run.gain.high, "+.2f")
    return tr("gain {value} ({low} to {high}) in predicted likes", value=value, low=low, high=high)


def data(run: Summary) -> str:
    """Return what was trained on, or an empty string."""
    if run.train is None:
        return ""
    return tr(
        "on {liked} liked, {disliked} disliked and {corrections} corrected replies",
        liked=run.train.liked,
        disliked=run.train.disliked,
        corrections=run.train.corrections,
    )


def took(run: Summary) -> list[str]:
    """Say what the run took: time, processor time, memory, energy, steps."""
    found = []
    if run.seconds is not None:
        found.append(duration(run.seconds))
    if run.cpu_s is not None:
        found.append(tr("{time} of processor time", time=duration(run.cpu_s)))
    if run.peak_bytes:
        found.append(tr("at most {size} GB of memory", size=number(run.peak_bytes / 1e9, ".1f")))
    if run.gpu_peak_bytes:
        found.append(tr("at most {size} GB on the GPU", size=number(run.gpu_peak_bytes / 1e9, ".1f")))
    if run.energy_j is not None:
        found.append(tr("{energy} Wh", energy=number(run.energy_j / 3600, ".1f")))
    if run.steps is not None:
        found.append(steps(run))
    return found


def steps(run: Summary) -> str:
    """Return the steps taken, of those that were planned where they were more."""
    if run.planned_steps is None or run.planned_steps == run.steps:
        return tr("{steps} steps", steps=run.steps or 0)
    return tr("{steps} of {planned} steps", steps=run.steps or 0, planned=run.planned_steps)
