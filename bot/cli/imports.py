"""`strop import` and `strop imports`: conversations from elsewhere, to learn from."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from bot.cli.errors import CommandError, UsageError
from bot.cli.launch.console import visible
from bot.cli.members import unload
from bot.cli.runs import actor
from bot.cli.session import (
    ConfigOption,
    JsonOption,
    ScopeOption,
    Session,
    import_scope,
    load,
    session,
)
from bot.language.durations import duration
from storage.imports import files, importing
from storage.imports import imports as stored
from storage.imports.checks import REASONS, Summary
from storage.imports.examples import Example, Prompt
from storage.imports.files import ImportFile, State
from storage.imports.importing import Progress, Statement
from storage.privacy import file_scrubbing

PROGRESS_S = 2.0
SHOWN = 300

imports = typer.Typer(help="See and take back what was imported.", no_args_is_help=True)


def import_file(
    file: Annotated[Path, typer.Argument(help="The file; see the formats above.")],
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
    JSON. As JSON, JSON lines or CSV, plain or gzipped. And prompts without answers, for tastings to ask: a
    text with one per line, DiscordChatExporter's CSV, and Discord's own data package (zip or folder).

    Where the file says who liked what, that becomes ratings. Other answers become examples to imitate: they
    count as one voice, and never touch the held-out set. Messages from Discord train only with Discord's
    recorded permission and their authors' consent.

    Examples:

        strop import chats.jsonl --dry-run

        strop import chats.jsonl --rights "our own support chats" --licence internal

        strop import table.csv --columns prompt=question,answer=reply --rights "written by us" --licence ours
    """
    # The file comes first: what is wrong with it holds before the first start as well.
    rating = load(config)[0].discord
    found = files.recognise(
        file.expanduser(),
        encoding=encoding,
        columns=_columns(columns),
        rating_up=rating.rating_up,
        rating_down=rating.rating_down,
    )
    before = found.state()
    summary = importing.look(found, _progress("{records} records read"))
    if not as_json:
        _preview(found, summary)
    if dry_run:
        return _tell_json(found, summary, None) if as_json else None
    with session(config) as opened:
        statement = Statement(
            import_scope(opened, scope), rights, licence, actor(), rating.training_permission_reference
        )
        if not summary.usable:
            raise CommandError(f"There is nothing to import in {file}.")
        if not (rights.strip() and licence.strip()):
            raise UsageError(
                'Say by which right you use it and under which licence: --rights "…" --licence "…". '
                "`--dry-run` only looks."
            )
        if not (yes or as_json):
            typer.confirm(f"Import {_counted(found, summary)} for {statement.scope}?", abort=True, err=True)
        done = _take_in(opened, found, before, summary, statement)
    if as_json:
        return _tell_json(found, summary, done)
    _tell(found, summary, done)
    return None


def _columns(option: str) -> dict[str, str]:
    if not option:
        return {}
    pairs = [part.partition("=") for part in option.split(",")]
    named = {key.strip(): name.strip() for key, sign, name in pairs if sign and name.strip()}
    if not {"prompt", "answer"} <= named.keys() <= {"prompt", "answer", "rating"}:
        raise UsageError("--columns is written as prompt=NAME,answer=NAME or with rating=NAME as well.")
    return named


def _preview(found: ImportFile, summary: Summary) -> None:
    source = found.source
    guessed = ", guessed: check the samples" if source.encoding_guessed else ""
    typer.echo(f"{found.title}, {source.layout.replace('-', ' ')}, {source.encoding}{guessed}.")
    if found.prompts_only:
        typer.echo(f"{_counted(found, summary)} without answers: tastings ask them, and members rate.")
    else:
        rated = summary.usable - summary.imitated
        typer.echo(
            f"{_counted(found, summary)}: {summary.imitated} to imitate, {rated} rated "
            f"({summary.liked} likes, {summary.disliked} dislikes, {summary.pairs} better answers)."
        )
    if summary.splits:
        splits = ", ".join(f"{name} {count}" for name, count in sorted(summary.splits.items()))
        typer.echo(f"By split: {splits}.")
    for reason, count in summary.left_out.most_common():
        first = summary.first_left_out[reason]
        typer.echo(f"Left out: {count} that {REASONS[reason]} (the first: {first}).")
    if any(_from_discord(sample) for sample in summary.samples):
        typer.echo(
            "These are messages from Discord: they train only with Discord's recorded permission "
            "(discord.training_permission_reference), and only those whose authors opted in with /privacy."
        )
    for sample in summary.samples:
        for line in _shown(sample):
            typer.echo(f"  {visible(line)}")


