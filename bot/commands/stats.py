"""/stats: ratings over time and by adapter, in text that reads the same on every screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from discord import app_commands

from bot.commands.tree import Interaction, StropTree, say
from bot.texts import number, tr
from storage import rating_stats
from storage.rating_stats import AdapterShare, Day

DAYS = 14
SHARE_DAYS = 90
_ADAPTERS = 8
_CELLS = 20
_STEPS = "▁▂▃▄▅▆▇█"


def add_to(tree: StropTree) -> None:
    """Add this module's commands."""
    tree.add_command(stats)


@app_commands.command(
    description="Ratings over the last two weeks, and how each adapter's replies were rated."
)
async def stats(interaction: Interaction) -> None:
    """Show counts and shares with their intervals; never who rated what."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    services = interaction.client.services
    scope = services.scope(interaction.guild_id)

    def work(db: Any) -> tuple[list[Day], list[AdapterShare]]:
        days = rating_stats.by_day(db, scope, DAYS)
        return days, rating_stats.by_adapter(db, scope, SHARE_DAYS, _ADAPTERS)

    days, shares = await services.database.aread(work)
    await say(interaction, stats_text(days, shares))


def stats_text(days: Sequence[Day], shares: Sequence[AdapterShare]) -> str:
    """Return two rows of bars for the days, and one line with an interval for each adapter."""
    if not shares and not any(day.liked or day.disliked for day in days):
        return tr("Nobody has rated a reply here yet.")
    most = max(1, *(max(day.liked, day.disliked) for day in days))
    lines = [
        tr(
            "**Ratings a day**, the last {count} days (today on the right, tallest bar {most})",
            count=len(days),
            most=most,
        ),
        tr(
            "`{bars}` {count} liked",
            bars=_bars([day.liked for day in days], most),
            count=sum(day.liked for day in days),
        ),
        tr(
            "`{bars}` {count} disliked",
            bars=_bars([day.disliked for day in days], most),
            count=sum(day.disliked for day in days),
        ),
    ]
    if shares:
        lines.append(
            tr("**Share of ratings that like**, the last {count} days, with 95 % intervals", count=SHARE_DAYS)
        )
        lines += [_share_line(share) for share in shares]
    return "\n".join(lines)[:2000]


def _bars(counts: Sequence[int], most: int) -> str:
    top = len(_STEPS) - 1
    return "".join("·" if not count else _STEPS[max(0, round(count / most * top))] for count in counts)


def _share_line(share: AdapterShare) -> str:
    low, high = share.interval
    count, name = share.liked + share.disliked, share.adapter_id or tr("base model")
    drawn = _whisker(share.share, low, high)
    return tr(
        "`{drawn}` {share} ({low} to {high}) of {count} · {name}",
        drawn=drawn,
        share=number(share.share, ".0%"),
        low=number(low, ".0%"),
        high=number(high, ".0%"),
        count=count,
        name=name,
    )


def _whisker(value: float, low: float, high: float) -> str:
    """Draw 0 to 100 % from left to right: the interval as a line, the share as a dot."""
    cells = [min(int(each * _CELLS), _CELLS - 1) for each in (low, value, high)]
    drawn = ["─" if cells[0] <= cell <= cells[2] else " " for cell in range(_CELLS)]
    drawn[cells[1]] = "●"
    return f"│{''.join(drawn)}│"
