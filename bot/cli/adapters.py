"""`strop adapters`, `strop promote` and `strop rollback`."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

import typer

from bot.cli.errors import CommandError, UsageError
from bot.cli.runs import actor
from bot.cli.session import (
    ConfigOption,
    JsonOption,
    ScopeOption,
    Session,
    base_hash,
    choose_scope,
    model_client,
    read_server_health,
    session,
)
from bot.learning import adapter_text
from bot.learning.champion import ChampionChanges, Change, Place
from bot.serving.errors import AdapterRefusedError
from bot.serving.protocol import Health
from storage.db.database import Connection
from storage.learning import adapters as registry
from storage.learning import lineage
from storage.learning.adapters import Adapter, AnyChampion

BASE = "base"
T = TypeVar("T")
# How Discord is told a time.
_TIME = re.compile(r"<t:(\d+):\w>")


group = typer.Typer(invoke_without_command=True)


@group.callback()
def adapters(
    context: typer.Context,
    config: ConfigOption = None,
    scope: ScopeOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the adapters, the newest first (a star marks the one that answers).

    The list says which run made each, its score, and when it came to answer and went.

    Examples:

        strop adapters

        strop adapters show a3f9c2d1

        strop adapters --scope guild:123456789012345678 --json
    """
    if context.invoked_subcommand is None:
        list_adapters(config, scope, as_json)


@group.command("list")
def list_adapters(
    config: ConfigOption = None, scope: ScopeOption = None, as_json: JsonOption = False
) -> None:
    """List the adapters, as without a word behind `strop adapters`.

    Examples:

        strop adapters list --json
    """
    with session(config) as opened:
        rows = opened.database.read(lambda db: _rows(db, opened, scope))
    if as_json:
        typer.echo(json.dumps(rows, ensure_ascii=False))
        return
    if not rows:
        typer.echo("No adapter has been trained yet: the base model answers. `strop retrain` trains one.")
        return
    widths = [max(len(row[name]) for row in rows) for name in ("id", "scope")]
    for row in rows:
        made = datetime.fromtimestamp(row["created_ms"] / 1000, UTC).strftime("%Y-%m-%d %H:%M")
        mark = "★" if row["champion"] else " "
        state = f"{row['state']}{' (rehearsal)' if row['rehearsal'] else ''}"
        typer.echo(f"{mark} {row['id']:<{widths[0]}}  {row['scope']:<{widths[1]}}  {made}  {state}")
        for line in row["lineage"]:
            typer.echo(f"    {line}")