def _from_discord(sample: Example | Prompt) -> bool:
    return sample.author is not None if isinstance(sample, Prompt) else sample.opening.author is not None


def _shown(sample: Example | Prompt) -> Iterator[str]:
    """Write a sample as the model will see it: turn by turn."""
    yield f"{sample.place}:"
    if isinstance(sample, Prompt):
        yield f"  user: {sample.text[:SHOWN]}"
        return
    for turn in (*sample.prompt, sample.answer):
        yield f"  {turn.role}: {turn.content[:SHOWN]}"
    if sample.better:
        yield f"  better than that: {sample.better[:SHOWN]}"


def _counted(found: ImportFile, summary: Summary) -> str:
    return _some(summary.usable, "prompt" if found.prompts_only else "example")


def _some(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _take_in(
    opened: Session, found: ImportFile, before: State, summary: Summary, statement: Statement
) -> stored.Import:
    try:
        return importing.take_in(
            opened.database, found, before, summary, statement, _progress("{records} stored")
        )
    except KeyboardInterrupt as error:
        raise CommandError(
            "Stopped: what is stored trains nothing yet. Import the file again to go on, or take it back "
            "with `strop imports remove`."
        ) from error


def _progress(text: str) -> Callable[[Progress], None]:
    """Show progress in one line of a terminal, and nothing elsewhere."""
    told_s = time.monotonic()

    def tell(now: Progress) -> None:
        nonlocal told_s
        is_over = now.share == 1.0
        if not sys.stderr.isatty() or (time.monotonic() - told_s < PROGRESS_S and not is_over):
            return
        told_s = time.monotonic()
        share = "" if now.share is None else f", {now.share:.0%}"
        left = "" if not now.left_s else f", about {duration(now.left_s)} left"
        typer.echo(f"\r{text.format(records=now.records)}{share}{left}   ", nl=is_over, err=True)

    return tell


def _tell(found: ImportFile, summary: Summary, done: stored.Import) -> None:
    again = f" {done.known} were there already." if done.known else ""
    new = _some(done.stored, "new prompt" if found.prompts_only else "new example")
    typer.echo(f"Import {done.id}: {new}.{again} `strop imports remove {done.id}` takes it back.")
    if found.prompts_only:
        for reason in ("no_consent", "prompt_too_long", "bank_full"):
            if count := summary.left_out.get(reason):
                typer.echo(f"Left out: {count} that {REASONS[reason]}.")
        typer.echo("`strop tasting start` or /tasting asks them.")
    elif done.stored:
        typer.echo("No run starts by itself: `strop retrain --dry-run` says what one would learn from.")


def _tell_json(found: ImportFile, summary: Summary, done: stored.Import | None) -> None:
    record: dict[str, Any] = {
        "format": found.format,
        "prompts_only": found.prompts_only,
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
        f"Import {number} is taken back. Adapters that were trained on it and are gone: "
        f"{len(erased.affected_adapters)}."
    )


def _line(found: stored.Import) -> str:
    when = datetime.fromtimestamp(found.created_ms / 1000, UTC).strftime("%Y-%m-%d")
    state = {"running": ", interrupted: import the file again to go on", "removed": ", taken back"}
    return (
        f"{found.id}  {when}  {visible(found.name)} ({found.format}) for {found.scope}: "
        f"{_some(found.stored, 'example')}{state.get(found.state, '')}"
    )


def register(app: typer.Typer) -> None:
    """Add this topic's commands."""
    app.command("import", rich_help_panel="Learn")(import_file)
    app.add_typer(imports, name="imports", rich_help_panel="Learn")
