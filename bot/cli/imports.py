"""`strop import` and `strop imports`: conversations from elsewhere, to learn from."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from bot.cli.errors import CommandError, UsageError
from bot.cli.launch.console import visible
from bot.cli.members import unload
from bot.cli.runs import actor
from bot.cli.session import ConfigOption, JsonOption, ScopeOption, Session, choose_scope, load, session
from storage.errors import ImportFileError
from storage.imports import files
from storage.imports import imports as stored
from storage.imports.checks import REASONS, Summary
from storage.imports.examples import Example
from storage.imports.files import ImportFile
from storage.privacy import file_scrubbing

BATCH = 200
PROGRESS_S = 2.0
SHOWN = 300

imports = typer.Typer(help="See and take back what was imported.", no_args_is_help=True)


def import_file(
    file: Annotated[Path, typer.Argument(help="The file; see the formats above. It may be gzipped.")],
    config: ConfigOption = None,
    scope: ScopeOption = None,
    rights: Annotated[
        str, typer.Option("--rights", help="Your right to use it, in your words; it is kept with the import.")
    ] = "",
    licence: Annotated[str, typer.Option("--licence", help="Its licence, for example CC-BY-4.0.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what is in it.")] = False,
    columns: Annotated[
        str,
        typer.Option(
            "--columns", help="For tables: prompt=NAME,answer=NAME and, if there is one, rating=NAME."
        ),
    ] = "",
    encoding: Annotated[str, typer.Option("--encoding", help="For example windows-1251.")] = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring in conversations from a file, to learn from.

    Understood are: Strop's own exports; messages (OpenAI, TRL); prompt and completion, preference pairs and
    KTO labels (TRL); ShareGPT; Alpaca; OpenAssistant trees; CSV with named columns; DiscordChatExporter's
    JSON. As JSON, JSON lines or CSV, plain or gzipped.

    Where the file says who liked what, that becomes ratings. Other answers become examples to imitate: they
    count as one voice, and never touch the held-out set. Messages from Discord train only with Discord's
    recorded permission and their authors' consent.

    Examples:

        strop import chats.jsonl --dry-run

        strop import chats.jsonl --rights "our own support chats" --licence internal

        strop import table.csv --columns prompt=question,answer=reply --rights "written by us"
    """
    # The file comes first: what is wrong with it holds before the first start as well.
    rating = load(config)[0].discord
    found = files.recognise(
        file,
        encoding=encoding,
        columns=_columns(columns),
        rating_up=rating.rating_up,
        rating_down=rating.rating_down,
    )
    before = _state(file)
    summary = _summary(found)
    with session(config) as opened:
        chosen = opened.database.read(lambda db: choose_scope(db, opened.config, scope))
        if not as_json:
            _preview(found, summary, chosen)
        if dry_run:
            return _tell_json(summary, None) if as_json else None
        if not summary.usable:
            raise CommandError(f"There is nothing to import in {file}.")
        if not rights.strip():
            raise UsageError('Say by which right you use it: --rights "…". `--dry-run` only looks.')
        if not (yes or as_json):
            typer.confirm(f"Import {summary.usable} examples for {chosen}?", abort=True, err=True)
        done = _store(opened, found, before, summary, chosen, rights.strip(), licence.strip())
    if as_json:
        return _tell_json(summary, done)
    again = f" {done.known} were there already." if done.known else ""
    typer.echo(
        f"Import {done.id}: {done.stored} new examples.{again} "
        f"`strop imports remove {done.id}` takes it back."
    )
    return None


def _columns(option: str) -> dict[str, str]:
    if not option:
        return {}
    pairs = [part.partition("=") for part in option.split(",")]
    named = {key.strip(): name.strip() for key, sign, name in pairs if sign and name.strip()}
    if not {"prompt", "answer"} <= named.keys() <= {"prompt", "answer", "rating"}:
        raise UsageError("--columns is written as prompt=NAME,answer=NAME or with rating=NAME as well.")
    return named


