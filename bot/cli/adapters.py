"""`strop adapters`, `strop promote` and `strop rollback`."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import UTC, datetime
from typing import Annotated, Any

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
    served,
    session,
)
from bot.learning import adapter_text
from bot.serving.errors import AdapterRefusedError, ServerLoadingError, ServerUnavailableError
from bot.serving.model import adapter_files
from bot.serving.protocol import Health
from storage.db.database import Connection
from storage.learning import adapters as registry
from storage.learning import lineage
from storage.learning.adapters import Adapter, Unchecked

BASE = "base"
LIST = "list"
SHOW = "show"
LOAD_TIMEOUT_S = 120.0
# How Discord is told a time.
_TIME = re.compile(r"<t:(\d+):\w>")


def adapters(
    action: Annotated[
        str, typer.Argument(help="`list`, or `show` with an id.", metavar="[list|show]")
    ] = LIST,
    adapter: Annotated[str, typer.Argument(help="An adapter's id (its beginning is enough).")] = "",
    config: ConfigOption = None,
    scope: ScopeOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the adapters, the newest first (a star marks the one that answers), or show the card of one.

    The list says which run made each, its score, and when it came to answer and went. The card says where an
    adapter comes from: data and member shares, settings, scores, limits, lineage.

    Examples:

        strop adapters

        strop adapters show a3f9c2d1

        strop adapters --scope guild:123456789012345678 --json
    """
    if action not in (LIST, SHOW) or bool(adapter) != (action == SHOW):
        raise UsageError("Write `strop adapters`, or `strop adapters show ID`.")
    with session(config) as opened:
        if action == SHOW:
            found = opened.database.read(lambda db: _find(db, adapter, scope))
            typer.echo(_card(opened, found, as_json=as_json).rstrip())
            return
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
    lives = [lineage.of(db, adapter.id) for adapter in registry.listing(db, chosen)]
    return [
        {
            **{name: getattr(life.adapter, name) for name in fields},
            "champion": life.answers,
            "replaced": life.came.previous_id if life.came else None,
            "answered_from_ms": life.came.created_ms if life.came else None,
            "answered_until_ms": life.went.created_ms if life.went else None,
            "lineage": [_plain(line) for line in adapter_text.lineage(life)],
        }
        for life in lives
        if life is not None
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
        health = served(opened.config)
        if adapter == BASE:
            chosen_scope = opened.database.read(lambda db: choose_scope(db, opened.config, scope))
            base = opened.database.read(lambda db: _known_base(db, chosen_scope, health))
            adapter_id = None
        else:
            chosen = opened.database.read(lambda db: _find(db, adapter, scope))
            check_files(opened, chosen)
            load_in_server(opened, chosen, health)
            chosen_scope, base, adapter_id = chosen.scope, chosen.base_hash, chosen.id

        previous = opened.database.write(
            lambda db: registry.promote_by_hand(
                db,
                scope=chosen_scope,
                base_hash=base,
                adapter_id=adapter_id,
                actor=actor(),
                reason=reason,
            )
        )
    _tell(chosen_scope, adapter_id, previous, as_json=as_json)


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
        chosen = opened.database.read(lambda db: _find(db, adapter, scope))
        opened.database.write(lambda db: registry.reject(db, chosen.id, actor=actor(), reason=reason))
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
        health = served(opened.config)
        chosen = opened.database.read(lambda db: choose_scope(db, opened.config, scope))
        base = opened.database.read(lambda db: _known_base(db, chosen, health))
        to = opened.database.read(lambda db: _earlier(db, adapter, chosen))

        def work(db: Connection) -> tuple[str | None, str | None]:
            before = registry.champion(db, chosen, base)
            after = registry.rollback(db, scope=chosen, base_hash=base, actor=actor(), reason=reason, to=to)
            if after is not None and (found := registry.get(db, after)) is not None:
                # Inside the transaction: a champion whose files are damaged undoes the roll-back.
                check_files(opened, found)
            return before, after

        before, after = opened.database.write(work)
    _tell(chosen, after, before, as_json=as_json)


def check_files(opened: Session, adapter: Adapter) -> None:
    """Raise CommandError unless the adapter's files are there and just as they were trained."""
    root = opened.config.adapters
    try:
        adapter_files.verify(root / adapter.id, adapters_dir=root, base_hash=adapter.base_hash)
    except AdapterRefusedError as error:
        raise CommandError(f"{error} Nothing was changed.") from error


def load_in_server(opened: Session, adapter: Adapter, health: Health | None) -> None:
    """Load the adapter in the model server, if it is there: what it refuses must not become champion."""
    if health is None or health.status != "ok":
        return
    if health.base is not None and health.base.hash not in ("", adapter.base_hash):
        raise CommandError(f"Adapter {adapter.id} was trained for another base than the one being served.")

    async def load() -> None:
        async with model_client(opened.config) as client, asyncio.timeout(LOAD_TIMEOUT_S):
            await client.load_adapter(adapter.id, str((opened.config.adapters / adapter.id).absolute()))

    if adapter.id not in health.adapters:
        try:
            asyncio.run(load())
        except (ServerUnavailableError, ServerLoadingError, TimeoutError):
            # The server went away meanwhile; the first reply after its return loads the adapter.
            return


def _find(db: Connection, wanted: str, scope: str | None) -> Adapter:
    """The one adapter whose id begins like this; raises UsageError otherwise."""
    found = [one for one in registry.listing(db, scope, 10_000) if one.id.startswith(wanted)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise UsageError(f"There is no adapter {wanted!r}: `strop adapters` lists them.")
    raise UsageError(f"{wanted!r} could be {', '.join(one.id for one in found[:5])}: write more of it.")


def _earlier(db: Connection, wanted: str, scope: str) -> str | Unchecked | None:
    """What `rollback` goes back to: the one that is named, or whichever came before."""
    if not wanted:
        return Unchecked.ANY
    return None if wanted == BASE else _find(db, wanted, scope).id


def _known_base(db: Connection, scope: str, health: Health | None) -> str:
    found = base_hash(db, scope, health)
    if not found:
        raise CommandError("It isn't known yet which base model is served: start `strop up` once.")
    return found


def _tell(scope: str, adapter_id: str | None, previous: str | None, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"scope": scope, "champion": adapter_id, "previous": previous}))
    elif adapter_id == previous:
        typer.echo(f"{_name(adapter_id).capitalize()} answers in {scope} already.")
    else:
        typer.echo(f"From the next reply on {_name(adapter_id)} answers in {scope}, not {_name(previous)}.")


def _name(adapter_id: str | None) -> str:
    return "the base model" if adapter_id is None else f"adapter {adapter_id}"


def register(app: typer.Typer) -> None:
    """Add this topic's commands."""
    for command in (adapters, promote, reject, rollback):
        app.command(rich_help_panel="Learn")(command)
