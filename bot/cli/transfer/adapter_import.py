"""`strop adapters import`: an adapter that was trained elsewhere becomes a candidate."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from bot.cli.adapters import group
from bot.cli.errors import CommandError
from bot.cli.launch.console import visible
from bot.cli.runs import BAD_OUTCOMES, actor, follow, print_run, run_record
from bot.cli.session import (
    ConfigOption,
    JsonOption,
    ScopeOption,
    Session,
    choose_scope,
    model_client,
    read_server_health,
    session,
)
from bot.serving.errors import AdapterRefusedError
from bot.serving.model.adapter_files import MANIFEST
from bot.serving.model.lora import foreign
from bot.serving.model.lora.foreign import ForeignAdapter
from bot.serving.protocol import BaseDescription
from storage.imports import adapters as imports
from storage.learning import adapters as registry
from storage.learning import runs
from storage.learning.runs import Run

NAMED = 8


def import_adapter(
    folder: Annotated[Path, typer.Argument(help="The folder with adapter_config.json.")],
    config: ConfigOption = None,
    scope: ScopeOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only check it.")] = False,
    same_base: Annotated[
        bool,
        typer.Option("--same-base", help="The base that it names is the served one under another name."),
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the run and exit 1 if it fails.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring in a LoRA adapter that was trained elsewhere (PEFT, unsloth, axolotl, TRL) for the served base.

    It is checked, copied, and judged by the same gate as every challenger; it answers only if it proves
    itself. Read are adapter_config.json and adapter_model.safetensors; what lies beside them is left alone.

    Examples:

        strop adapters import ./my-lora --dry-run

        strop adapters import ./my-lora --wait
    """
    # The folder comes first: what is wrong with it holds before the first start as well.
    found = foreign.read_foreign(folder.expanduser())
    with session(config) as opened:
        chosen = opened.database.read(lambda db: choose_scope(db, opened.config, scope))
        base = _served_base(opened)
        if not same_base:
            foreign.check_base(found, _names_of(base))
        foreign.check_fits(found, foreign.base_widths(Path(base.folder)))
        _preview(found, base, quiet=as_json)
        if dry_run:
            return
        run = _import(opened, found, base, chosen)
        if wait:
            run = follow(opened, run, quiet=as_json)
        if as_json:
            typer.echo(json.dumps({**run_record(run), "adapter_id": run.settings["judge"]}))
        else:
            typer.echo(f"Adapter {run.settings['judge']} is a candidate of {chosen}; run {run.id} judges it.")
            print_run(opened, run)
    if wait and run.outcome in BAD_OUTCOMES:
        raise typer.Exit(1)


def _served_base(opened: Session) -> BaseDescription:
    health = read_server_health(opened.config)
    if health is None or not health.is_ready or health.base is None:
        raise CommandError(
            "The model server is not up, and an adapter is checked against the base that it serves: "
            "start `strop up`."
        )
    if not health.base.hash or not Path(health.base.folder).is_dir():
        raise CommandError(
            "The model server does not say which base it serves: import with Strop's own server."
        )
    return health.base


def _names_of(base: BaseDescription) -> list[str]:
    source = base.identity.source if base.identity else ""
    return [base.id, base.source.partition(":")[2], source.partition(":")[2]]


def _preview(found: ForeignAdapter, base: BaseDescription, *, quiet: bool) -> None:
    if quiet:
        return
    typer.echo(f"LoRA of rank {found.rank} on {len(found.pairs)} layers: it fits {base.id}.")
    if not found.base_name:
        typer.echo("It doesn't say which base it was trained for; only its shapes speak for this one.")
    if foreign.has_other_template(found, base.chat_template_hash):
        typer.echo("It comes with another chat template; it will be served through the one of the base.")
    if found.ignored:
        more = f" and {len(found.ignored) - NAMED} more" if len(found.ignored) > NAMED else ""
        typer.echo(f"Not read: {visible(', '.join(found.ignored[:NAMED]))}{more}.")


def _import(opened: Session, found: ForeignAdapter, base: BaseDescription, scope: str) -> Run:
    """Copy it, let the server load it, and queue its judging; leaves nothing behind where that fails."""
    busy = opened.database.read(lambda db: runs.active(db, scope))
    if busy is not None:
        raise _after(busy)
    copied = _copied(opened, found, base)
    try:
        _check_loads(opened, copied)
        run = _queued(opened, copied, base, scope)
    except BaseException:
        if copied.new:
            shutil.rmtree(copied.folder, ignore_errors=True)
        raise
    return run


@dataclass(frozen=True)
class _Copied:
    folder: Path
    new: bool

    @property
    def id(self) -> str:
        return self.folder.name


def _copied(opened: Session, found: ForeignAdapter, base: BaseDescription) -> _Copied:
    into = opened.config.adapters
    into.mkdir(parents=True, exist_ok=True)
    before = {entry.name for entry in into.iterdir()}
    with tempfile.TemporaryDirectory(prefix=".new-", dir=into.parent) as outer:
        work = Path(outer) / "adapter"
        work.mkdir()
        adapter_id = foreign.bring_in(
            found,
            into,
            work,
            base_id=base.id,
            base_hash=base.hash,
            chat_template_hash=base.chat_template_hash,
        )
    return _Copied(into / adapter_id, adapter_id not in before)


def _check_loads(opened: Session, copied: _Copied) -> None:
    """Let the engine itself read the weights: it refuses what no header tells."""

    async def load() -> None:
        async with model_client(opened.config) as client:
            await client.load_adapter(copied.id, copied.folder.absolute())

    try:
        asyncio.run(load())
    except AdapterRefusedError as error:
        raise CommandError(f"{error} Nothing was imported.") from error


def _queued(opened: Session, copied: _Copied, base: BaseDescription, scope: str) -> Run:
    known = opened.database.read(lambda db: registry.get(db, copied.id))
    if known is not None and (known.state == "promoted" or known.scope != scope):
        raise CommandError(f"Adapter {known.id} is here already: it is {known.state} in {known.scope}.")
    manifest = json.loads((copied.folder / MANIFEST).read_text(encoding="utf-8"))
    run = opened.database.write(
        lambda db: imports.judge(
            db,
            adapter_id=copied.id,
            scope=scope,
            base_hash=base.hash,
            manifest=manifest,
            rehearsal=opened.config.playground,
            actor=actor(),
        )
    )
    if run.settings.get("judge") != copied.id:
        raise _after(run)
    return run


def _after(run: Run) -> CommandError:
    return CommandError(f"Run {run.id} of {run.scope} is {run.state}: import the adapter after it.")


def register(_: typer.Typer) -> None:
    """Add this topic's command."""
    group.command("import")(import_adapter)