def _state(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


def _summary(found: ImportFile) -> Summary:
    summary = Summary()
    told = time.monotonic()
    for each in found.examples():
        summary.add(each)
        if time.monotonic() - told > PROGRESS_S and sys.stderr.isatty():
            told = time.monotonic()
            typer.echo(
                f"\r{summary.usable + sum(summary.left_out.values())} records read", nl=False, err=True
            )
    return summary


def _preview(found: ImportFile, summary: Summary, scope: str) -> None:
    source = found.source
    guessed = ", guessed: check the samples" if source.encoding_guessed else ""
    typer.echo(f"{found.title}, {source.layout.replace('-', ' ')}, {source.encoding}{guessed}.")
    rated = summary.usable - summary.imitated
    typer.echo(
        f"{summary.usable} examples for {scope}: {summary.imitated} to imitate, {rated} rated "
        f"({summary.liked} likes, {summary.disliked} dislikes, {summary.pairs} better answers)."
    )
    if summary.usable:
        splits = ", ".join(f"{name} {count}" for name, count in sorted(summary.splits.items()))
        typer.echo(f"By split: {splits}.")
    for reason, count in summary.left_out.most_common():
        first = summary.first_left_out[reason]
        typer.echo(f"Left out: {count} that {REASONS[reason]} (the first: {first}).")
    if any(turn.author for sample in summary.samples for turn in sample.prompt):
        typer.echo(
            "These are messages from Discord: they train only with Discord's recorded permission "
            "(discord.training_permission_reference), and only those whose authors opted in with /privacy."
        )
    for sample in summary.samples:
        typer.echo(f"  {visible(_shown(sample))}")


def _shown(sample: Example) -> str:
    question, answer = sample.question[:SHOWN], sample.answer.content[:SHOWN]
    better = f" | better: {sample.better[:SHOWN]}" if sample.better else ""
    return f"{sample.place}: {question} -> {answer}{better}"


def _store(
    opened: Session,
    found: ImportFile,
    before: tuple[int, int],
    summary: Summary,
    scope: str,
    rights: str,
    licence: str,
) -> stored.Import:
    digest = found.sha256()
    begun = opened.database.write(
        lambda db: stored.begin(
            db,
            name=found.source.path.name,
            sha256=digest,
            format_name=found.format,
            rights=rights,
            licence=licence,
            scope=scope,
            actor=actor(),
        )
    )
    reference = opened.config.discord.training_permission_reference
    count, started = 0, time.monotonic()
    try:
        for batch in stored.batches(_usable(found), BATCH):
            if _state(found.source.path) != before:
                raise ImportFileError(f"{found.source.path} changed while it was read: run the import again.")
            opened.database.write(
                partial(stored.store, found=begun, examples=batch, permission_reference=reference)
            )
            count += len(batch)
            _progress(count, summary.usable, started)
    except KeyboardInterrupt as error:
        raise CommandError(
            f"Stopped after {count} of {summary.usable} examples. Run it again to go on, or "
            f"`strop imports remove {begun.id}` to take it back."
        ) from error
    return opened.database.write(lambda db: stored.finish(db, begun.id, summary.left_out))


def _usable(found: ImportFile) -> Iterator[Example]:
    return (each for each in found.examples() if isinstance(each, Example))


def _progress(count: int, total: int, started: float) -> None:
    if not sys.stderr.isatty():
        return
    left = (time.monotonic() - started) / count * (total - count)
    typer.echo(f"\r{count} of {total} stored, about {left:.0f} s left ", nl=count >= total, err=True)


def _tell_json(summary: Summary, done: stored.Import | None) -> None:
    record: dict[str, Any] = {
        "usable": summary.usable,
        "imitated": summary.imitated,
        "liked": summary.liked,
        "disliked": summary.disliked,
        "pairs": summary.pairs,
        "splits": summary.splits,
        "left_out": summary.left_out,
    }
    typer.echo(json.dumps(record | ({"import": asdict(done)} if done else {}), ensure_ascii=False))


@imports.command("list")
def list_imports(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the imports, the newest first.

    Examples:

        strop imports list
    """
    with session(config) as opened:
        found = opened.database.read(stored.listing)
    if as_json:
        typer.echo(json.dumps([asdict(each) for each in found], ensure_ascii=False))
        return
    for each in found:
        typer.echo(_line(each))
    if not found:
        typer.echo("Nothing was imported yet: `strop import FILE` brings conversations in.")


@imports.command("show")
def show(number: Annotated[int, typer.Argument(help="Its number.")], config: ConfigOption = None) -> None:
    """Show an import: what it is, by which right, what was left out.

    Examples:

        strop imports show 1
    """
    with session(config) as opened:
        found = opened.database.read(lambda db: stored.expect(db, number))
    typer.echo(_line(found))
    typer.echo(
        f"Right to use it: {visible(found.rights)}. Licence: {visible(found.licence) or 'not stated'}."
    )
    for reason, count in found.left_out.items():
        typer.echo(f"Left out: {count} that {REASONS.get(reason, reason)}.")


@imports.command("remove")
def remove(
    number: Annotated[int, typer.Argument(help="Its number.")],
    config: ConfigOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
) -> None:
    """Take an import back whole. Adapters that learned from it stop answering at once.

    Examples:

        strop imports remove 1
    """
    with session(config) as opened:
        found = opened.database.read(lambda db: stored.expect(db, number))
        if not yes:
            typer.confirm(
                f"Take back import {found.id} ({found.name})? It can't be undone.", abort=True, err=True
            )
        erased = opened.database.write(lambda db: stored.remove(db, number, actor()))
        unload(opened, erased.affected_adapters)
        file_scrubbing.complete(opened.database, opened.config.data, erased)
    typer.echo(
        f"Import {number} is taken back. Adapters that had learned from it and are gone: "
        f"{len(erased.affected_adapters)}."
    )


def _line(found: stored.Import) -> str:
    when = datetime.fromtimestamp(found.created_ms / 1000, UTC).strftime("%Y-%m-%d")
    state = {"running": ", interrupted: import the file again to go on", "removed": ", taken back"}
    return (
        f"{found.id}  {when}  {visible(found.name)} ({found.format}) for {found.scope}: "
        f"{found.stored} examples{state.get(found.state, '')}"
    )


def register(app: typer.Typer) -> None:
    """Add this topic's commands."""
    app.command("import", rich_help_panel="Learn")(import_file)
    app.add_typer(imports, name="imports", rich_help_panel="Learn")
