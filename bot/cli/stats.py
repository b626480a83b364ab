"""`strop stats`: ratings by day and by adapter, as `/stats` shows them: counts, never who rated what."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated

import typer

from bot.cli.session import ConfigOption, JsonOption, ScopeOption, choose_scope, session
from storage.db.clock import DAY_MS
from storage.feedback import rating_statistics
from storage.feedback.rating_statistics import AdapterShare, Day

SHARE_DAYS = 90
_MOST_ADAPTERS = 20


def stats(
    config: ConfigOption = None,
    scope: ScopeOption = None,
    days: Annotated[int, typer.Option(help="How many days.", min=1, max=366)] = 14,
    as_json: JsonOption = False,
) -> None:
    """Show ratings by day, and how each adapter's replies were rated in the last 90 days.

    Examples:

        strop stats --days 30

        strop stats --scope deployment --json
    """
    with session(config) as opened:
        settings = opened.config
        chosen = opened.database.read(lambda db: choose_scope(db, settings, scope))
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