@group.command("show")
def show(
    adapter: Annotated[str, typer.Argument(help="An adapter's id (its beginning is enough).")],
    config: ConfigOption = None,
    scope: ScopeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show an adapter's card: data and member shares, settings, scores, limits, lineage.

    Examples:

        strop adapters show a3f9c2d1
    """
    with session(config) as opened:
        found = opened.database.read(lambda db: find(db, adapter, scope))
        typer.echo(_card(opened, found, as_json=as_json).rstrip())


def _card(opened: Session, adapter: Adapter, *, as_json: bool) -> str:
    """Return the run's card of an adapter; without it (erased, or still running) what lies beside its files.

    Raises CommandError where there is neither.
    """
    name = "card.json" if as_json else "card.md"
    folders = [opened.config.adapters / adapter.id]
    if adapter.run_id:
        folders.insert(0, opened.config.runs / adapter.run_id)
    for folder in folders:
        try:
            return (folder / name).read_text(encoding="utf-8")
        except OSError:
            continue
    raise CommandError(f"Adapter {adapter.id} has no card: its files are gone, or it came without one.")


def _rows(db: Connection, opened: Session, scope: str | None) -> list[dict[str, Any]]:
    chosen = None if scope is None else choose_scope(db, opened.config, scope)
    fields = ("id", "scope", "base_hash", "state", "rehearsal", "run_id", "parent_id", "created_ms")
    histories = [lineage.of(db, adapter.id) for adapter in registry.listing(db, chosen)]
    return [
        {
            **{name: getattr(history.adapter, name) for name in fields},
            "champion": history.answers,
            "replaced": history.came.previous_id if history.came else None,
            "answered_from_ms": history.came.created_ms if history.came else None,
            "answered_until_ms": history.went.created_ms if history.went else None,
            "lineage": [_plain(line) for line in adapter_text.lineage(history)],
        }
        for history in histories
        if history is not None
    ]


def _plain(line: str) -> str:
    """Return a line that was written for Discord as a terminal shows it."""
    return _TIME.sub(
        lambda found: datetime.fromtimestamp(int(found[1]), UTC).strftime("%Y-%m-%d %H:%M"),
        line.replace("`", ""),
    )


def promote(
    adapter: Annotated[str, typer.Argument(help="An adapter's id (its beginning is enough), or `base`.")],
    config: ConfigOption = None,
    scope: ScopeOption = None,
    reason: Annotated[str, typer.Option("--reason", help="Why, for the audit log.")] = "promoted by hand",
    as_json: JsonOption = False,
) -> None:
    """Make an adapter champion, whatever the gate said. Its files are checked first.

    Examples:

        strop promote a3f9c2d1

        strop promote base --reason "back to the plain model"
    """
    with session(config) as opened:
        if adapter == BASE:
            health = read_server_health(opened.config)
            chosen_scope = opened.database.read(lambda db: choose_scope(db, opened.config, scope))
            base = opened.database.read(lambda db: _known_base(db, chosen_scope, health))
            adapter_id = None
        else:
            chosen = opened.database.read(lambda db: find(db, adapter, scope))
            chosen_scope, base, adapter_id = chosen.scope, chosen.base_hash, chosen.id
        change = _changed(
            opened,
            lambda changes: changes.promote(
                Place(chosen_scope, base), adapter_id, actor=actor(), reason=reason
            ),
        )
    _tell(chosen_scope, change, as_json=as_json)


def reject(
    adapter: Annotated[str, typer.Argument(help="An adapter's id (its beginning is enough).")],
    config: ConfigOption = None,
    scope: ScopeOption = None,
    reason: Annotated[str, typer.Option("--reason", help="Why, for the audit log.")] = "rejected by hand",
) -> None:
    """Reject an adapter that waits for a decision, as the button on its run's card does.

    Examples:

        strop reject a3f9c2d1 --reason "too chatty"
    """
    with session(config) as opened:
        chosen = opened.database.read(lambda db: find(db, adapter, scope))
        _changed(opened, lambda changes: changes.reject(chosen.id, actor=actor(), reason=reason))
    typer.echo(f"Adapter {chosen.id} is rejected.")


def rollback(
    adapter: Annotated[
        str,
        typer.Argument(
            help="Which one to go back to (its beginning is enough, or `base`).",
            show_default="the one before the present one",
        ),
    ] = "",
    config: ConfigOption = None,
    scope: ScopeOption = None,
    reason: Annotated[str, typer.Option("--reason", help="Why, for the audit log.")] = "rolled back by hand",
    as_json: JsonOption = False,
) -> None:
    """Go back to the champion before this one (in the end: the base model), or to an earlier one.

    Examples:

        strop rollback

        strop rollback a3f9c2d1

        strop rollback --scope guild:123456789012345678 --reason "too chatty"
    """
    with session(config) as opened:
        health = read_server_health(opened.config)
        chosen = opened.database.read(lambda db: choose_scope(db, opened.config, scope))
        base = opened.database.read(lambda db: _known_base(db, chosen, health))
        to = opened.database.read(lambda db: _earlier(db, adapter, chosen))
        change = _changed(
            opened,
            lambda changes: changes.roll_back(Place(chosen, base), actor=actor(), reason=reason, to=to),
        )
    _tell(chosen, change, as_json=as_json)


def _changed(opened: Session, work: Callable[[ChampionChanges], Coroutine[Any, Any, T]]) -> T:
    """Change the champion; raises CommandError where the files or the model server don't allow it."""

    async def change() -> T:
        async with model_client(opened.config) as client:
            return await work(ChampionChanges(opened.config, opened.database, client))

    try:
        return asyncio.run(change())
    except AdapterRefusedError as error:
        raise CommandError(f"{error} Nothing was changed.") from error


def find(db: Connection, wanted: str, scope: str | None) -> Adapter:
    """The one adapter whose id begins like this; raises UsageError otherwise."""
    found = [one for one in registry.listing(db, scope, 10_000) if one.id.startswith(wanted)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise UsageError(f"There is no adapter {wanted!r}: `strop adapters` lists them.")
    raise UsageError(f"{wanted!r} could be {', '.join(one.id for one in found[:5])}: write more of it.")


def _earlier(db: Connection, wanted: str, scope: str) -> str | AnyChampion | None:
    """What `rollback` goes back to: the one that is named, or whichever came before."""
    if not wanted:
        return AnyChampion.ANY
    return None if wanted == BASE else find(db, wanted, scope).id


def _known_base(db: Connection, scope: str, health: Health | None) -> str:
    found = base_hash(db, scope, health)
    if not found:
        raise CommandError("It isn't known yet which base model is served: start `strop up` once.")
    return found


def _tell(scope: str, change: Change, *, as_json: bool) -> None:
    before, after = str(registry.display_name(change.before)), str(registry.display_name(change.after))
    if as_json:
        typer.echo(json.dumps({"scope": scope, "champion": change.after, "previous": change.before}))
    elif change.before == change.after:
        typer.echo(f"{after.capitalize()} answers in {scope} already.")
    else:
        typer.echo(f"From the next reply on {after} answers in {scope}, not {before}.")


def register(app: typer.Typer) -> None:
    """Add this topic's commands."""
    app.add_typer(group, name="adapters", rich_help_panel="Learn")
    for command in (promote, reject, rollback):
        app.command(rich_help_panel="Learn")(command)
