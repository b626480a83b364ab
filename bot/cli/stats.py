"""`strop stats`: ratings by day and by adapter, as `/stats` shows them: counts, never who rated what."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from bot.charts.week_text import WeekFigures, channel_lines, drift_line, monday, week_lines
from bot.cli.session import ConfigOption, JsonOption, ScopeOption, choose_scope, session
from storage.db import key_values
from storage.db.clock import DAY_MS, now_ms
from storage.db.database import Connection
from storage.feedback import like_rate, rating_statistics
from storage.feedback.like_rate import Drift, LikeRate
from storage.feedback.rating_statistics import AdapterShare, Day
from storage.learning import adapters, run_summary
from storage.learning.run_summary import Cost

SHARE_DAYS = 90
_MOST_ADAPTERS = 20
MOST_PROMOTIONS = 500


def stats(
    config: ConfigOption = None,
    scope: ScopeOption = None,
    days: Annotated[int, typer.Option(help="How many days.", min=1, max=366)] = 14,
    weeks: Annotated[
        int | None, typer.Option(help="Show so many weeks instead, with channels.", min=2, max=520)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show ratings by day, and how each adapter's replies were rated in the last 90 days.

    Examples:

        strop stats --days 30

        strop stats --weeks 26

        strop stats --scope deployment --json
    """
    with session(config) as opened:
        settings = opened.config
        chosen = opened.database.read(lambda db: choose_scope(db, settings, scope))
        if weeks is not None:
            found = opened.database.read(lambda db: week_figures(db, chosen, weeks))
            since_ms = now_ms() - 7 * weeks * DAY_MS
            cost = opened.database.read(lambda db: run_summary.cost_since(db, chosen, since_ms))
            typer.echo(_weeks_json(chosen, found, cost) if as_json else _weeks_text(chosen, found, cost))
            return
        by_day = opened.database.read(lambda db: rating_statistics.by_day(db, chosen, days))
        shares = opened.database.read(
            lambda db: rating_statistics.by_adapter(db, chosen, SHARE_DAYS, _MOST_ADAPTERS)
        )
    if as_json:
        typer.echo(_json(chosen, by_day, shares))
        return
    if not shares and not any(day.liked or day.disliked for day in by_day):
        typer.echo(f"{chosen}: nobody has rated a reply yet.")
        return
    typer.echo(f"{chosen}: ratings by day (UTC)")
    for day in by_day:
        if day.liked or day.disliked:
            typer.echo(f"  {_date(day)}  {day.liked:5} liked  {day.disliked:5} disliked")
    typer.echo(f"Share of ratings that like, the last {SHARE_DAYS} days, with 95 % intervals")
    for each in shares:
        low, high = each.interval
        votes = f", {each.votes.won} of {each.votes.count} votes won" if each.votes else ""
        name = each.adapter_id or "base model"
        typer.echo(f"  {name:16}  {each.share:4.0%} ({low:.0%} to {high:.0%}) of {each.ratings}{votes}")


def week_figures(db: Connection, scope: str, weeks: int) -> WeekFigures:
    """Return what the last weeks were like, and which adapter began when."""
    base_hash = key_values.get(db, key_values.SERVED_BASE) or ""
    promotions = adapters.recent_promotions(db, scope, base_hash, MOST_PROMOTIONS)
    return WeekFigures(
        like_rate.by_week(db, scope, weeks),
        like_rate.by_channel(db, scope, 7 * weeks, _MOST_ADAPTERS),
        like_rate.drift(db, scope),
        {
            each.created_ms // DAY_MS: each.adapter_id
            for each in reversed(promotions)
            if each.kind != "initial"
        },
    )


def _weeks_text(scope: str, figures: WeekFigures, cost: Cost | None) -> str:
    if figures.empty:
        return f"{scope}: nobody has rated a reply in these weeks."
    took = [] if cost is None else [cost.text()]
    lines = [
        f"{scope}: share of ratings that like by week (UTC, from Monday on), with 95 % intervals",
        *(f"  {line}" for line in week_lines(figures, len(figures.weeks))),
        "By channel",
        *(f"  {line}" for line in channel_lines(figures, str)),
        drift_line(figures.drift),
        *took,
    ]
    return "\n".join(lines).replace("`", "")


def _weeks_json(scope: str, figures: WeekFigures, cost: Cost | None) -> str:
    return json.dumps(
        {
            "scope": scope,
            "weeks": [
                {
                    "monday": monday(week),
                    **_rate_json(week.rate),
                    "raters": week.raters,
                    "began": figures.began_in(week),
                }
                for week in figures.weeks
            ],
            "channels": [{"id": str(channel), **_rate_json(rate)} for channel, rate in figures.channels],
            "drift": None if figures.drift is None else _drift_json(figures.drift),
            "training": None if cost is None else asdict(cost),
        }
    )


def _rate_json(rate: LikeRate | None) -> dict[str, Any]:
    if rate is None:
        return {"liked": 0, "disliked": 0, "share": None, "interval": None}
    interval = [round(end, 4) for end in rate.interval]
    return {
        "liked": rate.liked,
        "disliked": rate.disliked,
        "share": round(rate.share, 4),
        "interval": interval,
    }


def _drift_json(drift: Drift) -> dict[str, Any]:
    """The test's outcome; its interval has a confidence of 99.5 %."""
    return {
        "last_7_days": _rate_json(drift.recent),
        "28_days_before": _rate_json(drift.before),
        "change": round(drift.change, 4),
        "interval": [round(drift.low, 4), round(drift.high, 4)],
        "fell": drift.fell,
        "rose": drift.rose,
    }


def _json(scope: str, days: Sequence[Day], shares: Sequence[AdapterShare]) -> str:
    return json.dumps(
        {
            "scope": scope,
            "days": [{"date": _date(day), "liked": day.liked, "disliked": day.disliked} for day in days],
            "adapters": [
                {
                    "adapter_id": each.adapter_id,
                    "liked": each.liked,
                    "disliked": each.disliked,
                    "share": round(each.share, 4),
                    "interval": [round(end, 4) for end in each.interval],
                    "votes": {"won": each.votes.won, "lost": each.votes.lost} if each.votes else None,
                }
                for each in shares
            ],
        }
    )


def _date(day: Day) -> str:
    return datetime.fromtimestamp(day.number * DAY_MS / 1000, UTC).date().isoformat()


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Learn")(stats)
