"""/stats: ratings over time and by adapter, as a picture and as numbers that read the same everywhere."""

from __future__ import annotations

from collections.abc import Sequence

from discord import app_commands

from bot.charts import rating_chart, week_chart
from bot.charts.rating_chart import RatingFigures
from bot.charts.week_text import WeekFigures, channel_lines, drift_line, week_lines
from bot.language.texts import tr
from bot.services import Services
from bot.serving.errors import ServingError
from bot.ui.interactions import Interaction, say
from bot.ui.pictures import say_with_picture
from storage.db.clock import DAY_MS
from storage.db.database import Connection
from storage.feedback import like_rate, rating_statistics
from storage.learning import adapters

DAYS = 14
SHARE_DAYS = 90
MOST_WEEKS = 104
# Discord takes 2,000 characters.
_WEEKS_IN_TEXT = 12
_CHANNELS = 8
_ADAPTERS = 8
_CHANGES = 50
_STEPS = "▁▂▃▄▅▆▇█"


@app_commands.command(
    description="Ratings over the last two weeks, and how each adapter's replies were rated."
)
@app_commands.describe(weeks="Show so many weeks instead, with channels and a test of the last one")
async def stats(
    interaction: Interaction, weeks: app_commands.Range[int, 2, MOST_WEEKS] | None = None
) -> None:
    """Show counts and shares with their intervals; never who rated what."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    services = interaction.client.services
    if weeks is not None:
        return await _show_weeks(interaction, weeks)
    found = await _figures(services, services.scope(interaction.guild_id))
    if found.empty:
        return await say(interaction, tr("Nobody has rated a reply here yet."))
    return await say_with_picture(interaction, stats_text(found), lambda: rating_chart.draw(found))


async def _show_weeks(interaction: Interaction, weeks: int) -> None:
    services = interaction.client.services
    scope, base_hash = services.scope(interaction.guild_id), await _base_hash(services)
    found = await services.database.aread(lambda db: week_figures(db, scope, base_hash, weeks))
    if found.empty:
        return await say(interaction, tr("Nobody has rated a reply here yet."))
    return await say_with_picture(interaction, weeks_text(found), lambda: week_chart.draw(found))


def week_figures(db: Connection, scope: str, base_hash: str, weeks: int) -> WeekFigures:
    """Return what is shown of the last weeks."""
    return WeekFigures(
        like_rate.by_week(db, scope, weeks),
        like_rate.by_channel(db, scope, 7 * weeks, _CHANNELS),
        like_rate.drift(db, scope),
        _changes(db, scope, base_hash),
    )


def weeks_text(figures: WeekFigures) -> str:
    """Return what the test says, then the latest weeks and the channels; the picture has all weeks."""
    shown = min(len(figures.weeks), _WEEKS_IN_TEXT)
    more = tr("the last {count} weeks, 95 % intervals", count=shown)
    lines = [
        drift_line(figures.drift),
        f"**{tr('Share of ratings that like')}** · {more}",
        *week_lines(figures, _WEEKS_IN_TEXT),
    ]
    if figures.channels:
        more = tr("the last {count} weeks, 95 % intervals", count=len(figures.weeks))
        lines.append(f"**{tr('By channel')}** · {more}")
        lines += channel_lines(figures, lambda channel_id: f"<#{channel_id}>")
    return "\n".join(lines)[:2000]


async def _base_hash(services: Services) -> str:
    try:
        return await services.base_hash()
    except ServingError:
        # No model was ever seen: nothing answered, and nothing was promoted.
        return ""


def _changes(db: Connection, scope: str, base_hash: str) -> dict[int, str | None]:
    """Return from which day on which adapter answered."""
    changes = reversed(adapters.recent_promotions(db, scope, base_hash, _CHANGES))
    return {each.created_ms // DAY_MS: each.adapter_id for each in changes if each.kind != "initial"}


async def _figures(services: Services, scope: str) -> RatingFigures:
    base_hash = await _base_hash(services)

    def work(db: Connection) -> RatingFigures:
        days = rating_statistics.by_day(db, scope, DAYS)
        return RatingFigures(
            days=days,
            shares=rating_statistics.by_adapter(db, scope, SHARE_DAYS, _ADAPTERS),
            share_days=SHARE_DAYS,
            champion_id=adapters.champion(db, scope, base_hash),
            changes=_changes(db, scope, base_hash),
        )

    return await services.database.aread(work)


def stats_text(figures: RatingFigures) -> str:
    """Return two rows of bars for the days, and one line with an interval for each adapter."""
    days, shares = figures.days, figures.shares
    most = max(1, *(max(day.liked, day.disliked) for day in days))
    liked, disliked = [day.liked for day in days], [day.disliked for day in days]
    more = tr("the last {days} days (today on the right, tallest bar {most})", days=len(days), most=most)
    lines = [
        f"**{tr('Ratings a day')}** · {more}",
        f"`{_bars(liked, most)}` {tr('{count} liked', count=sum(liked))}",
        f"`{_bars(disliked, most)}` {tr('{count} disliked', count=sum(disliked))}",
    ]
    if shares:
        more = tr("the last {count} days, 95 % intervals", count=figures.share_days)
        lines.append(f"**{tr('Share of ratings that like')}** · {more}")
        lines += [rating_chart.share_line(share) for share in shares]
    return "\n".join(lines)[:2000]


def _bars(counts: Sequence[int], most: int) -> str:
    top = len(_STEPS) - 1
    return "".join("·" if not count else _STEPS[max(0, round(count / most * top))] for count in counts)
